"""The wire to the agent inside a guest: one question, one typed answer, nothing believed.

Reference: QEMU's Guest Agent Protocol Reference (docs/interop/qemu-ga-ref). One call at a time;
each has a time limit and a limit on what may come back, and only what the answer's type names is
built from it. Each connection begins with ``guest-sync-delimited`` and a random id: what an earlier call
left is before its 0xFF and is skipped unread. After a call that went wrong the connection is dropped,
and the next one sends a 0xFF ahead, since the agent may have read half of something. That one it
answers with an error, more that a fork does for the first time; so a wire's first connection does
without, and is made anew where that was not enough.

The connection is made, and the sync asked for, before there is an agent (``prepare``): QEMU keeps
both until the agent opens its port. An agent that finds nobody connected sleeps 100 ms between two
looks (qemu-ga's channel_event_cb).
"""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from enum import StrEnum
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from serai.errors import Busy, Code, HostFailure, Interrupted
from serai.host.sockets import connect_unix

T = TypeVar("T")

CALL_TIMEOUT = 10.0
REPLY_LIMIT = 1 << 20
CHUNK = 256 << 10
OPENING_LIMIT = 2.0
"""QEMU tells of a port at most once a second: so long an open one may look closed."""
PREPARE_LIMIT = 5.0

MARK = b"\xff"
HALF_READ_LIMIT = 2.0
SKIP_LIMIT = 64 << 20
MARKS_LIMIT = 64
SYNC_LINE_LIMIT = 4096


class Port(StrEnum):
    """Whether a program in the guest has the agent's port open, as QEMU says."""

    UNKNOWN = "unknown"
    CLOSED = "closed"
    OPEN = "open"


class Refused(HostFailure):
    """The agent answered with an error of its own, in the guest's words."""


class _Error(msgspec.Struct):
    desc: str = ""


class Reply(msgspec.Struct, Generic[T]):
    """An answer of the agent's: one of the two."""

    result: T | msgspec.UnsetType = msgspec.field(default=msgspec.UNSET, name="return")
    error: _Error | msgspec.UnsetType = msgspec.UNSET


Decoder = msgspec.json.Decoder

NUMBER = Decoder(Reply[int])


class AgentWire:
    """What is connected to the agent's listening socket at ``path``, when something is."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = asyncio.Lock()
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._buffer = bytearray()
        self._sync: int | None = None
        self._may_be_half_read = False
        self._port = Port.UNKNOWN
        self._opened = asyncio.Event()
        self._opened.set()

    async def call(
        self,
        command: str,
        answer: "Decoder[Reply[T]]",
        arguments: Mapping[str, object] | None = None,
        *,
        timeout: float = CALL_TIMEOUT,
        limit: int = REPLY_LIMIT,
        then: str = "",
    ) -> T:
        """Call a command of the agent and return what it returned.

        ``then`` is for a command that is answered only when it fails: one that is always answered,
        sent right after it. Raises Busy ``agent-unavailable`` (nothing was sent), Interrupted ``agent-unavailable`` or
        ``agent-timeout`` (outcome unknown), HostFailure ``agent-protocol``, or Refused.
        """
        async with self._turn(command, timeout):
            await self._get_in_step()
            await self._send(command, arguments)
            if then:
                await self._send(then)
            reply = _decode(answer, await self._line(limit))
            if then:  # another answer may come
                self.disconnect()
        return _result(command, reply)

    async def meet(self, *, timeout: float) -> None:
        """Return when an agent has answered on the connection that there is, be it only to the sync.

        Raises as ``call`` does, but Refused.
        """
        async with self._turn("guest-sync-delimited", timeout):
            await self._get_in_step()

    @asynccontextmanager
    async def _turn(self, command: str, timeout: float) -> AsyncIterator[None]:
        """Ask something alone. What goes wrong ends the connection, and is told as ``call`` says."""
        await self._wait_open(timeout)
        try:
            async with asyncio.timeout(timeout), self._lock:
                in_step = False
                try:
                    yield
                    in_step = not self._buffer  # else another answer is there
                finally:
                    if not in_step:
                        self.disconnect()
        except TimeoutError as error:
            raise Interrupted(
                Code.AGENT_TIMEOUT,
                f"the guest's agent did not answer {command} within {timeout:g} s",
                hint="The guest may be busy, paused or hung.",
            ) from error
        except (OSError, EOFError) as error:
            raise Interrupted(
                Code.AGENT_UNAVAILABLE,
                f"the guest's agent went away before it answered {command}",
                hint="The guest may have been reset or shut down.",
            ) from error

    async def _wait_open(self, timeout: float) -> None:
        if self._opened.is_set():
            return
        try:
            async with asyncio.timeout(min(timeout, OPENING_LIMIT)):
                await self._opened.wait()
        except TimeoutError as error:
            raise Busy(
                Code.AGENT_UNAVAILABLE,
                "no agent runs in the guest",
                hint="It answers once the guest has booted and its agent runs.",
            ) from error

    # -- being connected ---------------------------------------------------------------------------

    async def prepare(self) -> None:
        """Connect ahead of the first call; never raises. Whoever calls needs not wait for it."""
        try:
            async with asyncio.timeout(PREPARE_LIMIT), self._lock:
                if self._writer is None:
                    await self._connect()
        except (TimeoutError, OSError):
            self.disconnect()

    def is_prepared(self) -> bool:
        """Tell whether it is connected and no agent has read anything yet."""
        return self._writer is not None and self._port is Port.CLOSED

    @asynccontextmanager
    async def quiet(self, timeout: float) -> AsyncIterator[None]:
        """Let no call be under way, and none begin, as long as the block lasts.

        Raises Busy (``agent-timeout``) when one does not end within ``timeout`` seconds.
        """
        try:
            async with asyncio.timeout(timeout):
                await self._lock.acquire()
        except TimeoutError as error:
            raise Busy(
                Code.AGENT_TIMEOUT,
                f"a call of the guest's agent has not ended within {timeout:g} s",
                hint="The guest may be busy, paused or hung.",
            ) from error
        try:
            yield
        finally:
            self._lock.release()

    def take_over(self, other: "AgentWire") -> None:
        """Go on with the connection of ``other``, which has none afterwards.

        For the same agent behind another QEMU, within ``quiet``: whoever waits for his turn gets it
        there.
        """
        self.disconnect()
        self._path, self._sync = other._path, other._sync
        self._may_be_half_read = other._may_be_half_read
        self._reader, other._reader = other._reader, None
        self._writer, other._writer = other._writer, None
        self._buffer, other._buffer = other._buffer, bytearray()
        self.set_port(other.port)

    def set_port(self, port: Port) -> None:
        """Take note of what QEMU says of the port."""
        self._port = port
        if port is Port.CLOSED:
            self._opened.clear()
        else:
            self._opened.set()

    @property
    def port(self) -> Port:
        """What QEMU said last of the port."""
        return self._port

    def disconnect(self) -> None:
        """Drop the connection, and what was not sent; a call under way fails."""
        writer, self._writer, self._reader = self._writer, None, None
        self._buffer.clear()
        if writer is not None:
            self._may_be_half_read = True
            writer.transport.abort()

    def expect_half_read(self) -> None:
        """Know that somebody has talked to the agent before, and may have broken off anywhere."""
        self._may_be_half_read = True

    async def _connect(self) -> None:
        self._reader, self._writer = await connect_unix(self._path, limit=CHUNK)
        self._buffer.clear()
        self._sync = secrets.randbelow(1 << 31)
        if self._may_be_half_read:
            self._writer.write(MARK)  # ends that
        await self._send("guest-sync-delimited", {"id": self._sync})

    async def _get_in_step(self) -> None:
        """Connect if need be; skip all that is not an answer to this connection."""
        if self._writer is None:
            await self._connect()
        if not self._may_be_half_read:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HALF_READ_LIMIT):
                    await self._find_sync()
                return
            self.disconnect()
            await self._connect()
        await self._find_sync()
        self._may_be_half_read = False

    async def _find_sync(self) -> None:
        for _ in range(MARKS_LIMIT):
            if self._sync is None:
                return
            await self._skip_to_mark()
            untrusted = (await self._line(SYNC_LINE_LIMIT)).rpartition(MARK)[2]
            with contextlib.suppress(msgspec.MsgspecError, RecursionError):
                if NUMBER.decode(untrusted).result == self._sync:
                    self._sync = None
        if self._sync is not None:
            raise _protocol("it answers to something else all the time")

    async def _skip_to_mark(self) -> None:
        skipped = 0
        while (at := self._buffer.find(MARK)) < 0:
            skipped += len(self._buffer)
            if skipped > SKIP_LIMIT:
                raise _protocol("it never stops talking")
            self._buffer.clear()
            await self._fill()
        del self._buffer[: at + 1]

    # -- bytes -------------------------------------------------------------------------------------

    async def _send(self, command: str, arguments: Mapping[str, object] | None = None) -> None:
        message: dict[str, object] = {"execute": command}
        if arguments:
            message["arguments"] = arguments
        if self._writer is None:
            raise EOFError
        self._writer.write(msgspec.json.encode(message) + b"\n")
        await self._writer.drain()

    async def _line(self, limit: int) -> bytes:
        """Read one line of at most ``limit`` bytes."""
        searched = 0
        while (end := self._buffer.find(b"\n", searched)) < 0:
            searched = len(self._buffer)
            if searched > limit:
                raise _protocol(f"it sent more than {limit} bytes for one answer")
            await self._fill()
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line

    async def _fill(self) -> None:
        if self._reader is None:
            raise EOFError
        chunk = await self._reader.read(CHUNK)
        if not chunk or self._reader is None:
            raise EOFError
        self._buffer += chunk


def _decode(answer: "Decoder[Reply[T]]", untrusted: bytes) -> Reply[T]:
    try:
        return answer.decode(untrusted)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise _protocol(str(error)[:200]) from error


def _result(command: str, reply: Reply[T]) -> T:
    if reply.error is not msgspec.UNSET:
        words = reply.error.desc[:400]
        raise Refused(Code.AGENT_PROTOCOL, words or f"the agent refused {command}")
    if reply.result is msgspec.UNSET:
        raise _protocol("its answer has neither a result nor an error")
    return reply.result


def _protocol(what: str) -> HostFailure:
    return HostFailure(Code.AGENT_PROTOCOL, f"the guest's agent can't be understood: {what}")
