"""What a request of the API is, as a value, and how one is made: pure.

A ``Call`` says what to send and what comes back. The calls themselves are in the ``*_calls`` modules, one
for each thing that they are about; who sends them is ``blocking`` or ``async_connection``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar
from urllib.parse import quote, urlencode

import msgspec

from serai.errors import Bug, Code, Invalid
from serai.model.job import Job

T = TypeVar("T")

Query = Mapping[str, str | Sequence[str]]

JSON = "application/json"
BYTES = "application/octet-stream"
PAGE = 10_000
"""How many guests or images are asked for at a time: the most that the API gives."""
SLACK = 30.0
"""How much longer than the server's own limit a client waits for an answer, in seconds."""


class Page(msgspec.Struct, Generic[T], frozen=True):
    """One page of a list; ``next`` is empty on the last."""

    items: list[T]
    next: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call(Generic[T]):
    """One request. ``kind`` is the type of the answer's JSON, ``timeout`` seconds for an answer."""

    method: str
    path: str
    kind: Any = None
    query: Query = field(default_factory=dict)
    body: bytes | None = None
    content_type: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)
    timeout: float | None = 60.0

    @property
    def target(self) -> str:
        """Return path and query as they stand in the request line."""
        return f"{self.path}?{urlencode(self.query, doseq=True)}" if self.query else self.path

    def decode(self, untrusted_body: bytes) -> T:
        """Return the answer as a value; the bytes themselves if the call names no type.

        Raises Bug when the answer is none that this version understands.
        """
        if self.kind is None:
            return untrusted_body  # type: ignore[return-value]
        try:
            value: T = msgspec.json.decode(untrusted_body, type=self.kind)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Bug(
                Code.BUG,
                f"the daemon's answer is not understood: {error}",
                hint="Are the daemon and this program of one version? serai daemon status",
                details={"request": f"{self.method} {self.path}"},
            ) from error
        return value

    def with_query(self, **more: str) -> "Call[T]":
        """Return the call with more in its query."""
        return replace(self, query={**self.query, **more})


def get(path: str, kind: Any, **query: str | Sequence[str]) -> Call[Any]:
    """Ask for what is at ``path``."""
    return Call(method="GET", path=path, kind=kind, query=query)


def page(path: str, kind: Any, cursor: str, **query: Sequence[str]) -> Call[Any]:
    """Ask for a part of a list."""
    wanted: dict[str, str | Sequence[str]] = {"limit": str(PAGE), "cursor": cursor, **query}
    return get(path, kind, **{name: value for name, value in wanted.items() if value})


def post(path: str, kind: Any, value: object = None, timeout: float | None = 60.0) -> Call[Any]:
    """Send a value, or nothing, to ``path``."""
    body = msgspec.json.encode(value) if value is not None else b""
    return Call(method="POST", path=path, kind=kind, body=body, timeout=timeout)


def patch(path: str, change: msgspec.Struct) -> Call[Job]:
    """Send a change to what is at ``path``."""
    return Call(method="PATCH", path=path, kind=Job, body=msgspec.json.encode(change))


def guest_path(name: str) -> str:
    """Return where a guest is."""
    return f"/v1/guests/{segment(name)}"


def segment(name: str) -> str:
    """Return a name as one segment of a path; one that would be none names another thing."""
    if name in ("", ".", ".."):
        raise Invalid(Code.NAME_INVALID, f"{name!r} is no name")
    return quote(name, safe="")
