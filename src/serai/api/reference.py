"""The OpenAPI document as text for people: ``docs/api.md``, and what the page ``/docs`` shares.

Everything here reads the document, not the table of routes, so that it shows what programs see.
"""

import json
from collections.abc import Iterator
from typing import Any

from serai.api.calls import Document

SAMPLES = {"{guest}": "web1", "{image}": "tiny", "{job}": "JOB", "{snapshot}": "ready"}
QUERIES = {
    "launch-guest": "?wait=60",
    "create-snapshot": "?wait=60",
    "fork-guest": "?wait=60",
    "pull-file": "?path=/etc/hostname",
    "push-file": "?path=/tmp/file",
    "show-log": "?tail=4096",
    "export-image": "?file=disk",
}
OPTIONS = {
    "pull-file": "-o file",
    "push-file": "-T file",
    "export-image": "-o disk.qcow2",
    "take-screenshot": "-o screen.png",
    "list-events": "-N -H 'accept: text/event-stream'",
}


def operations(document: Document) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Give (method, path, operation) in the order of the document."""
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def type_text(schema: dict[str, Any]) -> str:
    """Say in words what a schema allows: ``list of Guest``, ``integer (1 to 10000)``."""
    if "$ref" in schema:
        return str(schema["$ref"]).rsplit("/", 1)[1]
    if "anyOf" in schema:
        return " or ".join(type_text(each) for each in schema["anyOf"])
    if "enum" in schema:
        return " or ".join(json.dumps(each) for each in schema["enum"])
    kind = str(schema.get("type", "anything"))
    if kind == "array":
        return f"list of {type_text(schema.get('items', {}))}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"map of {type_text(schema['additionalProperties'])}"
    if schema.get("contentEncoding") == "base64":
        return "base64"
    return f"{kind}{_limits(schema)}"


def _limits(schema: dict[str, Any]) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None and high is not None:
        return f" ({low:g} to {high:g})"
    if low is not None:
        return f" (from {low:g})"
    return ""


def default_text(schema: dict[str, Any]) -> str:
    """Return the default as JSON; empty for none and for what is empty itself."""
    default = schema.get("default", "")
    if isinstance(default, float) and default.is_integer():
        default = int(default)
    return "" if default in ("", [], {}) else json.dumps(default)


def curl_text(method: str, path: str, operation: dict[str, Any]) -> str:
    """Return a command line that can be tried."""
    name = operation["operationId"]
    if operation.get("x-websocket"):
        return "serai console web1"
    for placeholder, sample in SAMPLES.items():
        path = path.replace(placeholder, sample)
    url = f"'http://serai{path}{QUERIES.get(name, '')}'"
    words = ["curl", '--unix-socket "$SOCKET"', url]
    if method != "GET" and name != "push-file":
        words.insert(2, f"-X {method}")
    if name in OPTIONS:
        words.insert(-1, OPTIONS[name])
    example = _example(operation)
    if example:
        words.append(f"\\\n  -d '{example}'")
    return " ".join(words)


def _example(operation: dict[str, Any]) -> str:
    content = operation.get("requestBody", {}).get("content", {})
    example = content.get("application/json", {}).get("example")
    return json.dumps(example) if example else ""


def body_schema(operation: dict[str, Any]) -> str:
    """Return the name of the schema of the body; a media type for bytes; empty for no body."""
    for media, content in operation.get("requestBody", {}).get("content", {}).items():
        return type_text(content["schema"]) if "schema" in content else str(media)
    return ""


def replies(operation: dict[str, Any]) -> Iterator[tuple[str, str, list[str]]]:
    """Give (status, description, what it holds) of the good answers."""
    for status, reply in operation["responses"].items():
        if status < "4":
            yield (
                status,
                reply["description"],
                [
                    type_text(content["schema"]) if "schema" in content else media
                    for media, content in reply.get("content", {}).items()
                ],
            )


def problems(operation: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Give (status, codes) of the problems of an operation's own."""
    for status, reply in operation["responses"].items():
        if "4" <= status < "6":
            yield status, reply["x-problem-codes"]


def render_markdown(document: Document) -> str:
    """Return ``docs/api.md``."""
    lines = [
        "# REST API",
        "",
        "Made from `docs/api/openapi.json`; the daemon serves the same as a page at `/docs`.",
        "",
        document["info"]["description"],
        "",
        "In the examples `SOCKET` is the daemon's socket, as `serai daemon status` tells it.",
    ]
    for tag in document["tags"]:
        lines += ["", f"## {tag['name'].capitalize()}"]
        for method, path, operation in operations(document):
            if tag["name"] in operation["tags"]:
                lines += _operation_lines(method, path, operation)
    lines += ["", "## Types"]
    for name, schema in document["components"]["schemas"].items():
        lines += _schema_lines(name, schema)
    lines += ["", "## Problem codes", "", "| code | status |", "|---|---|"]
    lines += [f"| `{each['code']}` | {each['status']} |" for each in document["x-problem-codes"]]
    return "\n".join(lines) + "\n"


def _operation_lines(method: str, path: str, operation: dict[str, Any]) -> list[str]:
    shown = "WebSocket" if operation.get("x-websocket") else method
    lines = [
        "",
        f"### {shown} {path}",
        "",
        f"{operation['summary']}. {operation['description']}".strip(),
    ]
    if operation["parameters"]:
        lines += ["", "| parameter | in | type | default | |", "|---|---|---|---|---|"]
        lines += [_parameter_line(each) for each in operation["parameters"]]
    body = body_schema(operation)
    if body:
        lines += ["", f"Body: {_linked(body)}"]
    lines += ["", "| answer | | |", "|---|---|---|"]
    for status, about, kinds in replies(operation):
        lines.append(f"| {status} | {', '.join(_linked(kind) for kind in kinds)} | {about} |")
    for status, codes in problems(operation):
        lines.append(f"| {status} | {', '.join(f'`{code}`' for code in codes)} | |")
    return [*lines, "", "```sh", curl_text(method, path, operation), "```"]


def _parameter_line(parameter: dict[str, Any]) -> str:
    schema = parameter["schema"]
    default = f"`{default_text(schema)}`" if default_text(schema) else ""
    where = parameter["in"] + (", required" if parameter.get("required") else "")
    name, about = parameter["name"], parameter["description"]
    return f"| `{name}` | {where} | {_linked(type_text(schema))} | {default} | {about} |"


def _linked(kind: str) -> str:
    """Link the name of a schema, which is the last word and begins with a capital."""
    first, _, last = kind.rpartition(" ")
    return f"{first} [{last}](#{last.lower()})".strip() if last[:1].isupper() else kind


def _schema_lines(name: str, schema: dict[str, Any]) -> list[str]:
    lines = ["", f"### {name}"]
    if "description" in schema:
        lines += ["", schema["description"]]
    if "enum" in schema:
        return [*lines, "", ", ".join(f"`{each}`" for each in schema["enum"])]
    lines += ["", "| field | type | default |", "|---|---|---|"]
    for field, of in schema.get("properties", {}).items():
        required = field in schema.get("required", ())
        default = "required" if required else f"`{default_text(of) or json.dumps('')}`"
        lines.append(f"| `{field}` | {_linked(type_text(of))} | {default} |")
    return lines
