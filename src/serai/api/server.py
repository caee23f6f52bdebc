"""uvicorn, held to our limits, in the daemon's own event loop.

What is ours here: no signal handlers, no wake-ups while nobody asks anything (uvicorn's own loop
wakes ten times a second), a bounded end, and limits that uvicorn does not have with httptools: on
the length of a request's head, on the time it may take, on the number of connections.
"""

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import uvicorn
from litestar.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serai.api.problems import refusal
from serai.errors import Busy, Code, HostFailure, Invalid
from serai.host.supervise import wait_until

HEAD_LIMIT = 32 << 10
HEAD_TIMEOUT = 10.0
IDLE_TIMEOUT = 600
LINGER_LIMIT = 16 << 20
LINGER_TIMEOUT = 2.0
TRY_LATER = "Try again later."
MAX_CONNECTIONS = 1024
STOP_TIMEOUT = 2.0
CANCEL_TIMEOUT = 1.0
MESSAGE_LIMIT = 1 << 20


class GuardedProtocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 connection with limits, and problem documents for what is no request.

    A client that is answered before it has sent its body may go on for two seconds or 16 MiB: what
    it sends is thrown away. Many clients read no answer before they have sent everything, and
    would see a broken pipe instead of the reason. After that the connection is closed.
    """

    _unseen = 0
    _in_head = False
    _in_body = False
    _linger_left = 0
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, if there are not too many."""
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            self._refuse(
                Busy(Code.QUEUE_FULL, f"{MAX_CONNECTIONS} connections are open", hint=TRY_LATER)
            )
            return
        self.timeout_keep_alive_task = self.loop.call_later(
            self.timeout_keep_alive, self.timeout_keep_alive_handler
        )

    def connection_lost(self, exc: Exception | None) -> None:
        """Let go of a connection."""
        self._unset_deadline()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what came.

        ``_unseen`` counts bytes that were neither the end of a head nor body: headers (or trailers,
        or framing) without end must not fill the memory.
        """
        self._unseen += len(data)
        super().data_received(data)
        if self._unseen > HEAD_LIMIT and not self.transport.is_closing():
            self._refuse(
                Invalid(Code.HEAD_TOO_LARGE, f"the request's head is over {HEAD_LIMIT >> 10} KiB")
            )
        elif self._in_head and self._deadline is None:
            self._deadline = self.loop.call_later(HEAD_TIMEOUT, self._on_slow_head)

    def on_message_begin(self) -> None:
        """Note that a head begins."""
        self._in_head = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Note that a head has ended."""
        self._in_head = False
        self._in_body = True
        self._unseen = 0
        self._unset_deadline()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take a piece of a body, or throw it away."""
        self._unseen = 0
        super().on_body(body)
        if self._linger_left:
            self._linger_left -= len(body)
            if self._linger_left <= 0:
                self.transport.close()

    def on_message_complete(self) -> None:
        """Note that a body has ended."""
        self._in_body = False
        self._linger_left = 0
        self._unset_deadline()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Note that a request is answered; if its body is still on the way, wait a little for it."""
        super().on_response_complete()
        if not self._in_body or not self.cycle.response_complete or self.transport.is_closing():
            return
        if _announced_length(self.headers) > LINGER_LIMIT:
            self.transport.close()
            return
        self._linger_left = LINGER_LIMIT
        self._deadline = self.loop.call_later(LINGER_TIMEOUT, self.transport.close)

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP request."""
        self._refuse(Invalid(Code.REQUEST_MALFORMED, msg))

    def _on_slow_head(self) -> None:
        if not self.transport.is_closing():
            self._refuse(
                Invalid(Code.REQUEST_TOO_SLOW, "the request's head did not arrive in time")
            )

    def _refuse(self, error: Busy | Invalid) -> None:
        """Answer and close; within or after an answer, only close."""
        if self.cycle is None or self._in_head or not self.cycle.response_started:
            self.transport.write(refusal(error))
        self.transport.close()

    def _unset_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def _announced_length(headers: list[tuple[bytes, bytes]]) -> int:
    return next((int(value) for name, value in headers if name == b"content-length"), 0)


class _Server(uvicorn.Server):
    """uvicorn's server, told by events of ours when to end."""

    def __init__(
        self, config: uvicorn.Config, *, stop: asyncio.Event, closing: asyncio.Event
    ) -> None:
        super().__init__(config)
        self._stop = stop
        self._closing = closing

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to the daemon."""
        yield

    async def main_loop(self) -> None:
        """Sleep until the daemon stops."""
        await self._stop.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take nothing new, let what is short end, cut the rest off after two seconds."""
        self._closing.set()
        for listener in (*self.servers, *(sockets or ())):
            listener.close()
        for connection in list(self.server_state.connections):
            if isinstance(connection, GuardedProtocol):  # WebSockets end by ``closing``
                connection.shutdown()
        state = self.server_state
        try:
            await wait_until(
                "requests and connections end",
                lambda: not state.tasks and not state.connections,
                timeout=STOP_TIMEOUT,
                every=0.002,
                slowest=0.05,
            )
        except HostFailure:
            await self._cut_off()

    async def _cut_off(self) -> None:
        tasks = set(self.server_state.tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=CANCEL_TIMEOUT)
        for connection in list(self.server_state.connections):
            connection.transport.abort()


async def serve_asgi(
    app: ASGIApp, sock: socket.socket, *, stop: asyncio.Event, closing: asyncio.Event
) -> None:
    """Serve ``app`` on the listening socket ``sock`` until ``stop``; closes ``sock``."""
    untyped_app: Any = app
    config = uvicorn.Config(
        untyped_app,
        http=GuardedProtocol,
        ws="websockets-sansio",
        ws_max_size=MESSAGE_LIMIT,
        ws_per_message_deflate=False,
        loop="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        timeout_keep_alive=IDLE_TIMEOUT,
    )
    await _Server(config, stop=stop, closing=closing).serve(sockets=[sock])
