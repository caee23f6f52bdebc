"""What lasts: answers in pieces, bodies in pieces, and work that ends when its client goes away.

Back-pressure holds in both directions without buffers of ours: ``send`` waits while the client
does not read (uvicorn's transport has 64 KiB), and a body is read from the connection only as fast
as whoever takes its chunks.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import aclosing
from http import HTTPStatus
from typing import Any, TypeVar

from litestar.types import Receive, Scope, Send

from serai.api.calls import B, Call, HttpRequest, Q, Room
from serai.errors import Code, Interrupted, Invalid, SeraiError

log = logging.getLogger(__name__)

T = TypeVar("T")

CHUNK_TIMEOUT = 600.0
HEARTBEAT = 15.0


async def race(*works: Coroutine[Any, Any, T]) -> T:
    """Run all ``works`` until the first one ends; return its result or raise its error.

    The others are cancelled, and are over when this returns. Of several that ended at once, the
    first named counts.
    """
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_settle(work)) for work in works]
        try:
            ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
    first = next(task for task in tasks if task in ended)
    if first.cancelled():
        raise Interrupted(Code.JOB_INTERRUPTED, "the work was broken off by somebody else")
    outcome = first.result()
    if isinstance(outcome, _Failure):
        raise outcome.error
    return outcome


class _Failure:
    """An error kept as a value, so that a task group does not wrap it."""

    def __init__(self, error: Exception) -> None:
        self.error = error


async def _settle(work: Coroutine[Any, Any, T]) -> T | _Failure:
    try:
        return await work
    except Exception as error:
        return _Failure(error)


async def wait_gone(receive: Receive) -> None:
    """Return when the client has gone away (or closed its side of the connection)."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _raise_gone(receive: Receive) -> None:
    await wait_gone(receive)
    raise Interrupted(Code.TIMEOUT, "the client went away")


async def _raise_closing(closing: asyncio.Event) -> None:
    await closing.wait()
    raise Interrupted(
        Code.DAEMON_STOPPING,
        "the daemon is stopping; the outcome is not known",
        hint="Look again when it is back.",
    )


async def attended(room: Room, request: HttpRequest, work: Coroutine[Any, Any, T]) -> T:
    """Do ``work`` while the client waits for it: it is cancelled when the client goes away.

    Raises Interrupted (``daemon-stopping``) when the daemon stops before it is done.
    """
    gone, closing = _raise_gone(request.receive), _raise_closing(room.closing)
    return await race(work, gone, closing)  # type: ignore[arg-type]  # these two only raise


async def until_closing(room: Room, work: Coroutine[Any, Any, T]) -> T:
    """Do ``work``; raise Interrupted (``daemon-stopping``) when the daemon stops before it is done.

    For work that reads the request's body, and so sees by itself that the client goes away.
    """
    return await race(work, _raise_closing(room.closing))  # type: ignore[arg-type]  # only raises


async def read_chunks(request: HttpRequest) -> AsyncIterator[bytes]:
    """Give a request's body in the pieces in which it arrives, without any limit on its length.

    Raises Invalid (``request-too-slow``) after ten minutes without a byte, and Interrupted when
    the client goes away before the end.
    """
    more = True
    while more:
        try:
            async with asyncio.timeout(CHUNK_TIMEOUT):
                message = await request.receive()
        except TimeoutError as error:
            raise Invalid(Code.REQUEST_TOO_SLOW, "the body stopped arriving") from error
        if message["type"] != "http.request":
            raise Interrupted(Code.BODY_INVALID, "the client went away within its body")
        more = message.get("more_body", False)
        if untrusted := message.get("body", b""):
            yield untrusted


class Stream:
    """An answer in pieces.

    ``chunks`` is closed in any case. If it fails under way, the connection is cut before the end
    of the answer, so that no client takes a part for the whole. With ``room`` the stream has no
    end of its own: it ends well when the daemon stops. ``heartbeat`` is sent every 15 s.
    """

    def __init__(
        self,
        media: str,
        chunks: AsyncGenerator[bytes, None],
        *,
        first: bytes = b"",
        headers: tuple[tuple[bytes, bytes], ...] = (),
        room: Room | None = None,
        heartbeat: bytes = b"",
    ) -> None:
        self._headers = [(b"content-type", media.encode("ascii")), *headers]
        self._first = first
        self._chunks = chunks
        self._room = room
        self._heartbeat = heartbeat

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        await send(
            {"type": "http.response.start", "status": HTTPStatus.OK, "headers": self._headers}
        )
        works = [self._pump(send), wait_gone(receive)]
        if self._heartbeat:
            works.append(self._beat(send))
        if self._room:
            works.append(_wait_closing(self._room.closing))
        try:
            await race(*works)
        except SeraiError as error:
            log.warning("%r was cut: %s: %s", scope["path"], error.code, error.message)
            return
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _pump(self, send: Send) -> None:
        async with aclosing(self._chunks) as chunks:
            if self._first:
                await _send_chunk(send, self._first)
            async for chunk in chunks:
                await _send_chunk(send, chunk)
                await asyncio.sleep(0)  # ``send`` to a client that is gone returns at once

    async def _beat(self, send: Send) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT)
            await _send_chunk(send, self._heartbeat)


async def _wait_closing(closing: asyncio.Event) -> None:
    await closing.wait()


async def _send_chunk(send: Send, chunk: bytes) -> None:
    await send({"type": "http.response.body", "body": chunk, "more_body": True})


async def start_stream(
    call: Call[Q, B],
    media: str,
    chunks: AsyncIterator[bytes],
    *,
    headers: tuple[tuple[bytes, bytes], ...] = (),
) -> Stream:
    """Return a stream whose first piece is there already: what fails at once is still a problem."""
    source = as_generator(chunks)
    first = await attended(call.room, call.request, _next_or_nothing(source))
    return Stream(media, source, first=first, headers=headers)


async def _next_or_nothing(source: AsyncGenerator[bytes, None]) -> bytes:
    return await anext(source, b"")


async def as_generator(items: AsyncIterator[T]) -> AsyncGenerator[T, None]:
    """Make an iterator closable: what is closed here is closed there."""
    try:
        async for item in items:
            yield item
    finally:
        if isinstance(items, AsyncGenerator):
            await items.aclose()
