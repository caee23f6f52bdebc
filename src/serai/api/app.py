"""The application, made from the table of routes, and how it is served.

    request → uvicorn (server) → Litestar's routing → the row's decoding (calls) → handler → answer
                                     └── any error ──→ problems

Litestar finds the route, bounds the body and catches errors; decoding and answering are ours and
lean (docs/design/0020-api.md has the numbers). Who calls this: the daemon, and the tests.
"""

import asyncio
import logging
import re
import socket
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote

from litestar import Litestar, Request, WebSocket
from litestar.datastructures import State
from litestar.enums import ScopeType
from litestar.exceptions import HTTPException
from litestar.handlers import HTTPRouteHandler, WebsocketRouteHandler
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from serai.api.calls import Room, Route, SocketRoute
from serai.api.openapi import build_openapi
from serai.api.ports import EngineLike
from serai.api.problems import closing_of, error_of, no_route, on_error, refuse_socket
from serai.api.routes import ROUTES, SOCKETS
from serai.api.server import serve_asgi
from serai.settings import Settings

log = logging.getLogger(__name__)


def build_app(engine: EngineLike, *, settings: Settings) -> Litestar:
    """Return the application for ``engine``; starts nothing."""
    app = build_routes(settings.body_limit)
    give_room(app, engine, settings)
    return app


def give_room(app: Litestar, engine: EngineLike, settings: Settings) -> None:
    """Have an application that serves nobody at the moment answer for ``engine`` from now on."""
    app.state.room = Room(
        engine=engine, settings=settings, closing=asyncio.Event(), describe=build_openapi
    )


def build_routes(body_limit: int) -> Litestar:
    """Return the application without an engine, which takes 0.1 s; ``give_room`` is the rest."""
    return Litestar(
        [
            *(_build_handler(row) for row in ROUTES),
            *(_build_socket_handler(row) for row in SOCKETS),
        ],
        exception_handlers={HTTPException: on_error, Exception: on_error},
        request_max_body_size=body_limit,
        state=State(),
        openapi_config=None,
        logging_config=None,
        debug=False,
        pdb_on_exception=False,
    )


def _build_handler(row: Route) -> HTTPRouteHandler:
    async def endpoint(request: Request[Any, Any, Any]) -> ASGIApp:
        return await row.answer(request.app.state.room, request)

    limits: dict[str, Any] = {"request_max_body_size": None} if row.raw else {}
    handler = HTTPRouteHandler(
        _litestar_path(row.path),
        http_method=row.method,
        name=row.name,
        status_code=HTTPStatus.OK,
        **limits,
    )
    return handler(endpoint)


def _build_socket_handler(row: SocketRoute) -> WebsocketRouteHandler:
    async def endpoint(socket: WebSocket[Any, Any, Any]) -> None:
        try:
            await row.talk(socket.app.state.room, socket)
        except Exception as raised:
            error = error_of(raised, socket.scope["path"])
            if error is not raised:
                log.error("%s: bug %s", row.name, error.details.get("reference"), exc_info=raised)
            await socket.close(*closing_of(error))

    return WebsocketRouteHandler(_litestar_path(row.path), name=row.name)(endpoint)


def _litestar_path(path: str) -> str:
    """Return ``/v1/guests/{guest}`` as Litestar writes it: ``/v1/guests/{guest:str}``."""
    return re.sub(r"{(\w+)}", r"{\1:str}", path)


async def serve(app: Litestar, sock: socket.socket, stop: asyncio.Event) -> None:
    """Serve ``app`` on the listening socket ``sock`` until ``stop`` is set; closes ``sock``.

    Runs in the current loop and touches no signal. Then nothing new is taken, streams and waits
    are ended, and what is still busy after two seconds is cut off.
    """
    room: Room = app.state.room
    await serve_asgi(_front(app), sock, stop=stop, closing=room.closing)


def _front(app: Litestar) -> ASGIApp:
    """Mend two things before Litestar sees a request.

    A name with an encoded slash stays one name: ``web1%2Fstop`` is no way to stop ``web1``. A
    WebSocket that leads nowhere is refused with a problem document, not with an empty 403.
    """

    async def front(scope: Scope, receive: Receive, send: Send) -> None:
        if b"%2" in scope["raw_path"]:
            scope["path"] = _decode_path(scope["raw_path"])
        if scope["type"] == ScopeType.WEBSOCKET:
            await app(scope, receive, _refusing(scope["path"], send))
        else:
            await app(scope, receive, send)

    return front


def _decode_path(untrusted: bytes) -> str:
    parts = re.split(r"(%2[fF])", untrusted.decode("ascii"))
    return "".join(part if part in {"%2f", "%2F"} else unquote(part) for part in parts)


def _refusing(untrusted_path: str, send: Send) -> Send:
    accepted = False

    async def send_or_refuse(message: Message) -> None:
        nonlocal accepted
        accepted = accepted or message["type"] == "websocket.accept"
        if accepted or message["type"] != "websocket.close":
            await send(message)
            return
        for part in refuse_socket(no_route(untrusted_path)):
            await send(part)

    return send_or_refuse
