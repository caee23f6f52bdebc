"""The one door to programs: run one and read what it says, or spawn one that outlives us.

``run`` is for tools: bounded in time and output, killed as a whole when nobody waits any more.
``spawn`` is for guests: a session of its own, no pipe to us, only the descriptors it is given,
privileges dropped *before* exec (``setpriv`` of util-linux). ``Process`` holds a program by its
pidfd (pidfd_open(2)), so that a signal never reaches another one that got the same number later.
"""

import asyncio
import contextlib
import os
import shlex
import shutil
import signal
from asyncio.subprocess import Process as ToolProcess
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from serai.errors import Code, HostFailure
from serai.host.cgroup import Cgroup
from serai.host.packages import package_of

STDERR_KEPT = 64 << 10
STDOUT_LIMIT = 16 << 20
LINE_LIMIT = 64 << 10
TOLD_OF_STDERR = 2000

CLEAN_ENV: Mapping[str, str] = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
}


@dataclass(frozen=True, slots=True)
class Completed:
    """What became of a tool: its exit code (``-N`` after signal N) and what it wrote."""

    argv: tuple[str, ...]
    code: int
    stdout: bytes
    stderr: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Resource limits (setrlimit(2)) for a tool that reads hostile input; 0 sets none."""

    memory: int = 0
    cpu_seconds: int = 0
    file_size: int = 0
    open_files: int = 0

    def prefix(self) -> list[str]:
        """Return the ``prlimit`` words that set them."""
        named = (
            ("as", self.memory),
            ("cpu", self.cpu_seconds),
            ("fsize", self.file_size),
            ("nofile", self.open_files),
        )
        words = [f"--{name}={value}" for name, value in named if value]
        return ["prlimit", "--core=0", *words, "--"] if words else []


@dataclass(frozen=True, slots=True, kw_only=True)
class Confinement:
    """What a spawned program may be: ``uid`` None stays who we are; ``cgroup`` None joins none."""

    uid: int | None
    setpriv: str
    cgroup: Cgroup | None

    def prefix(self) -> list[str]:
        """Return the words that drop privileges before exec."""
        return drop_words(self.setpriv, self.uid) if self.setpriv else []


def drop_words(setpriv: str, uid: int | None) -> list[str]:
    """Return the ``setpriv`` words for no new privileges and, with a uid, no rights at all."""
    if uid is None:
        return [setpriv, "--no-new-privs", "--"]
    return [
        setpriv, f"--reuid={uid}", f"--regid={uid}", "--clear-groups",
        "--inh-caps=-all", "--bounding-set=-all", "--no-new-privs", "--",
    ]  # fmt: skip


def environment() -> dict[str, str]:
    """Return the clean environment for programs: our PATH and locale, and what tools need."""
    kept = ("PATH", "HOME", "TMPDIR", "http_proxy", "https_proxy", "no_proxy", "APT_CONFIG")
    return {**CLEAN_ENV, **{name: os.environ[name] for name in kept if name in os.environ}}


def find_program(name: str) -> str:
    """Return the path of a program; HostFailure (``tool-missing``) with the package to install."""
    path = shutil.which(name, path=f"{os.environ.get('PATH', '')}:{CLEAN_ENV['PATH']}")
    if path is None:
        package = package_of(name)
        raise HostFailure(
            Code.TOOL_MISSING,
            f"the program {name} is missing",
            hint=f"Install it: apt-get install {package}" if package else "Install it.",
            details={"program": name},
        )
    return path


# -- tools ---------------------------------------------------------------------------------------


async def run(
    argv: Sequence[str],
    *,
    timeout: float,
    input: bytes = b"",  # noqa: A002 - the name that subprocess gives it
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    limits: Limits | None = None,
    uid: int | None = None,
    pass_fds: Sequence[int] = (),
    ok: Collection[int] = (0,),
    on_line: Callable[[str], None] | None = None,
    stdout_to: int | None = None,
    stdin_from: int | None = None,
) -> Completed:
    """Run a program to its end and return what it wrote.

    ``on_line`` is called for each line of stdout and stderr as it comes. Its whole process group
    is killed after ``timeout`` seconds or when the caller is cancelled. Raises HostFailure:
    ``tool-missing``, ``tool-failed`` (an exit code not in ``ok``; argv and the end of its stderr
    are in the details), ``timeout``.
    """
    full = _full_argv(argv, limits, uid)
    piped = asyncio.subprocess.PIPE
    tool = await asyncio.create_subprocess_exec(
        *full,
        stdin=stdin_from
        if stdin_from is not None
        else (piped if input else asyncio.subprocess.DEVNULL),
        stdout=stdout_to if stdout_to is not None else piped,
        stderr=piped,
        env={**environment(), **(env or {})},
        cwd=cwd,
        pass_fds=tuple(pass_fds),
        start_new_session=True,
        limit=LINE_LIMIT,
    )
    try:
        async with asyncio.timeout(timeout):
            stdout, stderr = await _converse(tool, input, on_line)
            code = await tool.wait()
    except TimeoutError as error:
        raise _timeout(argv, timeout) from error
    finally:
        await _kill_group(tool)
    done = Completed(tuple(argv), code, stdout, stderr)
    if code not in ok:
        raise tool_failed(done)
    return done


def _full_argv(argv: Sequence[str], limits: Limits | None, uid: int | None) -> list[str]:
    words = [find_program(argv[0]) if "/" not in argv[0] else argv[0], *argv[1:]]
    if uid is not None:
        words = [*drop_words(find_program("setpriv"), uid), *words]
    prefix = limits.prefix() if limits else []
    if prefix:
        prefix[0] = find_program("prlimit")
    return [*prefix, *words]


async def _converse(
    tool: ToolProcess, to_write: bytes, on_line: Callable[[str], None] | None
) -> tuple[bytes, bytes]:
    """Feed the tool and read both its outputs to their ends."""
    async with asyncio.TaskGroup() as group:
        if tool.stdin is not None:
            group.create_task(_feed(tool.stdin, to_write))
        out = group.create_task(_drain(tool.stdout, STDOUT_LIMIT, on_line, keep_end=False))
        err = group.create_task(_drain(tool.stderr, STDERR_KEPT, on_line, keep_end=True))
    return out.result(), err.result()


async def _feed(writer: asyncio.StreamWriter, data: bytes) -> None:
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        writer.write(data)
        await writer.drain()
    writer.close()


async def _drain(
    reader: asyncio.StreamReader | None,
    limit: int,
    on_line: Callable[[str], None] | None,
    *,
    keep_end: bool,
) -> bytes:
    """Read to the end, keep ``limit`` bytes (the first or the last), pass lines on."""
    kept, line = bytearray(), b""
    while reader is not None and (chunk := await reader.read(LINE_LIMIT)):
        if keep_end:
            kept = (kept + chunk)[-limit:]
        elif len(kept) < limit:
            kept += chunk[: limit - len(kept)]
        if on_line is not None:
            *lines, line = (line + chunk).replace(b"\r", b"\n").split(b"\n")
            line = line[-LINE_LIMIT:]
            for each in lines:
                on_line(each.decode(errors="replace"))
    if on_line is not None and line:
        on_line(line.decode(errors="replace"))
    return bytes(kept)


async def _kill_group(tool: ToolProcess) -> None:
    """Kill the tool's process group, unless it has ended, and reap the tool."""
    if tool.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(tool.pid, signal.SIGKILL)
        await asyncio.shield(tool.wait())


def _timeout(argv: Sequence[str], timeout: float) -> HostFailure:
    return HostFailure(
        Code.TIMEOUT,
        f"{os.path.basename(argv[0])} was not done within {timeout:.0f} s",
        details={"argv": shlex.join(argv)},
    )


def tool_failed(done: Completed) -> HostFailure:
    """Return the error for a tool that failed."""
    untrusted_end = done.stderr.decode(errors="replace").strip()
    what = f"ended by signal {-done.code}" if done.code < 0 else f"failed with code {done.code}"
    last = untrusted_end.rsplit("\n", 1)[-1][:300]
    return HostFailure(
        Code.TOOL_FAILED,
        f"{os.path.basename(done.argv[0])} {what}{f': {last}' if last else ''}",
        details={"argv": shlex.join(done.argv), "stderr": untrusted_end[-TOLD_OF_STDERR:]},
    )


# -- programs that outlive us ----------------------------------------------------------------------


class Process:
    """A running program, held by its pidfd. Make it with ``spawn`` or ``attach``."""

    def __init__(self, pid: int, pidfd: int, *, is_child: bool) -> None:
        self.pid = pid
        self.is_child = is_child
        self._pidfd = pidfd
        self._ended: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()
        self._status: int | None = None
        asyncio.get_running_loop().add_reader(pidfd, self._on_exit)

    @classmethod
    def attach(cls, pid: int, option: str, value: str, *, holds: str) -> "Process | None":
        """Hold the program ``pid`` if its argv has ``option value`` and it holds our memory file.

        None if it is not that one: the number may have gone to another, and anybody can write an
        argv, but only what we started has the memfd of that name (memfd_create(2)).
        """
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            return None
        if option_of(pid, option) != value or not _holds(pid, holds):
            os.close(pidfd)
            return None
        return cls(pid, pidfd, is_child=False)

    @property
    def has_ended(self) -> bool:
        """True once its end was seen."""
        return self._ended.done()

    def _on_exit(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        if self.is_child:
            result = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG)
            if result is not None:
                killed = result.si_code != os.CLD_EXITED
                self._status = -result.si_status if killed else result.si_status
        if not self._ended.done():
            self._ended.set_result(self._status)

    async def wait(self) -> int | None:
        """Wait for its end; return its exit code (``-N`` after signal N), None if not our child."""
        return await asyncio.shield(self._ended)

    def signal(self, number: int) -> None:
        """Send a signal; one that has ended gets none."""
        if not self._ended.done():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def close(self) -> None:
        """Let go. A child that has not ended is reaped by init once we are gone."""
        if self._pidfd >= 0:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1


async def spawn(
    argv: Sequence[str], *, pass_fds: Sequence[int], stderr_to: int, confinement: Confinement
) -> Process:
    """Start a program that outlives us, with ``pass_fds`` under the same numbers and no others.

    Raises HostFailure (``tool-missing``) when there is no such program; a program that fails
    later is seen by ``Process.wait``.
    """
    full = [*confinement.prefix(), *argv]
    pid = start_detached(full, env=CLEAN_ENV, pass_fds=pass_fds, output_to=stderr_to)
    process = Process(pid, os.pidfd_open(pid), is_child=True)
    if confinement.cgroup is not None:
        await asyncio.to_thread(confinement.cgroup.add, pid)
    return process


def start_detached(
    argv: Sequence[str], *, env: Mapping[str, str], pass_fds: Sequence[int], output_to: int
) -> int:
    """Start a program in a session of its own and return its pid; the caller owns that child.

    It takes about a millisecond: the call returns once the program is there (posix_spawn(3)).
    Raises HostFailure (``tool-missing``).
    """
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    actions: list[tuple[int, int, int]] = [
        (os.POSIX_SPAWN_DUP2, null, 0),
        (os.POSIX_SPAWN_DUP2, output_to, 1),
        (os.POSIX_SPAWN_DUP2, output_to, 2),
        *((os.POSIX_SPAWN_DUP2, fd, fd) for fd in pass_fds),
    ]
    try:
        return os.posix_spawn(
            argv[0],
            list(argv),
            dict(env),
            file_actions=actions,
            setsid=True,
            setsigmask=(),
            setsigdef=(signal.SIGPIPE, signal.SIGINT),
        )
    except FileNotFoundError as error:
        raise HostFailure(
            Code.TOOL_MISSING, f"{argv[0]} is missing", hint="See: serai doctor"
        ) from error
    finally:
        os.close(null)


def keep_descriptors() -> None:
    """Let no program that we start inherit what we inherited; called once, by the daemon."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2:
            with contextlib.suppress(OSError):
                os.set_inheritable(int(name), False)


def option_of(pid: int, option: str) -> str | None:
    """Return what follows ``option`` in the argv of a process; None if there is none."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read(1 << 20).split(b"\0")
        return words[words.index(option.encode()) + 1].decode()
    except (OSError, ValueError, IndexError):
        return None


def _holds(pid: int, memory_file: str) -> bool:
    """Tell whether a process has a memfd of this name open."""
    wanted = f"/memfd:{memory_file} (deleted)"
    try:
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{pid}/fd/{name}") == wanted:
                    return True
    except OSError:
        pass
    return False


def find_processes(option: str, values: Collection[str]) -> dict[str, int]:
    """Return the pid of the process whose argv has ``option`` and the value, for each value found.

    One pass over /proc. A process that has ended but was not reaped has no argv, and is not found.
    """
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            value = option_of(int(name), option)
            if value in values and value is not None:
                found[value] = int(name)
    return found
