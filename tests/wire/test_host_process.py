"""Programs: what is run is bounded and leaves nothing; what is spawned outlives us and is held."""

import asyncio
import contextlib
import os
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvloop

from serai.errors import Code, HostFailure
from serai.host import process
from serai.host.cgroup import Cgroup
from serai.host.process import (
    Confinement,
    Limits,
    Process,
    find_processes,
    find_program,
    run,
    spawn,
    start_conversation,
)
from serai.host.supervise import wait_until

pytestmark = pytest.mark.filterwarnings("ignore:Overriding the .event_loop_policy. fixture")

FREE = Confinement(uid=None, setpriv="", cgroup=None)
IS_ROOT = os.geteuid() == 0
LIMIT = 10.0
PAUSE = "import signal; signal.pause()"
NAME = "serai-test-memory"


@pytest.fixture(params=[asyncio.DefaultEventLoopPolicy, uvloop.EventLoopPolicy])
def event_loop_policy(request: pytest.FixtureRequest) -> asyncio.AbstractEventLoopPolicy:
    """The daemon runs on uvloop, ``serai doctor`` on asyncio's own loop."""
    policy: asyncio.AbstractEventLoopPolicy = request.param()
    return policy


@pytest.fixture
def null() -> Iterator[int]:
    fd = os.open(os.devnull, os.O_RDWR)
    yield fd
    os.close(fd)


def has_ended(pid: int, limit: float = LIMIT) -> bool:
    """Wait until a process, ours or not, has ended or is a zombie; False when time is up."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([pidfd], [], [], limit)[0])
    finally:
        os.close(pidfd)


def end(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


async def settled() -> set[str]:
    """Return our descriptors once the loop has closed what it was told to close."""
    for _ in range(5):
        await asyncio.sleep(0)
    return descriptors()


def fields_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: rest.strip() for name, _, rest in (line.partition(":") for line in lines)}


def read_soon(path: Path) -> str:
    """Return the one line that a program writes to ``path``."""
    until = time.monotonic() + LIMIT
    while not (path.exists() and (text := path.read_text()).endswith("\n")):
        assert time.monotonic() < until, f"nobody wrote {path}"
        time.sleep(0.005)
    return text.strip()


# -- run -------------------------------------------------------------------------------------------


async def test_run_gives_what_the_tool_wrote() -> None:
    done = await run(["sh", "-c", "cat; echo oops >&2"], timeout=LIMIT, input=b"\0in\xff")
    assert (done.code, done.stdout, done.stderr) == (0, b"\0in\xff", b"oops\n")


async def test_run_reads_nothing_from_our_standard_input() -> None:
    assert (await run(["cat"], timeout=LIMIT)).stdout == b""


async def test_a_tool_need_not_read_its_input() -> None:
    assert (await run(["true"], timeout=LIMIT, input=bytes(1 << 20))).code == 0


async def test_only_a_clean_environment_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD", "")
    monkeypatch.setenv("LC_ALL", "de_DE")
    done = await run(["env"], timeout=LIMIT, env={"A": "b"})
    names = {line.partition("=")[0] for line in done.stdout.decode().splitlines()}
    assert {"A", "PATH", "LANG"} <= names
    assert not {"LD_PRELOAD", "LC_ALL"} & names


async def test_a_failure_tells_argv_and_the_last_words() -> None:
    with pytest.raises(HostFailure) as caught:
        await run(["sh", "-c", "echo first >&2; echo 'last words' >&2; exit 3"], timeout=LIMIT)
    assert caught.value.code is Code.TOOL_FAILED
    assert caught.value.message == "sh failed with code 3: last words"
    assert caught.value.details["stderr"] == "first\nlast words"
    assert caught.value.details["argv"].startswith("sh -c ")


async def test_an_exit_code_that_is_expected_is_no_failure() -> None:
    assert (await run(["sh", "-c", "exit 3"], timeout=LIMIT, ok=(0, 3))).code == 3


async def test_an_end_by_a_signal_is_told() -> None:
    with pytest.raises(HostFailure) as caught:
        await run(["sh", "-c", "kill -9 $$"], timeout=LIMIT)
    assert caught.value.message == "sh ended by signal 9"


async def test_a_missing_tool_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process.shutil, "which", lambda name, path=None: None)
    with pytest.raises(HostFailure) as caught:
        await run(["qemu-img", "info"], timeout=LIMIT)
    assert caught.value.code is Code.TOOL_MISSING
    assert caught.value.hint == "Install it: apt-get install qemu-utils"
    with pytest.raises(HostFailure) as caught:
        find_program("frobnicate")
    assert caught.value.hint == "Install it."


async def test_a_path_where_no_program_is(tmp_path: Path) -> None:
    with pytest.raises(HostFailure) as caught:
        await run([str(tmp_path / "none")], timeout=LIMIT)
    assert caught.value.code is Code.TOOL_MISSING


@pytest.mark.parametrize("content", [b"#!/no/such/program\n", b"\x7fELF\x01", b""])
async def test_what_cannot_be_started_is_told(tmp_path: Path, content: bytes) -> None:
    program = tmp_path / "program"
    program.write_bytes(content)
    program.chmod(0o755 if content else 0o644)
    before = descriptors()
    with pytest.raises(HostFailure) as caught:
        await run([str(program)], timeout=LIMIT)
    assert caught.value.code in (Code.TOOL_FAILED, Code.TOOL_MISSING)
    assert await settled() <= before


async def test_a_timeout_ends_the_whole_group(tmp_path: Path) -> None:
    script = f"sleep 300 & echo $! > {tmp_path}/pid; wait"
    await run(["true"], timeout=LIMIT)  # what a loop opens once
    before = await settled()
    began = time.monotonic()
    with pytest.raises(HostFailure) as caught:
        await run(["sh", "-c", script], timeout=0.3)
    assert caught.value.code is Code.TIMEOUT
    assert "within 0.3 s" in caught.value.message
    assert 0.25 < time.monotonic() - began < 5
    assert has_ended(int(read_soon(tmp_path / "pid")))
    assert await settled() <= before


async def test_what_a_tool_left_behind_ends_with_it(tmp_path: Path) -> None:
    """The child holds the pipes, but nobody waits for it."""
    script = f"sleep 300 & echo $! > {tmp_path}/pid; echo done"
    began = time.monotonic()
    done = await run(["sh", "-c", script], timeout=60)
    assert done.stdout == b"done\n"
    assert time.monotonic() - began < 5
    assert has_ended(int(read_soon(tmp_path / "pid")))


async def test_who_left_the_group_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "LINGER", 0.1)
    await run(["true"], timeout=LIMIT)  # what a loop opens once
    before = await settled()
    script = f"setsid sh -c 'echo $$ > {tmp_path}/pid; exec sleep 300' & echo done; sleep 0.2"
    began = time.monotonic()
    try:
        assert (await run(["sh", "-c", script], timeout=60)).stdout == b"done\n"
        assert time.monotonic() - began < 5
        assert await settled() <= before
    finally:
        end(int(read_soon(tmp_path / "pid")))


async def test_a_cancelled_caller_ends_the_whole_group(tmp_path: Path) -> None:
    script = f"sleep 300 & echo $! > {tmp_path}/pid; wait"
    task = asyncio.ensure_future(run(["sh", "-c", script], timeout=60))
    pid = int(await asyncio.to_thread(read_soon, tmp_path / "pid"))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert has_ended(pid)


async def test_giving_up_at_once_closes_nobody_elses_descriptor() -> None:
    """Many give up before anything was read while others read: each number has one owner."""
    for _ in range(10):
        hasty = [run(["sleep", "60"], timeout=0) for _ in range(8)]
        steady = [run(["sh", "-c", "echo one; echo two"], timeout=LIMIT) for _ in range(8)]
        mixed = [each for pair in zip(hasty, steady, strict=True) for each in pair]
        done = await asyncio.gather(*mixed, return_exceptions=True)
        assert [each.code for each in done[::2]] == [Code.TIMEOUT] * 8
        assert [each.stdout for each in done[1::2]] == [b"one\ntwo\n"] * 8


async def test_a_tool_that_takes_no_hint_is_killed() -> None:
    began = time.monotonic()
    with pytest.raises(HostFailure):
        await run(["sh", "-c", "trap '' TERM INT HUP; while :; do sleep 1; done"], timeout=0.2)
    assert time.monotonic() - began < 5


async def test_too_much_output_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "STDOUT_LIMIT", 1 << 20)
    argv = ["head", "-c", str((1 << 20) + 1), "/dev/zero"]
    with pytest.raises(HostFailure) as caught:
        await run(argv, timeout=LIMIT)
    assert caught.value.message == "head wrote more than 1 MiB"
    done = await run([*argv[:2], str(1 << 20), argv[3]], timeout=LIMIT)
    assert len(done.stdout) == 1 << 20


async def test_an_endless_tool_is_ended_when_it_says_too_much(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(process, "STDOUT_LIMIT", 1 << 20)
    with pytest.raises(HostFailure) as caught:
        await run(["yes"], timeout=60)
    assert caught.value.code is Code.TOOL_FAILED


async def test_the_end_of_stderr_is_kept() -> None:
    script = "head -c 200000 /dev/zero | tr '\\0' x >&2; printf end >&2"
    done = await run(["sh", "-c", script], timeout=LIMIT)
    assert len(done.stderr) == process.STDERR_KEPT
    assert done.stderr.endswith(b"xxxend")


async def test_lines_are_told_as_they_come() -> None:
    lines: list[str] = []
    script = "echo one; printf 'ten\\rtwenty\\r\\n'; echo two >&2; printf 'no end'"
    done = await run(["sh", "-c", script], timeout=LIMIT, on_line=lines.append)
    assert sorted(filter(None, lines)) == ["no end", "one", "ten", "twenty", "two"]
    assert done.stdout.startswith(b"one\n")


async def test_what_the_listener_raises_ends_the_tool(tmp_path: Path) -> None:
    class Enough(Exception):
        pass

    def listen(line: str) -> None:
        raise Enough(line)

    script = f"echo $$ > {tmp_path}/pid; echo line; sleep 300"
    with pytest.raises(Enough, match="line"):
        await run(["sh", "-c", script], timeout=60, on_line=listen)
    assert has_ended(int(read_soon(tmp_path / "pid")))


async def test_output_goes_where_it_is_sent(tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    source.write_bytes(b"content")
    with source.open("rb") as reading, target.open("wb") as writing:
        done = await run(
            ["cat"], timeout=LIMIT, stdin_from=reading.fileno(), stdout_to=writing.fileno()
        )
    assert (done.stdout, target.read_bytes()) == (b"", b"content")


# -- limits ----------------------------------------------------------------------------------------


async def limited(limits: Limits, *argv: str) -> int:
    return (await run(argv, timeout=30, limits=limits, ok=range(-64, 256))).code


async def test_memory_is_limited() -> None:
    argv = (sys.executable, "-c", "bytearray(300 << 20)")
    assert await limited(Limits(memory=2 << 30), *argv) == 0
    assert await limited(Limits(memory=200 << 20), *argv) != 0


async def test_time_of_the_processor_is_limited() -> None:
    code = await limited(Limits(cpu_seconds=1), "sh", "-c", "while :; do :; done")
    assert code in (-signal.SIGXCPU, -signal.SIGKILL)


async def test_files_are_limited_in_size(tmp_path: Path) -> None:
    path = tmp_path / "file"
    code = await limited(Limits(file_size=4096), "dd", "if=/dev/zero", f"of={path}", "bs=8192", "count=1")  # fmt: skip
    assert code != 0
    assert path.stat().st_size <= 4096


async def test_open_files_are_limited() -> None:
    script = "import os; [os.dup(0) for _ in range(50)]"
    assert await limited(Limits(open_files=20), sys.executable, "-c", script) == 1
    assert await limited(Limits(open_files=200), sys.executable, "-c", script) == 0


@contextlib.contextmanager
def allowing_cores() -> Iterator[None]:
    """Let us write core files, as far as we may: it shows whether what we start may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))


async def test_no_core_file_is_written() -> None:
    with allowing_cores():
        done = await run(["sh", "-c", "ulimit -c"], timeout=LIMIT)
    assert done.stdout == b"0\n"


@pytest.mark.skipif(not IS_ROOT, reason="only root can be somebody else")
async def test_with_a_uid_no_right_is_left() -> None:
    done = await run(["cat", "/proc/self/status"], timeout=LIMIT, uid=1_879_048_192)
    seen = dict(line.split(":", 1) for line in done.stdout.decode().splitlines() if ":" in line)
    assert set(seen["Uid"].split()) == {"1879048192"}
    assert set(seen["Gid"].split()) == {"1879048192"}
    assert seen["Groups"].split() == []
    assert int(seen["CapEff"], 16) == int(seen["CapBnd"], 16) == 0
    assert seen["NoNewPrivs"].strip() == "1"


# -- spawn -----------------------------------------------------------------------------------------

PARENT = """
import asyncio, os, signal, sys
from serai.host.process import Confinement, keep_descriptors, spawn

async def main():
    keep_descriptors()
    passed = os.memfd_create("passed")
    null = os.open("/dev/null", os.O_RDWR)
    none = Confinement(uid=None, setpriv="", cgroup=None)
    child = await spawn(["/bin/sleep", "300"], pass_fds=(passed,), stderr_to=null, confinement=none)
    print(child.pid, passed, flush=True)
    signal.pause()

asyncio.run(main())
"""


def test_a_spawned_program_outlives_us() -> None:
    """It has a session of its own, the descriptors that it was given, and no others."""
    inherited = os.open(os.devnull, os.O_RDONLY)
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], stdout=subprocess.PIPE, pass_fds=(inherited,)
    ) as parent:
        os.close(inherited)
        assert parent.stdout is not None
        pid, passed = map(int, parent.stdout.readline().split())
        parent.kill()
    try:
        assert not has_ended(pid, 0.1)
        assert os.getsid(pid) == pid
        assert set(os.listdir(f"/proc/{pid}/fd")) == {"0", "1", "2", str(passed)}
        assert fields_of(pid)["SigBlk"] == "0" * 16
    finally:
        end(pid)


async def test_a_spawned_program_gets_no_descriptor_but_those_given(null: int) -> None:
    held = os.open(os.devnull, os.O_RDONLY)
    os.set_inheritable(held, True)
    passed = os.memfd_create("passed")
    child = await spawn(["/bin/sleep", "300"], pass_fds=(passed,), stderr_to=null, confinement=FREE)
    wanted = {"0", "1", "2", str(passed)}

    def has_those() -> bool:
        return set(os.listdir(f"/proc/{child.pid}/fd")) == wanted

    try:  # as long as its libraries are loaded it has one of those open too
        await wait_until("it has those", has_those, timeout=5.0, every=0.01)
    finally:
        child.signal(signal.SIGKILL)
        await child.wait()
        child.close()
        os.close(held)
        os.close(passed)


async def spawn_shell(script: str, null: int) -> Process:
    return await spawn(["/bin/sh", "-c", script], pass_fds=(), stderr_to=null, confinement=FREE)


@pytest.mark.parametrize(("script", "status"), [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", -9)])
async def test_the_exit_status_is_told(null: int, script: str, status: int) -> None:
    child = await spawn_shell(script, null)
    assert await asyncio.wait_for(child.wait(), LIMIT) == status
    assert child.has_ended
    child.signal(signal.SIGKILL)
    child.close()
    child.close()


async def test_a_child_that_was_let_go_goes_on_and_is_reaped(null: int) -> None:
    child = await spawn_shell("sleep 300", null)
    child.close()
    child.signal(signal.SIGKILL)
    assert not has_ended(child.pid, 0.05)
    end(child.pid)
    async with asyncio.timeout(LIMIT):
        while Path(f"/proc/{child.pid}").exists():
            await asyncio.sleep(0.005)


async def test_a_missing_program_is_told(null: int) -> None:
    with pytest.raises(HostFailure) as caught:
        await spawn(["/no/such"], pass_fds=(), stderr_to=null, confinement=FREE)
    assert caught.value.code is Code.TOOL_MISSING


@pytest.mark.parametrize("small", [False, True])
async def test_who_is_spawned_with_small_pages_has_no_others(null: int, small: bool) -> None:
    child = await spawn(
        ["sleep", "60"], pass_fds=(), stderr_to=null, confinement=FREE, small_pages=small
    )
    try:
        status = Path(f"/proc/{child.pid}/status").read_text()
        assert f"THP_enabled:\t{0 if small else 1}" in status
        assert "THP_enabled:\t1" in Path("/proc/self/status").read_text()
    finally:
        child.signal(signal.SIGKILL)
        await child.wait()
        child.close()


async def test_two_hundred_spawns_leak_nothing(null: int) -> None:
    await (await spawn_shell(":", null)).wait()
    before = descriptors()
    for _ in range(10):
        children = [await spawn_shell(":", null) for _ in range(20)]
        for child in children:
            await asyncio.wait_for(child.wait(), LIMIT)
            child.close()
    assert descriptors() <= before
    with pytest.raises(ChildProcessError):
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)


@pytest.mark.skipif(not IS_ROOT, reason="only root can be somebody else")
async def test_rights_are_dropped_before_the_program_starts(null: int) -> None:
    confined = Confinement(uid=1_879_048_193, setpriv=find_program("setpriv"), cgroup=None)
    child = await spawn(["/bin/sleep", "300"], pass_fds=(), stderr_to=null, confinement=confined)
    try:
        async with asyncio.timeout(LIMIT):
            while fields_of(child.pid)["Name"] != "sleep":
                await asyncio.sleep(0.002)
        seen = fields_of(child.pid)
        assert set(seen["Uid"].split()) == {"1879048193"}
        assert int(seen["CapEff"], 16) == int(seen["CapPrm"], 16) == int(seen["CapBnd"], 16) == 0
        assert seen["NoNewPrivs"] == "1"
    finally:
        child.signal(signal.SIGKILL)
        await child.wait()
        child.close()


async def test_a_spawned_program_is_in_its_group(null: int, tmp_path: Path) -> None:
    group = Cgroup((tmp_path,))
    confined = Confinement(uid=None, setpriv="", cgroup=group)
    child = await spawn(["/bin/sleep", "300"], pass_fds=(), stderr_to=null, confinement=confined)
    assert (tmp_path / "cgroup.procs").read_text() == str(child.pid)
    child.signal(signal.SIGKILL)
    await child.wait()
    child.close()


async def test_a_spawned_program_is_born_in_its_group(
    null: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a thread may enter the group nothing is moved: that would take the kernel 10 ms."""
    monkeypatch.setattr(Cgroup, "add", lambda *_: pytest.fail("it was moved"))
    folder = tmp_path / "serai"
    folder.mkdir()
    for each in (tmp_path, folder):
        (each / "tasks").touch()
    confined = Confinement(uid=None, setpriv="", cgroup=Cgroup((folder,)))
    argv = ["/bin/sleep", "300"]
    with allowing_cores():
        child = await spawn(argv, pass_fds=(), stderr_to=null, confinement=confined)
    try:
        assert (folder / "tasks").read_text() == (tmp_path / "tasks").read_text() == "0"
        assert resource.prlimit(child.pid, resource.RLIMIT_CORE)[0] == 0
    finally:
        child.signal(signal.SIGKILL)
        await child.wait()
        child.close()
    with pytest.raises(HostFailure) as caught:
        await spawn(["/no/such"], pass_fds=(), stderr_to=null, confinement=confined)
    assert caught.value.code is Code.TOOL_MISSING


async def test_a_spawn_that_is_cancelled_leaves_nothing(null: int, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "cgroup.procs")  # joining hangs until somebody reads
    confined = Confinement(uid=None, setpriv="", cgroup=Cgroup((tmp_path,)))
    argv = [sys.executable, "-c", PAUSE, "-serai-test", str(tmp_path)]
    task = asyncio.ensure_future(spawn(argv, pass_fds=(), stderr_to=null, confinement=confined))
    async with asyncio.timeout(LIMIT):
        while not (found := find_processes("-serai-test", {str(tmp_path)})):
            await asyncio.sleep(0.005)
    task.cancel()
    reader = os.open(tmp_path / "cgroup.procs", os.O_RDONLY | os.O_NONBLOCK)
    with pytest.raises(asyncio.CancelledError):
        await task
    os.close(reader)
    assert has_ended(found[str(tmp_path)][0])


# -- processes of others ---------------------------------------------------------------------------


@contextlib.contextmanager
def stranger(value: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A program that another daemon started: it has the option and our memory file."""
    memory = os.memfd_create(NAME)
    argv = [sys.executable, "-c", PAUSE, "-serai-test", value]
    with subprocess.Popen(argv, pass_fds=(memory,)) as program:
        os.close(memory)
        until = time.monotonic() + LIMIT
        while value.encode() not in Path(f"/proc/{program.pid}/cmdline").read_bytes():
            assert time.monotonic() < until  # its argv is there a moment after exec
        try:
            yield program
        finally:
            program.kill()


async def test_attach_holds_what_it_says(tmp_path: Path) -> None:
    value = str(tmp_path)
    with stranger(value) as program:
        held = Process.attach(program.pid, "-serai-test", value, holds=NAME)
        assert held is not None
        assert (held.pid, held.is_child, held.has_ended) == (program.pid, False, False)
        held.signal(signal.SIGTERM)
        assert await asyncio.wait_for(held.wait(), LIMIT) is None
        assert program.wait(LIMIT) == -signal.SIGTERM
        held.signal(signal.SIGKILL)
        held.close()


async def test_attach_refuses_all_others(tmp_path: Path, null: int) -> None:
    value = str(tmp_path)
    before = descriptors()
    with stranger(value) as program:
        pid = program.pid
        assert Process.attach(pid, "-serai-test", "other", holds=NAME) is None
        assert Process.attach(pid, "-other", value, holds=NAME) is None
        assert Process.attach(pid, "-serai-test", value, holds="other") is None
        assert Process.attach(os.getpid(), "-serai-test", value, holds=NAME) is None
        program.kill()
        assert has_ended(pid)
        assert Process.attach(pid, "-serai-test", value, holds=NAME) is None, "a zombie"
    assert Process.attach(pid, "-serai-test", value, holds=NAME) is None, "nobody"
    assert await settled() <= before


async def test_find_processes_finds_the_living(tmp_path: Path) -> None:
    one, two = str(tmp_path / "1"), str(tmp_path / "2")
    with stranger(one) as first, stranger(two) as second:
        wanted = {one, two, str(tmp_path / "3")}
        assert find_processes("-serai-test", wanted) == {one: [first.pid], two: [second.pid]}
        second.kill()
        assert has_ended(second.pid)
        assert find_processes("-serai-test", wanted) == {one: [first.pid]}


def _make_with_pid(pid: int) -> "subprocess.Popen[bytes] | None":
    """Start a program that has this pid; None when somebody else was faster each time."""
    for _ in range(200):
        with contextlib.suppress(OSError):
            Path("/proc/sys/kernel/ns_last_pid").write_text(str(pid - 1))
        program = subprocess.Popen(["/bin/sleep", "300"])
        if program.pid == pid:
            return program
        program.kill()
        program.wait()
    return None


@pytest.mark.skipif(not os.access("/proc/sys/kernel/ns_last_pid", os.W_OK), reason="needs root")
async def test_a_reused_pid_gets_no_signal(null: int) -> None:
    child = await spawn_shell("exit 0", null)
    assert await asyncio.wait_for(child.wait(), LIMIT) == 0
    other = _make_with_pid(child.pid)
    if other is None:
        pytest.skip("the pid could not be had again")
    try:
        child.signal(signal.SIGKILL)
        child.close()
        assert not has_ended(other.pid, 0.1)
    finally:
        other.kill()
        other.wait()


@pytest.mark.skipif(not os.access("/proc/sys/kernel/ns_last_pid", os.W_OK), reason="needs root")
async def test_a_reused_pid_gets_no_signal_even_before_the_end_was_seen(null: int) -> None:
    """The loop has not run since the program ended and was reaped by somebody else."""
    with stranger("reused") as program:
        held = Process.attach(program.pid, "-serai-test", "reused", holds=NAME)
        assert held is not None
        program.kill()
        program.wait()
        other = _make_with_pid(program.pid)
        if other is None:
            held.close()
            pytest.skip("the pid could not be had again")
        held.signal(signal.SIGKILL)
        assert not has_ended(other.pid, 0.1)
        assert await asyncio.wait_for(held.wait(), LIMIT) is None
        held.close()
        other.kill()
        other.wait()


async def test_a_conversation_goes_on_until_it_is_closed() -> None:
    """Asked again and again, with more than a pipe holds; its words of errors are there in time."""
    script = 'while read -r line; do echo "no" >&2; echo "$line"; done'
    talk = start_conversation(["sh", "-c", script])
    try:
        for word in (b"one", b"two", b"x" * 200_000):
            await talk.write(word + b"\n")
            assert await talk.read_line() == word + b"\n"
            assert talk.read_errors() == b"no\n"
        await talk.write(b"three\nfour\n")
        assert (await talk.read_line(), await talk.read_line()) == (b"three\n", b"four\n")
        assert not talk.has_ended
    finally:
        await talk.close()
    assert talk.has_ended


async def test_a_conversation_that_breaks_off_says_why() -> None:
    talk = start_conversation(["sh", "-c", "read -r line; echo gone wrong >&2; exit 3"])
    try:
        await talk.write(b"hello\n")
        with pytest.raises(HostFailure) as ended:
            await talk.read_line()
        assert ended.value.code is Code.TOOL_FAILED
        assert "code 3: gone wrong" in ended.value.message
        with pytest.raises(HostFailure):
            await talk.write(b"hello?\n")
    finally:
        await talk.close()
    with pytest.raises(HostFailure):
        start_conversation(["no-such-program"])
