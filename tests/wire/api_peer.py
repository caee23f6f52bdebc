"""The API served for a test, a client for it, and a judge that knows the OpenAPI document.

``served`` gives an ``Inn``: the real application on real uvicorn on a unix socket, over an engine
in memory. Every answer that ``Inn.ask`` gets is checked against the document: the status must be
one that the route names, and the body must be of the schema named there.
"""

import asyncio
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import msgspec
from fake_engine import FakeEngine
from jsonschema import Draft202012Validator
from litestar import Litestar

from serai.api.app import build_routes, give_room, serve
from serai.api.openapi import build_openapi
from serai.settings import Settings, read_settings

PROBLEM = "application/problem+json"


@cache
def openapi() -> dict[str, Any]:
    """Return the document; made once."""
    return build_openapi()


class Judge:
    """Compares answers with the OpenAPI document."""

    def __init__(self) -> None:
        self.document = openapi()
        self._paths = [
            (re.compile(re.sub(r"{\w+}", "[^/]+", path)), operations)
            for path, operations in self.document["paths"].items()
        ]

    def operation(self, method: str, path: str) -> dict[str, Any] | None:
        """Return the operation that a request is for; the most literal path wins."""
        found = [ops for shape, ops in self._paths if shape.fullmatch(path)]
        return next((ops[method.lower()] for ops in reversed(found) if method.lower() in ops), None)

    def check(self, method: str, path: str, answer: httpx.Response) -> None:
        """Fail if the answer is not one that the document has for this request."""
        media = answer.headers.get("content-type", "")
        if answer.status_code >= 400:
            self._check_problem(answer, media)
        operation = self.operation(method, path)
        if operation is None:
            assert answer.status_code in (404, 405), "only an unknown route may be undocumented"
            return
        status = str(answer.status_code)
        reply = operation["responses"].get(status, {})
        if answer.status_code >= 400:
            code, common = (
                answer.json()["code"],
                self.document["components"]["responses"]["Problem"],
            )
            known = (*reply.get("x-problem-codes", ()), *common["x-problem-codes"])
            assert code in known, f"{code} is not documented at {status}"
            return
        assert reply, f"{status} is not documented"
        for name in reply.get("headers", {}):
            assert name in answer.headers
        if "content" in reply:
            self._check_content(reply["content"], media, answer)
        else:
            assert answer.content == b""

    def _check_content(self, contents: dict[str, Any], media: str, answer: httpx.Response) -> None:
        assert media in contents, f"{media} is none of {list(contents)}"
        if media.endswith("json") and "schema" in contents[media]:
            self.validate(answer.json(), contents[media]["schema"])

    def _check_problem(self, answer: httpx.Response, media: str) -> None:
        assert media == PROBLEM, answer.text
        body = answer.json()
        self.validate(body, {"$ref": "#/components/schemas/ProblemDocument"})
        assert body["status"] == answer.status_code
        assert body["message"] == body["detail"]
        assert "Traceback" not in answer.text

    def validate(self, value: object, schema: dict[str, Any]) -> None:
        """Fail if ``value`` is not of ``schema``."""
        whole = {**schema, "components": self.document["components"]}
        errors = [error.message for error in Draft202012Validator(whole).iter_errors(value)]
        assert not errors, errors


@dataclass
class Inn:
    """What a test gets."""

    engine: FakeEngine
    path: Path
    settings: Settings
    judge: Judge
    http: httpx.AsyncClient
    stop: asyncio.Event
    done: asyncio.Task[None]

    async def ask(
        self,
        method: str,
        target: str,
        body: object = None,
        *,
        content: Any = None,
        headers: dict[str, str] | None = None,
    ) -> httpx.Response:
        """Send a request and return the answer, checked."""
        if body is not None:
            content = msgspec.json.encode(body)
        request = self.http.build_request(method, target, content=content, headers=headers)
        answer = await self.http.send(request)
        path = request.url.raw_path.decode().partition("?")[0]
        self.judge.check(method, path, answer)
        return answer

    async def refused(self, method: str, target: str, body: object = None, **more: Any) -> str:
        """Send a request that must be refused, and return ``STATUS code``."""
        answer = await self.ask(method, target, body, **more)
        assert answer.status_code >= 400, answer.text
        return f"{answer.status_code} {answer.json()['code']}"

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open a connection of one's own, for what no HTTP library would send."""
        return await asyncio.open_unix_connection(self.path, limit=1 << 20)

    async def send_raw(self, *pieces: bytes) -> tuple[int, dict[str, str], bytes]:
        """Send bytes and return status, headers and body of one answer (with a length)."""
        reader, writer = await self.connect()
        try:
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
            return await read_answer(reader)
        finally:
            writer.close()


def flood(path: Path, head: bytes, piece: bytes, limit: int) -> tuple[int, bytes]:
    """Send ``head`` and then ``piece`` over and over; return bytes sent and what was answered.

    Blocking, so that what was answered before the connection broke can be read: call in a thread.
    """
    sent = 0
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(20)
        client.connect(str(path))
        client.sendall(head)
        try:
            while sent < limit:
                client.sendall(piece)
                sent += len(piece)
        except (BrokenPipeError, ConnectionResetError):
            pass
        return sent, client.recv(1 << 16)


async def read_answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    """Read one answer with a Content-Length."""
    status, headers = await read_head(reader)
    return status, headers, await reader.readexactly(int(headers.get("content-length", "0")))


async def read_head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    """Read the status and the headers of an answer."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    pairs = (line.split(": ", 1) for line in head[1:] if line)
    return int(head[0].split()[1]), {name.lower(): value for name, value in pairs}


@asynccontextmanager
async def served(folder: Path, **changes: str) -> AsyncIterator[Inn]:
    """Serve the API over a new engine in memory; ``changes`` are settings."""
    environ = {f"SERAI_{name.upper()}": value for name, value in changes.items()}
    settings = read_settings(environ, folder / "none.toml")
    engine = FakeEngine(folder)
    path, stop = folder / "api.sock", asyncio.Event()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(512)
    listener.setblocking(False)
    app = _take_app(settings.body_limit)
    give_room(app, engine, settings)
    transport = httpx.AsyncHTTPTransport(
        uds=str(path), verify=False
    )  # no TLS: its setup takes 25 ms
    client = httpx.AsyncClient(transport=transport, base_url="http://serai", timeout=30)
    async with asyncio.TaskGroup() as group, client:
        done = group.create_task(serve(app, listener, stop))
        try:
            yield Inn(engine, path, settings, Judge(), client, stop, done)
        finally:
            stop.set()
    _IDLE.append((settings.body_limit, app))


_IDLE: list[tuple[int, Litestar]] = []
"""Applications that serve nobody, with their body limit: to build one takes longer than most tests."""


def _take_app(body_limit: int) -> Litestar:
    for place, (limit, app) in enumerate(_IDLE):
        if limit == body_limit:
            del _IDLE[place]
            return app
    return build_routes(body_limit)
