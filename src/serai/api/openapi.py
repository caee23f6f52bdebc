"""The OpenAPI 3.1 document, made from the table of routes.

Not Litestar's own generator: that one needs each parameter and body in the signature of a Litestar
handler, and with them Litestar's slower decoding; ours sees what the table says, problems and
streams included. The schemas come from msgspec. ``docs/api/openapi.json`` is its output; a test
compares the two.
"""

import inspect
import re
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

import msgspec

from serai.api.answers import JSON, PROBLEM_JSON
from serai.api.bodies import EXAMPLES, NoBody
from serai.api.calls import Document, Reply, Route, SocketRoute
from serai.api.problems import CODE_STATUS, ProblemDocument
from serai.api.routes import (
    COMMON_PROBLEMS,
    HEADERS,
    PATH_PARAMETERS,
    REPLY_HEADERS,
    ROUTES,
    SOCKETS,
)
from serai.api.volume_bodies import VOLUME_EXAMPLES
from serai.errors import Code

REF = "#/components/schemas/{name}"
VERSION = "1"
PROBLEM_CONTENT = {PROBLEM_JSON: {"schema": {"$ref": REF.format(name=ProblemDocument.__name__)}}}
ABOUT = """
The daemon listens on a unix socket that only its owner can open; there is no other authentication.
Sizes are bytes and times are seconds, everywhere.

What changes something is an action: the answer is `202` with a job that is durable, or, with
`?wait=SECONDS`, how the job ended. A failed job answers with its problem. Send an `Idempotency-Key`
to be safe against doing a thing twice when an answer is lost.

Every error is a problem document (RFC 9457). Its `code` is the contract: programs compare it, and
the list at the end of this page is complete. `message` and `hint` are for people.

Lists come in pages: send `next` as `cursor` until it is empty.
""".strip()

ALL_EXAMPLES = {**EXAMPLES, **VOLUME_EXAMPLES}


def build_openapi() -> Document:
    """Return the whole document; pure, and the same every time."""
    schemas, components = _build_schemas()
    paths: dict[str, dict[str, Any]] = {}
    for row in ROUTES:
        paths.setdefault(row.path, {})[row.method.lower()] = _build_operation(row, schemas)
    for socket in SOCKETS:
        paths.setdefault(socket.path, {})["get"] = _build_socket(socket)
    return {
        "openapi": "3.1.0",
        "info": {"title": "serai", "version": VERSION, "description": ABOUT},
        "servers": [{"url": "http://serai", "description": "The daemon's unix socket."}],
        "tags": [{"name": name} for name in dict.fromkeys(row.tag for row in ROUTES)],
        "paths": paths,
        "components": {"schemas": components, "responses": {"Problem": _common_problem()}},
        "x-problem-codes": [{"code": str(code), "status": int(CODE_STATUS[code])} for code in Code],
    }


def _build_schemas() -> tuple[dict[Any, Any], dict[str, Any]]:
    """Return the schema of each type in the table, and the schemas they refer to."""
    kinds: list[Any] = [ProblemDocument]
    for row in ROUTES:
        kinds += [row.query, row.body, *(reply.type for reply in row.replies if reply.type)]
    kinds = list(dict.fromkeys(kinds))
    shown, components = msgspec.json.schema_components(kinds, ref_template=REF)
    queries = {row.query.__name__ for row in ROUTES} | {NoBody.__name__}
    for schema in components.values():
        _clean(schema)
    parameters = {row.query: components[row.query.__name__] for row in ROUTES}
    kept = {name: components[name] for name in sorted(components) if name not in queries}
    return {**dict(zip(kinds, shown, strict=True)), **parameters}, kept


def _clean(schema: dict[str, Any]) -> None:
    """Turn a docstring into a description."""
    if "description" in schema:
        text = inspect.cleandoc(schema["description"]).replace("``", "`")
        schema["description"] = re.sub(r"\s+", " ", text)


def _build_operation(row: Route, schemas: dict[Any, Any]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": row.name,
        "tags": [row.tag],
        "summary": row.summary,
        "description": row.description,
        "parameters": [
            *_path_parameters(row.path),
            *_query_parameters(schemas[row.query]),
            *(_header_parameter(name) for name in row.headers),
        ],
        "responses": {**_build_replies(row.replies, schemas), **_build_problems(row.problems)},
    }
    if row.raw:
        operation["requestBody"] = {"content": {row.raw: {}}}
    elif row.body is not NoBody:
        required = any(field.required for field in msgspec.structs.fields(row.body))
        content = {JSON: {"schema": schemas[row.body], "example": ALL_EXAMPLES[row.body]}}
        operation["requestBody"] = {"required": required, "content": content}
    return operation


def _build_socket(row: SocketRoute) -> dict[str, Any]:
    return {
        "operationId": row.name,
        "tags": [row.tag],
        "summary": row.summary,
        "description": row.description,
        "parameters": _path_parameters(row.path),
        "responses": {
            "101": {"description": "It is a WebSocket now."},
            **_build_problems(row.problems),
        },
        "x-websocket": True,
    }


def _path_parameters(path: str) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "in": "path",
            "required": True,
            "description": PATH_PARAMETERS[name],
            "schema": {"type": "string"},
        }
        for name in re.findall(r"{(\w+)}", path)
    ]


def _query_parameters(schema: dict[str, Any]) -> list[dict[str, Any]]:
    found = []
    for name, untidy in schema["properties"].items():
        field = dict(untidy)
        if field.get("default", 0) is None:
            del field["default"]
            field |= next(kind for kind in field.pop("anyOf") if kind != {"type": "null"})
        about = field.pop("description", "")
        required = name in schema["required"]
        found.append(
            {
                "name": name,
                "in": "query",
                "required": required,
                "description": about,
                "schema": field,
            }
        )
    return found


def _header_parameter(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "in": "header",
        "description": HEADERS[name],
        "schema": {"type": "string"},
    }


def _build_replies(replies: Iterable[Reply], schemas: dict[Any, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for reply in replies:
        entry = found.setdefault(str(int(reply.status)), {"description": reply.about})
        if reply.headers:
            entry["headers"] = {
                name: {"description": REPLY_HEADERS[name], "schema": {"type": "string"}}
                for name in reply.headers
            }
        if reply.media:
            content = {"schema": schemas[reply.type]} if reply.type else {}
            entry.setdefault("content", {})[reply.media] = content
            if len(entry["content"]) > 1:
                entry["description"] += f" {reply.about}"
    return found


def _build_problems(codes: Iterable[Code]) -> dict[str, Any]:
    """Return the problem answers, by status; each names its codes."""
    by_status: dict[HTTPStatus, list[Code]] = {}
    for code in dict.fromkeys(codes):
        by_status.setdefault(CODE_STATUS[code], []).append(code)
    found: dict[str, Any] = {
        str(int(status)): {
            "description": f"{status.phrase}: " + ", ".join(f"`{code}`" for code in named),
            "content": PROBLEM_CONTENT,
            "x-problem-codes": [str(code) for code in named],
        }
        for status, named in sorted(by_status.items())
    }
    return {**found, "default": {"$ref": "#/components/responses/Problem"}}


def _common_problem() -> dict[str, Any]:
    return {
        "description": "A problem that every request may have, or one of what stands behind it.",
        "content": PROBLEM_CONTENT,
        "x-problem-codes": [str(code) for code in COMMON_PROBLEMS],
    }
