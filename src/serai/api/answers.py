"""What goes back over the wire: the two shapes of an answer, both plain ASGI applications.

``Answer`` is whole and small, ``Stream`` in ``streams`` comes in pieces. Litestar's own response
classes are not used on the way out: building one costs more than the rest of a small request
(docs/design/0020-api.md).
"""

from collections.abc import Mapping
from http import HTTPStatus

import msgspec
from litestar.types import Receive, Scope, Send

JSON = "application/json"
PROBLEM_JSON = "application/problem+json"
TEXT = "text/plain; charset=utf-8"
HTML = "text/html; charset=utf-8"
SSE = "text/event-stream"
BYTES = "application/octet-stream"
TAR = "application/x-tar"
PNG = "image/png"

_encode = msgspec.json.Encoder().encode
_JSON_TYPE = (b"content-type", JSON.encode())


class Answer:
    """A whole answer: status, headers and body."""

    __slots__ = ("body", "headers", "status")

    def __init__(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        await send({"type": "http.response.start", "status": self.status, "headers": self.headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": False})


def answer_json(
    value: object, *, status: int = HTTPStatus.OK, headers: Mapping[str, str] | None = None
) -> Answer:
    """Answer with ``value`` as JSON."""
    body = _encode(value)
    lines = [_JSON_TYPE, (b"content-length", b"%d" % len(body))]
    for name, text in (headers or {}).items():
        lines.append((name.encode("ascii"), text.encode("latin-1")))
    return Answer(status, lines, body)


def answer_bytes(body: bytes, media: str, *, headers: Mapping[str, str] | None = None) -> Answer:
    """Answer with ``body`` as it is."""
    lines = [(b"content-type", media.encode("ascii")), (b"content-length", b"%d" % len(body))]
    for name, text in (headers or {}).items():
        lines.append((name.encode("ascii"), text.encode("latin-1")))
    return Answer(HTTPStatus.OK, lines, body)


def answer_nothing(
    status: int = HTTPStatus.NO_CONTENT, *, headers: Mapping[str, str] | None = None
) -> Answer:
    """Answer without a body."""
    lines = [
        (name.encode("ascii"), text.encode("latin-1")) for name, text in (headers or {}).items()
    ]
    return Answer(status, lines, b"")
