"""The one door to programs: run one and read what it says, or spawn one that outlives us.

``run`` is for tools: bounded in time and output, killed as a whole when nobody waits any more.
``spawn`` is for guests: a session of its own, no pipe to us, only the descriptors it is given,
privileges dropped *before* exec (``setpriv`` of util-linux). Starting takes a third of a millisecond,
however large we are: ``subprocess`` uses vfork as long as the child has nothing to do before exec,
which is why no ``preexec_fn``, ``user`` or ``umask`` is used here. What a child leaves behind, and how
it is held, is ``held``'s.
"""

import asyncio
import contextlib
import ctypes
import logging
import os
import resource
import shlex
import shutil
import subprocess
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from signal import SIGKILL

from serai.errors import Code, HostFailure
from serai.host.cgroup import Cgroup
from serai.host.held import Process as Process
from serai.host.packages import package_of
from serai.host.pipes import OnLine, Pipe, TooMuch, read_first, read_last, write_all
from serai.host.procfs import find_processes as find_processes
from serai.host.procfs import read_memory as read_memory

log = logging.getLogger(__name__)

STDERR_KEPT = 64 << 10
STDOUT_LIMIT = 16 << 20
TOLD_OF_STDERR = 2000
LINGER = 2.0
"""How long output is read on that a tool left behind, in a pipe that others still hold."""
KILL_LIMIT = 10.0
LIBC = ctypes.CDLL(None)
PR_SET_THP_DISABLE = 41

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
    on_line: OnLine | None = None,
    stdout_to: int | None = None,
    stdin_from: int | None = None,
) -> Completed:
    """Run a program to its end and return what it wrote.

    ``on_line`` is called for each line of stdout and stderr as it comes; without it, more than
    16 MiB of stdout is a failure, with it only the first 16 MiB are returned. Of stderr the last
    64 KiB are. The program leads a process group, and nothing of that is left when this returns,
    by whatever way: its end, ``timeout`` seconds, the caller's cancellation. Raises HostFailure:
    ``tool-missing``, ``tool-failed`` (an exit code not in ``ok``; argv and the end of its stderr
    are in the details), ``timeout``; and what ``on_line`` raises.
    """
    full = _full_argv(argv, limits, uid)
    async with AsyncExitStack() as stack:
        stdin = stdin_from if stdin_from is not None else stack.enter_context(_readable(input))
        with _without_core():
            tool = _start(
                full,
                stdin=stdin,
                stdout=subprocess.PIPE if stdout_to is None else stdout_to,
                stderr=subprocess.PIPE,
                env={**environment(), **(env or {})},
                cwd=cwd,
                pass_fds=pass_fds,
            )
        process = _hold(tool, leads=True)
        stack.push_async_callback(_end, process)
        try:
            async with asyncio.timeout(timeout):
                code, stdout, stderr = await _converse(tool, process, on_line)
        except TimeoutError as error:
            raise _timeout(argv, timeout) from error
        except BaseExceptionGroup as group:
            raise _only(argv, group.exceptions[0]) from group
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


@contextmanager
def _readable(data: bytes) -> Iterator[int]:
    """Give a descriptor to read ``data`` from: nobody need feed it, and a tool need not read it."""
    fd = os.memfd_create("input", os.MFD_CLOEXEC)
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(data)
        os.lseek(fd, 0, os.SEEK_SET)
        yield fd
    finally:
        os.close(fd)


async def _converse(
    tool: "subprocess.Popen[bytes]", process: Process, on_line: OnLine | None
) -> tuple[int, bytes, bytes]:
    """Read both outputs until the tool has ended; return its exit code and what it wrote."""
    with ExitStack() as stack:
        stdout, stderr = Pipe(tool.stdout), Pipe(tool.stderr)
        stack.callback(stdout.close)
        stack.callback(stderr.close)
        async with asyncio.TaskGroup() as group:
            first = group.create_task(read_first(stdout, STDOUT_LIMIT, on_line))
            last = group.create_task(read_last(stderr, STDERR_KEPT, on_line))
            code = await process.wait()
            await asyncio.wait((first, last), timeout=LINGER)
            stack.close()
    return code or 0, first.result(), last.result()


async def _end(process: Process) -> None:
    """Leave nothing of a tool; one that even the kernel can't end is reaped when it does end."""
    process.kill_group()
    try:
        async with asyncio.timeout(KILL_LIMIT):
            await process.wait()
    except TimeoutError:
        log.error("process %d was killed, but has not ended in %g s", process.pid, KILL_LIMIT)
    finally:
        process.close()


def _timeout(argv: Sequence[str], timeout: float) -> HostFailure:
    return HostFailure(
        Code.TIMEOUT,
        f"{os.path.basename(argv[0])} was not done within {timeout:g} s",
        details={"argv": shlex.join(argv)},
    )


def _only(argv: Sequence[str], error: BaseException) -> BaseException:
    return _wrote_too_much(argv) if isinstance(error, TooMuch) else error


def _wrote_too_much(argv: Sequence[str]) -> HostFailure:
    return HostFailure(
        Code.TOOL_FAILED,
        f"{os.path.basename(argv[0])} wrote more than {STDOUT_LIMIT >> 20} MiB",
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


class Conversation:
    """A program that is asked again and again through pipes, which spares starting it each time.

    Make it with ``start_conversation``. It ends when it is closed, and when we end. Whoever asks
    knows where an answer ends; one who gives up half way closes it. One may ask at a time.
    """

    def __init__(self, tool: "subprocess.Popen[bytes]", process: Process) -> None:
        assert tool.stdin is not None and tool.stderr is not None
        self._tool = tool
        self._process = process
        self._input, self._errors = tool.stdin, tool.stderr
        self._output = Pipe(tool.stdout)
        self._begun = b""
        for end in (self._input, self._errors):
            os.set_blocking(end.fileno(), False)

    @property
    def has_ended(self) -> bool:
        """True once its end was seen."""
        return self._process.has_ended

    async def write(self, data: bytes) -> None:
        """Say something; HostFailure (``tool-failed``) when it has ended."""
        try:
            await write_all(self._input.fileno(), data)
        except BrokenPipeError as error:
            raise await self._failure() from error

    async def read_line(self) -> bytes:
        """Return the next line, of 16 MiB at most; HostFailure (``tool-failed``) when there is none."""
        parts = [self._begun]
        size = len(self._begun)
        while b"\n" not in parts[-1]:
            chunk = await self._output.read()
            if not chunk:
                raise await self._failure()
            parts.append(chunk)
            size += len(chunk)
            if size > STDOUT_LIMIT:
                raise _wrote_too_much(self._argv)
        line, end, self._begun = b"".join(parts).partition(b"\n")
        return line + end

    def read_errors(self) -> bytes:
        """Return what it has written to stderr by now, 64 KiB at most."""
        try:
            return os.read(self._errors.fileno(), STDERR_KEPT)
        except BlockingIOError:
            return b""

    @property
    def _argv(self) -> tuple[str, ...]:
        return tuple(map(str, self._tool.args))  # type: ignore[arg-type]

    async def _failure(self) -> HostFailure:
        code = await self._process.wait() or 0
        return tool_failed(Completed(self._argv, code, b"", self.read_errors()))

    async def close(self) -> None:
        """End it. Fine if it has ended."""
        for end in (self._input, self._output, self._errors):
            end.close()
        await _end(self._process)


def start_conversation(
    argv: Sequence[str], *, env: Mapping[str, str] | None = None
) -> Conversation:
    """Start a program to talk with. Raises HostFailure: ``tool-missing``, ``tool-failed``."""
    with _without_core():
        tool = _start(
            _full_argv(argv, None, None),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**environment(), **(env or {})},
            pass_fds=(),
        )
    return Conversation(tool, _hold(tool, leads=True))


# -- programs that outlive us ----------------------------------------------------------------------


async def spawn(
    argv: Sequence[str],
    *,
    pass_fds: Sequence[int],
    stderr_to: int,
    confinement: Confinement,
    small_pages: bool = False,
) -> Process:
    """Start a program that outlives us, with ``pass_fds`` under the same numbers and no others.

    With ``small_pages`` it gets no huge ones, whatever it asks the kernel for.

    It is in its control group when this returns: from birth on v1, which costs nothing; moved into
    it on v2, which takes the kernel 5 to 10 ms, while the program is being loaded already
    (docs/design/0012). Raises HostFailure (``tool-missing``) when there is no such program; one
    that fails later is seen by ``Process.wait``. When this fails or is cancelled nothing runs.
    """
    full = [*confinement.prefix(), *argv]
    start = partial(_start_apart, full, CLEAN_ENV, pass_fds, stderr_to)
    cgroup = confinement.cgroup
    # nothing else is started meanwhile, since this waits for the thread
    with _without_core(), _small_pages() if small_pages else nullcontext():
        within = cgroup.try_within(start) if cgroup is not None else None
        child = within or start()
    try:
        if cgroup is not None and within is None:
            await _join(cgroup, child.pid)
    except BaseException:
        process = _hold(child)
        process.signal(SIGKILL)
        process.close()
        raise
    return _hold(child)


async def _join(cgroup: Cgroup, pid: int) -> None:
    """Put a child into its group. Nobody may reap it before this is left: the number is its own."""
    joining = asyncio.get_running_loop().run_in_executor(None, _try_join, cgroup, pid)
    try:
        await asyncio.shield(joining)
    except asyncio.CancelledError:
        await asyncio.wait((joining,), timeout=KILL_LIMIT)
        raise


def _try_join(cgroup: Cgroup, pid: int) -> None:
    try:
        cgroup.add(pid)
    except OSError as error:
        log.warning("process %d stays in our control group: %s", pid, error.strerror)


def start_detached(
    argv: Sequence[str], *, env: Mapping[str, str], pass_fds: Sequence[int], output_to: int
) -> int:
    """Start a program in a session of its own and return its pid; the caller owns that child.

    Raises HostFailure (``tool-missing``).
    """
    return _start_apart(argv, env, pass_fds, output_to).pid


def _start_apart(
    argv: Sequence[str], env: Mapping[str, str], pass_fds: Sequence[int], output_to: int
) -> "subprocess.Popen[bytes]":
    return _start(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=output_to,
        stderr=output_to,
        env=env,
        pass_fds=pass_fds,
    )


# -- starting --------------------------------------------------------------------------------------


def _start(
    argv: Sequence[str],
    *,
    stdin: int,
    stdout: int,
    stderr: int,
    env: Mapping[str, str],
    pass_fds: Sequence[int],
    cwd: Path | None = None,
) -> "subprocess.Popen[bytes]":
    """Start a child in a session of its own that inherits ``pass_fds`` and nothing else of ours."""
    try:
        child = subprocess.Popen(
            list(argv),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            env=env,
            cwd=cwd,
            pass_fds=tuple(pass_fds),
            close_fds=True,
            start_new_session=True,
            bufsize=0,
        )
    except OSError as error:
        raise _not_started(argv, error) from error
    child.returncode = 0  # whoever holds it reaps it; Popen must never wait for its number
    return child


def _not_started(argv: Sequence[str], error: OSError) -> HostFailure:
    is_missing = isinstance(error, FileNotFoundError) and error.filename == argv[0]
    if is_missing:
        return HostFailure(Code.TOOL_MISSING, f"{argv[0]} is missing", hint="See: serai doctor")
    return HostFailure(
        Code.TOOL_FAILED,
        f"{argv[0]} can't be started: {error.strerror}",
        details={"argv": shlex.join(argv)},
    )


def _hold(child: "subprocess.Popen[bytes]", *, leads: bool = False) -> Process:
    try:
        pidfd = os.pidfd_open(child.pid)
    except OSError as error:
        os.killpg(child.pid, SIGKILL)
        os.waitpid(child.pid, 0)
        raise _not_started((str(child.args),), error) from error
    return Process(child.pid, pidfd, is_child=True, leads=leads)


@contextmanager
def _without_core() -> Iterator[None]:
    """Let what is started within write no core file, which might hold what belongs to a guest.

    A limit is inherited and costs nothing; a program that sets it first costs a millisecond. Ours
    comes back at once. Only for the thread of the event loop: two at once would undo each other.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))


@contextmanager
def _small_pages() -> Iterator[None]:
    """Let what is started within have no huge pages; inherited as ``_without_core`` is (prctl(2))."""
    LIBC.prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0)
    try:
        yield
    finally:
        LIBC.prctl(PR_SET_THP_DISABLE, 0, 0, 0, 0)


def keep_descriptors() -> None:
    """Let no program that we start inherit what we inherited; called once, by the daemon."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2:
            with contextlib.suppress(OSError):
                os.set_inheritable(int(name), False)
