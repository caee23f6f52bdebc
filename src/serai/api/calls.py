"""What a route is and what its handler gets.

A row of the table in ``routes`` is made by ``route``: it joins the address and the types of a
request to a handler, which gets one ``Call`` in which everything is decoded already, and returns
an ASGI application that answers. The OpenAPI description is made from the same rows.
"""

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Generic, TypeVar

import msgspec
from litestar import Request, WebSocket
from litestar.types import ASGIApp, Method

from serai.api.answers import JSON
from serai.api.bodies import NoBody, NoQuery
from serai.api.decoding import body_decoder, query_decoder, read_body
from serai.api.ports import EngineLike
from serai.errors import Code
from serai.settings import Settings

Q = TypeVar("Q", bound=msgspec.Struct)
B = TypeVar("B", bound=msgspec.Struct)

HttpRequest = Request[Any, Any, Any]
Document = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What handlers may touch.

    ``closing`` is set when the daemon stops: end what would last. ``describe`` makes the OpenAPI
    document of all routes.
    """

    engine: EngineLike
    settings: Settings
    closing: asyncio.Event
    describe: Callable[[], Document]


@dataclass(frozen=True, slots=True)
class Call(Generic[Q, B]):
    """One request on its way, decoded.

    ``subject`` is the guest, image or job in its path, ``part`` what of it is meant, such as a
    snapshot ("": all of it).
    """

    room: Room
    request: HttpRequest
    subject: str
    part: str
    query: Q
    body: B


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One way in which a request is answered well, for the description.

    ``type`` is what the JSON holds; None for bytes of the kind ``media`` (empty: no body).
    """

    status: HTTPStatus = HTTPStatus.OK
    about: str
    type: Any = None
    media: str = JSON
    headers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One row of the table. ``raw`` is the media type of a body that is streamed, not decoded."""

    method: Method
    path: str
    name: str
    tag: str
    summary: str
    description: str
    query: type[msgspec.Struct]
    body: type[msgspec.Struct]
    raw: str
    headers: tuple[str, ...]
    replies: tuple[Reply, ...]
    problems: tuple[Code, ...]
    answer: Callable[[Room, HttpRequest], Awaitable[ASGIApp]]


@dataclass(frozen=True, slots=True, kw_only=True)
class SocketRoute:
    """One row of the table of WebSockets."""

    path: str
    name: str
    tag: str
    summary: str
    description: str
    problems: tuple[Code, ...]
    talk: Callable[[Room, WebSocket[Any, Any, Any]], Awaitable[None]]


def route(
    method: Method,
    path: str,
    handle: Callable[[Call[Q, B]], Awaitable[ASGIApp]],
    *,
    replies: tuple[Reply, ...],
    query: type[Q] = NoQuery,  # type: ignore[assignment]  # python/mypy#3737
    body: type[B] = NoBody,  # type: ignore[assignment]  # python/mypy#3737
    raw: str = "",
    headers: tuple[str, ...] = (),
    problems: tuple[Code, ...] = (),
    name: str = "",
    about: str = "",
) -> Route:
    """Return a row. Its name and description come from the handler unless they are given."""
    summary, description = split_docs(about or inspect.getdoc(handle) or "")
    return Route(
        method=method,
        path=path,
        name=name or handle.__name__.replace("_", "-"),
        tag=tag_of(path),
        summary=summary,
        description=description,
        query=query,
        body=body,
        raw=raw,
        headers=headers,
        replies=replies,
        problems=problems,
        answer=_build_answer(handle, query, body, is_raw=bool(raw)),
    )


def _build_answer(
    handle: Callable[[Call[Q, B]], Awaitable[ASGIApp]],
    query: type[Q],
    body: type[B],
    *,
    is_raw: bool,
) -> Callable[[Room, HttpRequest], Awaitable[ASGIApp]]:
    decode_query = query_decoder(query)
    decode_body = body_decoder(body)

    async def answer(room: Room, request: HttpRequest) -> ASGIApp:
        scope = request.scope
        untrusted_body = b"" if is_raw else await read_body(request)
        subject, part, *_ = (*scope["path_params"].values(), "", "")
        parameters = decode_query(scope["query_string"])
        call = Call(room, request, subject, part, parameters, decode_body(untrusted_body))
        return await handle(call)

    return answer


def split_docs(text: str) -> tuple[str, str]:
    """Split a docstring into its first line, without the full stop, and the rest."""
    summary, _, rest = text.partition("\n")
    return summary.strip().removesuffix("."), " ".join(rest.split())


def tag_of(path: str) -> str:
    """Return the group of a path: ``guests`` for ``/v1/guests/{guest}``, ``snapshots`` for its."""
    parts = path.removeprefix("/v1/").split("/")
    if not path.startswith("/v1/") or "." in path:
        return "description"
    return parts[2] if parts[2:3] in (["snapshots"], ["schedules"]) else parts[0]


def socket_route(
    path: str,
    talk: Callable[[Room, WebSocket[Any, Any, Any]], Awaitable[None]],
    *,
    problems: tuple[Code, ...] = (),
) -> SocketRoute:
    """Return a row of the table of WebSockets. Its name and description come from ``talk``."""
    summary, description = split_docs(inspect.getdoc(talk) or "")
    return SocketRoute(
        path=path,
        name=talk.__name__.replace("_", "-"),
        tag=tag_of(path),
        summary=summary,
        description=description,
        problems=problems,
        talk=talk,
    )
