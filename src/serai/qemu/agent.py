"""The QEMU guest agent: the one way into a guest, and whatever it says is untrusted.

Reference: QEMU's Guest Agent Protocol Reference (docs/interop/qemu-ga-ref). One call at a time; each
has a time limit and a limit on what may come back. After a call that went wrong the connection is
dropped, and the next one begins with ``guest-sync-delimited`` and a random id, which throws away
all that an earlier call may have left. An agent that lies, floods or is dead costs its caller an
error (``agent-protocol``, ``agent-timeout``, ``agent-unavailable``) and nobody else anything.
"""

import asyncio
import base64
import binascii
import contextlib
import secrets
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from serai.errors import Code, HostFailure, Interrupted, Invalid, NotFound, SeraiError
from serai.host.sockets import connect_unix
from serai.host.supervise import wait_until
from serai.model.talk import ExecRequest, ExecResult

CALL_TIMEOUT = 10.0
REPLY_LIMIT = 1 << 20
BULK_LIMIT = 48 << 20
"""guest-exec keeps at most 16 MiB of each stream, which is 44 MiB as base64 for both."""
CHUNK = 256 << 10
STDIN_INLINE = 256 << 10
ARGV_LIMIT = 1 << 20
FIRST_PAUSE, LONGEST_PAUSE = 0.002, 0.1
FOREVER = 10.0 * 365 * 86400

FROM_FILE = 'f=$1; shift; exec "$@" < "$f"'


class _Exec(msgspec.Struct):
    pid: int


class _ExecStatus(msgspec.Struct, rename="kebab"):
    exited: bool
    exitcode: int | None = None
    signal: int | None = None
    out_data: str = ""
    err_data: str = ""
    out_truncated: bool = False
    err_truncated: bool = False


class _Read(msgspec.Struct, rename="kebab"):
    count: int
    buf_b64: str
    eof: bool


class _Written(msgspec.Struct):
    count: int


class _Vcpu(msgspec.Struct, rename="kebab"):
    logical_id: int
    online: bool


class Refused(HostFailure):
    """The agent answered with an error of its own."""


class Agent:
    """The agent behind the listening socket at ``path``; connects when it is first needed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = asyncio.Lock()
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._rest = b""

    # -- the wire ----------------------------------------------------------------------------------

    async def call(
        self,
        command: str,
        arguments: Mapping[str, object] | None = None,
        *,
        timeout: float = CALL_TIMEOUT,
        limit: int = REPLY_LIMIT,
    ) -> Any:
        """Call a command of the agent and return what it returned, undecoded.

        Raises Interrupted ``agent-timeout`` or ``agent-unavailable`` (outcome unknown), HostFailure
        ``agent-protocol``, Refused with the agent's own words.
        """
        try:
            async with asyncio.timeout(timeout), self._lock:
                return await self._exchange(command, arguments, limit)
        except TimeoutError as error:
            raise Interrupted(
                Code.AGENT_TIMEOUT,
                f"the guest's agent did not answer {command} within {timeout:g} s",
                hint="The guest may be busy, paused or hung.",
            ) from error

    async def _exchange(
        self, command: str, arguments: Mapping[str, object] | None, limit: int
    ) -> Any:
        done = False
        try:
            await self._connect()
            await self._send(command, arguments)
            reply = self._decode(await self._line(limit))
            done = True
        except (OSError, EOFError) as error:
            raise Interrupted(
                Code.AGENT_UNAVAILABLE,
                "the guest's agent is not there",
                hint="It answers once the guest has booted and its agent runs.",
            ) from error
        finally:
            if not done:
                self.disconnect()
        return _result(command, reply)

    async def _connect(self) -> None:
        if self._streams is not None:
            return
        self._streams = await connect_unix(self._path, limit=CHUNK)
        self._rest = b""
        number = secrets.randbelow(1 << 31)
        self._writer.write(b"\xff")
        await self._send("guest-sync-delimited", {"id": number})
        skipped = 0
        while True:
            untrusted = await self._line(REPLY_LIMIT)
            skipped += len(untrusted)
            _, mark, last = untrusted.rpartition(b"\xff")
            if mark and self._decode(last).get("return") == number:
                return
            if skipped > REPLY_LIMIT:
                raise _protocol("it answered to something else all the time")

    @property
    def _writer(self) -> asyncio.StreamWriter:
        assert self._streams is not None
        return self._streams[1]

    async def _send(self, command: str, arguments: Mapping[str, object] | None) -> None:
        message: dict[str, object] = {"execute": command}
        if arguments:
            message["arguments"] = arguments
        self._writer.write(msgspec.json.encode(message) + b"\n")
        await self._writer.drain()

    async def _line(self, limit: int) -> bytes:
        """Read one line of at most ``limit`` bytes."""
        assert self._streams is not None
        pieces, size = [self._rest], len(self._rest)
        while b"\n" not in pieces[-1]:
            chunk = await self._streams[0].read(CHUNK)
            if not chunk:
                raise EOFError
            pieces.append(chunk)
            size += len(chunk)
            if size > limit:
                raise _protocol(f"it sent more than {limit} bytes in one line")
        line, _, self._rest = b"".join(pieces).partition(b"\n")
        return line

    def _decode(self, untrusted: bytes) -> dict[str, Any]:
        try:
            reply: dict[str, Any] = msgspec.json.decode(untrusted.strip(b"\xff"), type=dict)
        except (msgspec.DecodeError, RecursionError) as error:
            raise _protocol("it did not answer in JSON") from error
        return reply

    def disconnect(self) -> None:
        """Drop the connection; a call under way fails with ``agent-unavailable``."""
        streams, self._streams = self._streams, None
        if streams is not None:
            with contextlib.suppress(OSError):
                streams[1].close()

    # -- what it can do ----------------------------------------------------------------------------

    async def ping(self, *, timeout: float) -> None:
        """Find out whether it answers."""
        await self.call("guest-ping", timeout=timeout)

    async def shutdown(self, mode: str, *, timeout: float) -> None:
        """Tell the guest to power down; the agent does not answer this when it does it."""
        try:
            async with asyncio.timeout(timeout), self._lock:
                await self._connect()
                await self._send("guest-shutdown", {"mode": mode})
        except (TimeoutError, OSError, EOFError) as error:
            raise Interrupted(
                Code.AGENT_TIMEOUT, "the guest's agent could not be told to shut down"
            ) from error
        finally:
            self.disconnect()

    async def execute(self, request: ExecRequest) -> ExecResult:
        """Run a command to its end and return what became of it.

        Input above 256 KiB goes through a temporary file in the guest. Raises Invalid
        (``exec-failed``) when the guest can't run it, Interrupted (``agent-timeout``) when it has
        not ended after ``request.timeout`` seconds; it may then still run.
        """
        if sum(len(word) for word in request.argv) > ARGV_LIMIT:
            raise Invalid(Code.VALUE_INVALID, "the command is longer than 1 MiB")
        if len(request.stdin) <= STDIN_INLINE:
            return await self._execute(request.argv, request.stdin, request)
        name = f"/tmp/.serai-{secrets.token_hex(8)}"  # noqa: S108 - in the guest
        try:
            await self.write_file(name, _one(request.stdin), mode=0o600)
            argv = ["/bin/sh", "-c", FROM_FILE, "sh", name, *request.argv]
            return await self._execute(argv, b"", request)
        finally:
            with contextlib.suppress(SeraiError):
                await self._execute(["rm", "-f", name], b"", ExecRequest(argv=[], timeout=10.0))

    async def _execute(self, argv: list[str], stdin: bytes, request: ExecRequest) -> ExecResult:
        arguments: dict[str, object] = {
            "path": argv[0],
            "arg": argv[1:],
            "capture-output": True,
        }
        if request.env:
            arguments["env"] = [f"{name}={value}" for name, value in request.env.items()]
        if stdin:
            arguments["input-data"] = base64.b64encode(stdin).decode()
        try:
            started = _convert(await self.call("guest-exec", arguments), _Exec)
        except Refused as error:
            raise Invalid(Code.EXEC_FAILED, f"the guest can't run it: {error.message}") from error
        return _exec_result(await self._wait_exec(started.pid, request.timeout))

    async def _wait_exec(self, pid: int, timeout: float) -> _ExecStatus:
        """Ask until the command has ended: the agent has no event for it."""
        found: list[_ExecStatus] = []

        async def has_ended() -> bool:
            answer = await self.call("guest-exec-status", {"pid": pid}, limit=BULK_LIMIT)
            found[:] = [_convert(answer, _ExecStatus)]
            return found[0].exited

        try:
            await wait_until(
                "the command's end",
                has_ended,
                timeout=timeout or FOREVER,
                every=FIRST_PAUSE,
                slowest=LONGEST_PAUSE,
            )
        except HostFailure as error:
            if error.code is not Code.TIMEOUT:
                raise
            raise Interrupted(
                Code.AGENT_TIMEOUT,
                f"the command has not ended within {timeout:g} s",
                hint="It may still run in the guest.",
            ) from error
        return found[0]

    async def write_file(self, path: str, chunks: AsyncIterator[bytes], *, mode: int) -> None:
        """Write a file in the guest; on failure a part of it may be there."""
        handle = await self._open(path, "w")
        try:
            async for chunk in chunks:
                for start in range(0, len(chunk), CHUNK):
                    await self._write(handle, chunk[start : start + CHUNK])
        finally:
            await self._close(handle)
        await self._execute(["chmod", f"{mode:o}", path], b"", ExecRequest(argv=[], timeout=10.0))

    async def _write(self, handle: int, data: bytes) -> None:
        while data:
            arguments = {"handle": handle, "buf-b64": base64.b64encode(data).decode()}
            answer = await self.call("guest-file-write", arguments, timeout=60.0)
            written = _convert(answer, _Written).count
            if not 0 < written <= len(data):
                raise _protocol(f"it wrote {written} of {len(data)} bytes")
            data = data[written:]

    async def read_file(self, path: str) -> AsyncIterator[bytes]:
        """Give the content of a file in the guest."""
        handle = await self._open(path, "r")
        try:
            while True:
                arguments = {"handle": handle, "count": CHUNK}
                answer = await self.call("guest-file-read", arguments, timeout=60.0)
                read = _convert(answer, _Read)
                if read.buf_b64:
                    yield _bytes(read.buf_b64)
                if read.eof or not read.buf_b64:
                    return
        finally:
            await self._close(handle)

    async def _open(self, path: str, mode: str) -> int:
        try:
            answer = await self.call("guest-file-open", {"path": path, "mode": mode})
        except Refused as error:
            raise NotFound(Code.FILE_FAILED, f"in the guest: {error.message}") from error
        handle: int = _convert(answer, int)
        return handle

    async def _close(self, handle: int) -> None:
        with contextlib.suppress(SeraiError):
            await self.call("guest-file-close", {"handle": handle})

    async def online_cpus(self, count: int, *, timeout: float) -> None:
        """Bring ``count`` CPUs into use; for those that were just plugged in.

        The guest finds a new CPU in its own time, so it is asked until it has that many. Raises
        HostFailure (``timeout``) when it has not within ``timeout`` seconds.
        """

        async def are_online() -> bool:
            vcpus = _convert(await self.call("guest-get-vcpus"), list[_Vcpu])
            wanted = [{"logical-id": v.logical_id, "online": True} for v in vcpus if not v.online]
            if wanted:
                await self.call("guest-set-vcpus", {"vcpus": wanted})
            return len(vcpus) >= count

        await wait_until(f"{count} CPUs in the guest", are_online, timeout=timeout, every=0.05)


async def _one(data: bytes) -> AsyncIterator[bytes]:
    yield data


def _result(command: str, reply: dict[str, Any]) -> Any:
    if "return" in reply:
        return reply["return"]
    untrusted_error = reply.get("error")
    if not isinstance(untrusted_error, dict):
        raise _protocol("its answer has neither a result nor an error")
    words = str(untrusted_error.get("desc", ""))[:400]
    raise Refused(Code.AGENT_PROTOCOL, words or f"the agent refused {command}")


def _protocol(what: str) -> HostFailure:
    return HostFailure(Code.AGENT_PROTOCOL, f"the guest's agent can't be understood: {what}")


def _convert(untrusted: Any, kind: Any) -> Any:
    try:
        return msgspec.convert(untrusted, kind)
    except msgspec.ValidationError as error:
        raise _protocol(str(error)) from error


def _bytes(untrusted_text: str) -> bytes:
    try:
        return base64.b64decode(untrusted_text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise _protocol("its data is not base64") from error


def _exec_result(status: _ExecStatus) -> ExecResult:
    code = 128 + status.signal if status.signal else (status.exitcode or 0)
    return ExecResult(
        code=code,
        stdout=_bytes(status.out_data),
        stderr=_bytes(status.err_data),
        truncated=status.out_truncated or status.err_truncated,
    )
