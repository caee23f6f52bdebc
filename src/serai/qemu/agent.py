"""What the QEMU guest agent can do for us: run commands, move files, shut down, bring up CPUs.

Reference: QEMU's Guest Agent Protocol Reference (docs/interop/qemu-ga-ref). How it is talked to,
and how little of it is believed, is in ``agent_wire``. An agent that lies, floods or is dead costs
its caller an error (``agent-protocol``, ``agent-timeout``, ``agent-unavailable``) and nobody else
anything.
"""

import contextlib
import secrets
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec

from serai.errors import Code, HostFailure, Interrupted, Invalid, NotFound, SeraiError
from serai.host.supervise import wait_until
from serai.model.talk import ExecRequest, ExecResult
from serai.qemu.agent_wire import CHUNK, NUMBER, AgentWire, Decoder, Refused, Reply

BULK_LIMIT = 48 << 20
"""guest-exec keeps at most 16 MiB of each stream, which is 44 MiB as base64 for both."""
BULK_TIMEOUT = 60.0
BEGIN_TIMEOUT = 30.0
"""The first program that a fork starts takes a tenth of a second of a processor, and many may do so at once."""
STDIN_INLINE = 256 << 10
ARGV_LIMIT = 1 << 20
FIRST_PAUSE, LONGEST_PAUSE = 0.001, 0.1
TIDY_TIMEOUT = 10.0
FOREVER = 10.0 * 365 * 86400

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PRIVATE_FILE = 'umask 077; : > "$1"'
FROM_FILE = 'exec < "$1"; rm -f "$1"; shift; exec "$@"'


class _Nothing(msgspec.Struct):
    pass


class _Exec(msgspec.Struct):
    pid: int


class _ExecStatus(msgspec.Struct, rename="kebab"):
    exited: bool
    exitcode: int = 0
    signal: int = 0
    out_data: bytes = b""
    err_data: bytes = b""
    out_truncated: bool = False
    err_truncated: bool = False


class _Read(msgspec.Struct, rename="kebab"):
    buf_b64: bytes
    eof: bool


class _Written(msgspec.Struct):
    count: int


class _Vcpu(msgspec.Struct, rename="kebab"):
    logical_id: int
    online: bool


class _Address(msgspec.Struct, rename="kebab"):
    ip_address: str
    prefix: int


class Interface(msgspec.Struct, rename="kebab"):
    """A network interface as the guest tells of it: none of it is checked."""

    name: str
    hardware_address: str = ""
    ip_addresses: list[_Address] = []


NOTHING = Decoder(Reply[_Nothing])
EXEC = Decoder(Reply[_Exec])
EXEC_STATUS = Decoder(Reply[_ExecStatus])
READ = Decoder(Reply[_Read])
WRITTEN = Decoder(Reply[_Written])
VCPUS = Decoder(Reply[list[_Vcpu]])
INTERFACES = Decoder(Reply[list[Interface]])


class Agent:
    """The agent of one guest, behind the listening socket at ``path``."""

    def __init__(self, path: Path) -> None:
        self.wire = AgentWire(path)

    def quiet(self, timeout: float) -> contextlib.AbstractAsyncContextManager[None]:
        """Let no call be under way, and none begin, as long as the block lasts.

        Raises Busy (``agent-timeout``) when one does not end within ``timeout`` seconds.
        """
        return self.wire.quiet(timeout)

    async def meet(self, *, timeout: float) -> None:
        """Return when it has answered, since we are connected. Raises as ``AgentWire.meet`` does."""
        await self.wire.meet(timeout=timeout)

    async def shutdown(self, mode: str, *, timeout: float) -> None:
        """Tell the guest to power down (``mode`` "powerdown", "reboot" or "halt").

        Raises Refused when it can't. The agent answers only then; so it is asked for a sign of
        life too, and one that is gone by then has done what it was told.
        """
        try:
            await self.wire.call(
                "guest-shutdown", NOTHING, {"mode": mode}, timeout=timeout, then="guest-ping"
            )
        except Interrupted as error:
            if error.code is not Code.AGENT_UNAVAILABLE:
                raise

    # -- commands ----------------------------------------------------------------------------------

    async def execute(self, request: ExecRequest) -> ExecResult:
        """Run a command to its end and return what became of it.

        With ``env`` it gets those variables and a PATH, and nothing else. Input above 256 KiB goes
        through a temporary file in the guest, and needs a shell there. Raises Invalid
        (``exec-failed``) when the guest can't run it, Interrupted (``agent-timeout``) when it has
        not ended after ``request.timeout`` seconds; it may then still run.
        """
        if sum(len(word) for word in (*request.argv, *request.env.values())) > ARGV_LIMIT:
            raise Invalid(Code.VALUE_INVALID, "the command is longer than 1 MiB")
        if len(request.stdin) <= STDIN_INLINE:
            return await self._execute(request)
        name = f"/tmp/.serai-{secrets.token_hex(8)}"  # noqa: S108 - in the guest
        try:
            await self._must("/bin/sh", "-c", PRIVATE_FILE, "sh", name)
            await self.write_file(name, _one(request.stdin), mode=None)
        except BaseException:
            with contextlib.suppress(SeraiError):
                await self._must("rm", "-f", name)
            raise
        argv = ["/bin/sh", "-c", FROM_FILE, "sh", name, *request.argv]
        return await self._execute(msgspec.structs.replace(request, argv=argv, stdin=b""))

    async def _execute(self, request: ExecRequest) -> ExecResult:
        return await self.end_of(await self.begin(request), request.timeout)

    async def begin(self, request: ExecRequest) -> int:
        """Begin a short command as ``execute`` does; return its pid, for ``end_of``."""
        arguments: dict[str, object] = {
            "path": request.argv[0],
            "arg": request.argv[1:],
            "capture-output": True,
        }
        if request.env:
            env = {"PATH": DEFAULT_PATH, **request.env}
            arguments["env"] = [f"{name}={value}" for name, value in env.items()]
        if request.stdin:
            arguments["input-data"] = request.stdin
        try:
            started = await self.wire.call("guest-exec", EXEC, arguments, timeout=BEGIN_TIMEOUT)
        except Refused as error:
            raise Invalid(Code.EXEC_FAILED, f"the guest can't run it: {error.message}") from error
        return started.pid

    async def end_of(self, pid: int, timeout: float) -> ExecResult:
        """Wait for the end of a command that was begun, and return what became of it; asked once."""
        status = await self._wait_exec(pid, timeout)
        return ExecResult(
            code=128 + status.signal if status.signal else status.exitcode,
            stdout=status.out_data,
            stderr=status.err_data,
            truncated=status.out_truncated or status.err_truncated,
        )

    async def _wait_exec(self, pid: int, timeout: float) -> _ExecStatus:
        """Ask until the command has ended: the agent has no event for it."""
        found: list[_ExecStatus] = []

        async def has_ended() -> bool:
            found[:] = [
                await self.wire.call(
                    "guest-exec-status",
                    EXEC_STATUS,
                    {"pid": pid},
                    timeout=BULK_TIMEOUT,
                    limit=BULK_LIMIT,
                )
            ]
            return found[0].exited

        try:
            await wait_until(
                "the command's end",
                has_ended,
                timeout=timeout or FOREVER,
                every=FIRST_PAUSE,
                slowest=LONGEST_PAUSE,
            )
        except Refused as error:
            raise Interrupted(
                Code.AGENT_UNAVAILABLE,
                f"what became of the command is not known: {error.message}",
                hint="The guest's agent was started anew meanwhile.",
            ) from error
        except HostFailure as error:
            if error.code is not Code.TIMEOUT:
                raise
            raise Interrupted(
                Code.AGENT_TIMEOUT,
                f"the command has not ended within {timeout:g} s",
                hint="It may still run in the guest.",
            ) from error
        return found[0]

    async def _must(self, *argv: str) -> None:
        """Run a small command of our own; NotFound (``file-failed``) when it fails."""
        result = await self._execute(ExecRequest(argv=list(argv), timeout=TIDY_TIMEOUT))
        if result.code != 0:
            untrusted_words = result.stderr[-400:].decode(errors="replace").strip()
            raise NotFound(
                Code.FILE_FAILED, f"in the guest: {untrusted_words or f'{argv[0]} failed'}"
            )

    # -- files -------------------------------------------------------------------------------------

    async def write_file(
        self, path: str, chunks: AsyncIterator[bytes], *, mode: int | None
    ) -> None:
        """Write a file in the guest; on failure a part of it may be there.

        ``mode`` is set before the first byte is written; None leaves it to the guest. Raises
        NotFound (``file-failed``) with the guest's own words.
        """
        handle = await self._open(path, "w")
        try:
            if mode is not None:
                await self._must("chmod", f"{mode:o}", path)
            async for chunk in chunks:
                for start in range(0, len(chunk), CHUNK):
                    await self._write(handle, chunk[start : start + CHUNK])
        except BaseException:
            with contextlib.suppress(SeraiError):
                await self._close(handle)
            raise
        await self._close(handle)  # what it still held is written now: this may fail, too

    async def _write(self, handle: int, data: bytes) -> None:
        while data:
            arguments = {"handle": handle, "buf-b64": data}
            with _file_failed():
                answer = await self.wire.call(
                    "guest-file-write", WRITTEN, arguments, timeout=BULK_TIMEOUT
                )
            if not 0 < answer.count <= len(data):
                raise HostFailure(
                    Code.AGENT_PROTOCOL, f"the agent wrote {answer.count} of {len(data)} bytes"
                )
            data = data[answer.count :]

    async def read_file(self, path: str) -> AsyncIterator[bytes]:
        """Give the content of a file in the guest; NotFound (``file-failed``) if it can't."""
        handle = await self._open(path, "r")
        try:
            while True:
                with _file_failed():
                    answer = await self.wire.call(
                        "guest-file-read",
                        READ,
                        {"handle": handle, "count": CHUNK},
                        timeout=BULK_TIMEOUT,
                    )
                if answer.buf_b64:
                    yield answer.buf_b64
                if answer.eof or not answer.buf_b64:
                    return
        finally:
            with contextlib.suppress(SeraiError):
                await self._close(handle)

    async def _open(self, path: str, mode: str) -> int:
        with _file_failed():
            return await self.wire.call("guest-file-open", NUMBER, {"path": path, "mode": mode})

    async def _close(self, handle: int) -> None:
        with _file_failed():
            await self.wire.call("guest-file-close", NOTHING, {"handle": handle})

    # -- the machine -------------------------------------------------------------------------------

    async def online_cpus(self, count: int, *, timeout: float) -> None:
        """Bring ``count`` CPUs into use; for those that were just plugged in.

        The guest finds a new CPU in its own time, so it is asked until it has that many. Raises
        HostFailure (``timeout``) when it has not within ``timeout`` seconds.
        """

        async def are_online() -> bool:
            vcpus = await self.wire.call("guest-get-vcpus", VCPUS)
            wanted = [{"logical-id": v.logical_id, "online": True} for v in vcpus if not v.online]
            if wanted:
                await self.wire.call("guest-set-vcpus", NUMBER, {"vcpus": wanted})
            return len(vcpus) >= count

        await wait_until(f"{count} CPUs in the guest", are_online, timeout=timeout, every=0.05)

    async def interfaces(self, *, timeout: float) -> list[Interface]:
        """Return the guest's network interfaces with their addresses."""
        return await self.wire.call("guest-network-get-interfaces", INTERFACES, timeout=timeout)

    async def freeze(self, *, timeout: float) -> int:
        """Flush and freeze the guest's file systems; return how many. ``thaw`` must follow."""
        return await self.wire.call("guest-fsfreeze-freeze", NUMBER, timeout=timeout)

    async def thaw(self, *, timeout: float) -> int:
        """Let the guest's file systems go on; return how many."""
        return await self.wire.call("guest-fsfreeze-thaw", NUMBER, timeout=timeout)


async def _one(data: bytes) -> AsyncIterator[bytes]:
    yield data


@contextlib.contextmanager
def _file_failed() -> Iterator[None]:
    """Turn what the agent says about a file into our error."""
    try:
        yield
    except Refused as error:
        raise NotFound(Code.FILE_FAILED, f"in the guest: {error.message}") from error
