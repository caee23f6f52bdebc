"""serai as a program: signals, terminals, pipes that close, and the fast path beside the proper one."""

import asyncio
import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import termios
from collections.abc import AsyncIterator
from pathlib import Path
from unittest import mock

import pytest
from api_peer import Inn
from cli_shell import Shell, shell_and_inn
from fake_engine import make_guest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serai.cli import fast
from serai.errors import Problem
from serai.model.event import EventKind
from serai.model.job import JobState
from serai.model.lifecycle import GuestState
from serai.settings import find_places

LIMIT = 30.0
SHORT = 0.2


@pytest.fixture
async def both(serai_home: Path) -> AsyncIterator[tuple[Shell, Inn]]:
    async with shell_and_inn(serai_home) as (shell, inn):
        inn.engine.add_guests(3)
        yield shell, inn


async def end_of(program: asyncio.subprocess.Process) -> tuple[int, str, str]:
    out, err = await asyncio.wait_for(program.communicate(), LIMIT)
    assert program.returncode is not None
    return program.returncode, (out or b"").decode(), (err or b"").decode()


class Terminal:
    """A terminal that a program runs in, seen from the other side."""

    def __init__(self) -> None:
        self.ours, self.theirs = pty.openpty()
        self.before = termios.tcgetattr(self.theirs)
        self.shown = b""
        self._news = asyncio.Event()
        asyncio.get_running_loop().add_reader(self.ours, self._read)

    def _read(self) -> None:
        self.shown += os.read(self.ours, 4096)
        self._news.set()

    async def read_until(self, wanted: bytes) -> bytes:
        """Read what is shown until it has ``wanted``."""
        async with asyncio.timeout(LIMIT):
            while wanted not in self.shown:
                self._news.clear()
                await self._news.wait()
        return self.shown

    def read_rest(self) -> bytes:
        """Return all that is shown by now."""
        os.set_blocking(self.ours, False)
        with contextlib.suppress(OSError):
            while chunk := os.read(self.ours, 4096):
                self.shown += chunk
        return self.shown

    def type(self, keys: bytes) -> None:
        os.write(self.ours, keys)

    @property
    def is_as_before(self) -> bool:
        return termios.tcgetattr(self.theirs) == self.before

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self.ours)
        os.close(self.ours)
        os.close(self.theirs)


@pytest.fixture
async def terminal() -> "contextlib.AbstractContextManager[Terminal]":
    return contextlib.closing(Terminal())


# -- ctrl-C ----------------------------------------------------------------------------------------


async def wait_for_job(inn: Inn) -> str:
    async with asyncio.timeout(LIMIT):
        while not inn.engine.all_jobs:
            await asyncio.sleep(0.005)
    return next(iter(inn.engine.all_jobs))


@pytest.mark.parametrize("pause", [0.0, 0.6])
async def test_ctrl_c_of_launch_cancels_the_job(both: tuple[Shell, Inn], pause: float) -> None:
    """At once after the daemon took it, and in the middle."""
    shell, inn = both
    inn.engine.hold = True
    program = await shell.start("launch", "tiny", "web1")
    job_id = await wait_for_job(inn)
    await asyncio.sleep(pause)
    program.send_signal(signal.SIGINT)
    code, out, err = await end_of(program)
    assert (code, out) == (130, "")
    assert "Traceback" not in err
    assert inn.engine.all_jobs[job_id].state is JobState.CANCELLED
    assert len(inn.engine.all_jobs) == 1


async def test_ctrl_c_of_stop_lets_the_job_go_on(both: tuple[Shell, Inn]) -> None:
    shell, inn = both
    inn.engine.hold = True
    program = await shell.start("stop", "g1")
    job_id = await wait_for_job(inn)
    await asyncio.sleep(0.6)
    program.send_signal(signal.SIGINT)
    code, _, err = await end_of(program)
    assert code == 130
    assert f"serai job wait {job_id}" in err
    assert inn.engine.all_jobs[job_id].state is JobState.QUEUED


@pytest.mark.parametrize("words", [["events", "-f"], ["log", "-f", "g1"], ["exec", "g1", "--", "sleep"]])  # fmt: skip
async def test_ctrl_c_of_what_lasts(both: tuple[Shell, Inn], words: list[str]) -> None:
    shell, inn = both
    inn.engine.log_path("g1").write_bytes(b"begun\n")
    program = await shell.start(*words)
    async with asyncio.timeout(LIMIT):
        if words[0] == "log":
            assert program.stdout is not None
            await program.stdout.readline()
        else:
            while not (inn.engine.watchers or inn.engine.running):
                await asyncio.sleep(0.005)
    program.send_signal(signal.SIGINT)
    code, _, err = await end_of(program)
    assert code == 130
    assert "Traceback" not in err


# -- pipes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [["events"], ["list"], ["list", "-q"], ["show", "g1"], ["log", "g1"], ["image", "export", "tiny", "-o", "-"]],
    ids=" ".join,
)  # fmt: skip
async def test_who_stops_reading_ends_it_quietly(both: tuple[Shell, Inn], words: list[str]) -> None:
    shell, inn = both
    inn.engine.add_guests(3000)
    inn.engine.log_path("g1").write_bytes(bytes(1 << 20))
    for number in range(3000):
        await inn.engine.tell(EventKind.GUEST_CREATED, f"g{number}")
    reading, writing = os.pipe()
    os.close(reading)
    program = await shell.start(*words, stdout=writing)
    os.close(writing)
    code, _, err = await end_of(program)
    assert err == ""
    assert code == 0


async def test_who_stops_reading_what_is_followed(both: tuple[Shell, Inn]) -> None:
    """``serai events -f | head -1``"""
    shell, inn = both
    program = await shell.start("events", "-f")
    async with asyncio.timeout(LIMIT):
        while not inn.engine.watchers:
            await asyncio.sleep(0.005)
        await inn.engine.tell(EventKind.GUEST_CREATED, "g1")
        assert program.stdout is not None
        assert b"g1" in await program.stdout.readline()
        program._transport.get_pipe_transport(1).close()  # type: ignore[attr-defined]
        while program.returncode is None:
            await inn.engine.tell(EventKind.GUEST_CREATED, "g2")
            await asyncio.sleep(0.01)
    assert program.stderr is not None
    assert await program.stderr.read() == b""


async def test_a_daemon_that_refuses_while_it_is_sent_much(both: tuple[Shell, Inn]) -> None:
    """Not a word of SIGPIPE: what the daemon said is told."""
    shell, _ = both
    program = await shell.start("push", "g1", "-", "/too-large", stdin=subprocess.PIPE)
    assert program.stdin is not None
    with contextlib.suppress(ConnectionError):
        for _ in range(100):
            program.stdin.write(bytes(1 << 20))
            await program.stdin.drain()
    with contextlib.suppress(ConnectionError):
        program.stdin.close()
    code, _, err = await end_of(program)
    assert code == 4, err
    assert "no space is left in the guest" in err


# -- terminals -------------------------------------------------------------------------------------


async def drawn(shell: Shell, inn: Inn, screen: Terminal, **env: str) -> bytes:
    inn.engine.hold = True
    words = {"stdin": screen.theirs, "stdout": screen.theirs, "stderr": screen.theirs}
    program = await shell.start("launch", "tiny", "web1", env={"TERM": "xterm", **env}, **words)
    job_id = await wait_for_job(inn)
    await asyncio.sleep(1.0)
    await inn.engine.finish(job_id)
    assert await asyncio.wait_for(program.wait(), LIMIT) == 0
    return screen.read_rest()


async def test_progress_is_drawn_on_a_terminal(
    both: tuple[Shell, Inn], terminal: "contextlib.AbstractContextManager[Terminal]"
) -> None:
    with terminal as screen:
        shown = await drawn(*both, screen)
    assert b"\x1b[" in shown
    assert b"\r" in shown
    assert b"web1 is running" in shown


async def test_nothing_is_drawn_elsewhere(both: tuple[Shell, Inn]) -> None:
    shell, inn = both
    inn.engine.hold = True
    program = await shell.start("launch", "tiny", "web1")
    job_id = await wait_for_job(inn)
    await asyncio.sleep(1.0)
    await inn.engine.finish(job_id)
    code, out, err = await end_of(program)
    assert code == 0
    assert out.startswith("web1 is running")
    assert not {"\x1b", "\r", "█"} & set(out + err)


@pytest.mark.parametrize(("env", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
@pytest.mark.parametrize("words", [["list"], ["show", "none"]], ids=" ".join)
async def test_colours_are_for_terminals_without_no_color(
    both: tuple[Shell, Inn],
    terminal: "contextlib.AbstractContextManager[Terminal]",
    words: list[str],
    env: dict[str, str],
    coloured: bool,
) -> None:
    shell, _ = both
    with terminal as screen:
        to = {"stdin": screen.theirs, "stdout": screen.theirs, "stderr": screen.theirs}
        program = await shell.start(*words, env={"TERM": "xterm", **env}, **to)
        await asyncio.wait_for(program.wait(), LIMIT)
        shown = screen.read_rest()
    assert shown
    assert (b"\x1b[" in shown) is coloured


# -- console ---------------------------------------------------------------------------------------


@pytest.fixture
async def guests_console(both: tuple[Shell, Inn]) -> AsyncIterator["asyncio.Queue[bytes]"]:
    """The guest's end: it greets, and says in capitals what it is told."""
    told: asyncio.Queue[bytes] = asyncio.Queue()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"login: ")
        while data := await reader.read(4096):
            told.put_nowait(data)
            writer.write(data.upper())
            if b"bye" in data:
                break
        writer.close()

    path = both[1].engine.folder / "console.sock"
    async with await asyncio.start_unix_server(talk, path):
        yield told


async def open_console(shell: Shell, screen: Terminal) -> asyncio.subprocess.Process:
    to = {"stdin": screen.theirs, "stdout": screen.theirs, "stderr": screen.theirs}
    program = await shell.start("console", "g1", env={"TERM": "xterm"}, **to)
    await screen.read_until(b"login: ")
    return program


async def test_console_passes_keys_until_its_own(
    both: tuple[Shell, Inn],
    terminal: "contextlib.AbstractContextManager[Terminal]",
    guests_console: "asyncio.Queue[bytes]",
) -> None:
    with terminal as screen:
        program = await open_console(both[0], screen)
        assert not screen.is_as_before
        screen.type(b"ls\r\x03\x1a\x04")  # ctrl-C and ctrl-D are the guest's
        await screen.read_until(b"LS\r\x03\x1a\x04")
        screen.type(b"x\x1dnever")
        assert await asyncio.wait_for(program.wait(), LIMIT) == 0
        assert screen.is_as_before
        assert b"ctrl-]" in screen.read_rest()
    told = b"".join([guests_console.get_nowait() for _ in range(guests_console.qsize())])
    assert told == b"ls\r\x03\x1a\x04x"


@pytest.mark.parametrize("end", ["guest", "SIGTERM", "SIGHUP", "daemon"])
async def test_console_puts_the_terminal_back(
    both: tuple[Shell, Inn],
    terminal: "contextlib.AbstractContextManager[Terminal]",
    guests_console: "asyncio.Queue[bytes]",
    end: str,
) -> None:
    with terminal as screen:
        program = await open_console(both[0], screen)
        assert not screen.is_as_before
        if end == "guest":
            screen.type(b"bye")
        elif end == "daemon":
            both[1].stop.set()
        else:
            program.send_signal(getattr(signal, end))
        code = await asyncio.wait_for(program.wait(), LIMIT)
        assert screen.is_as_before
        assert b"Traceback" not in screen.read_rest()
    assert code == {"guest": 0, "SIGTERM": 143, "SIGHUP": 129, "daemon": 8}[end]


async def test_console_of_a_stopped_guest(both: tuple[Shell, Inn]) -> None:
    shell, inn = both
    inn.engine.all_guests["g1"] = make_guest("g1", 1, state=GuestState.STOPPED)
    code, out, err = await end_of(await shell.start("console", "g1"))
    assert (code, out) == (4, "")
    assert "serai log g1" in err


async def test_console_from_a_pipe(
    both: tuple[Shell, Inn], guests_console: "asyncio.Queue[bytes]"
) -> None:
    program = await both[0].start("console", "g1", stdin=subprocess.PIPE)
    out, err = await asyncio.wait_for(program.communicate(b"echo hello\n"), LIMIT)
    assert out == b"login: ECHO HELLO\n"
    assert (program.returncode, err) == (0, b"")


# -- the fast path ---------------------------------------------------------------------------------

PROPER = "import sys; from serai.cli.main import main; sys.exit(main())"


@pytest.mark.parametrize("words", [list(words) for words in fast.FORMS], ids=" ".join)
async def test_the_fast_path_prints_what_the_proper_command_prints(
    both: tuple[Shell, Inn], words: list[str]
) -> None:
    shell, inn = both
    problem = Problem(family="host-failure", code="disk-full", message="voll: ü€\x1b")  # type: ignore[arg-type]
    inn.engine.all_guests["odd"] = make_guest(
        "odd", 99, labels={"k": 'ü" \\ \n'}, problem=problem, disk=5 << 40, memory=1536 << 20,
        created_at=0.0, state=GuestState.CRASHED,
    )  # fmt: skip
    quick = await end_of(await shell.start(*words))
    program = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROPER, *words,
        env=shell.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    proper = await end_of(program)
    assert quick == proper
    assert quick[0] == 0
    assert "odd" in quick[1]


async def test_the_fast_path_is_taken(both: tuple[Shell, Inn]) -> None:
    with mock.patch.dict(os.environ, both[0].environ):
        guests = await asyncio.to_thread(fast.fetch_guests)
    assert guests is not None
    assert json.loads((await both[0].run("list", "--format", "json")).out) == guests


paths = st.sampled_from(["", "/", "/a", "/a/b/", "rel", "./rel", "/a//b", "/a/./b", "~"])
places = st.fixed_dictionaries(
    {},
    optional={
        "SERAI_HOME": paths,
        "HOME": paths,
        "XDG_RUNTIME_DIR": paths,
        "XDG_DATA_HOME": paths,
        "XDG_STATE_HOME": paths,
    },
)


@given(environ=places, is_root=st.booleans())
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_fast_path_asks_the_same_daemon(environ: dict[str, str], is_root: bool) -> None:
    with (
        mock.patch.dict(os.environ, environ, clear=True),
        mock.patch.object(os, "geteuid", lambda: 0 if is_root else 1000),
    ):
        assert Path(fast._socket_path()) == find_places(os.environ, is_root=is_root).socket


def test_the_fast_path_goes_the_way_of_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``link/..`` is where the link leads, not where it is."""
    (tmp_path / "real" / "inner").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real" / "inner")
    monkeypatch.setenv("SERAI_HOME", f"{tmp_path}/link/../home")
    expected = find_places(os.environ, is_root=True).socket
    assert os.path.realpath(fast._socket_path()) == os.path.realpath(expected)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 500 Oops\r\n\r\n{}",
        b'HTTP/1.1 200 OK\r\n\r\n{"items": [',
        b'HTTP/1.1 200 OK\r\n\r\n{"items": [], "next": "more"}',
        b"HTTP/1.1 200 OK\r\n\r\n[]",
        b'HTTP/1.1 200 OK\r\n\r\n{"items": 3, "next": ""}',
        b"\xff\xfe",
    ],
)
async def test_an_answer_that_is_none_is_left_to_the_proper_command(
    serai_home: Path, answer: bytes
) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    shell = Shell(serai_home)
    async with await asyncio.start_unix_server(serve, serai_home / "run" / "api.sock"):
        with mock.patch.dict(os.environ, shell.environ):
            assert await asyncio.to_thread(fast.fetch_guests) is None
            assert fast.try_fast(["list", "--frobnicate"]) is None


def test_light_things_stay_light() -> None:
    """What is imported decides how long a command takes to start."""
    script = (
        "import sys, serai, serai.__main__; "
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)  # fmt: skip
    heavy = {"click", "asyncio", "httpx", "msgspec", "http", "websockets", "litestar", "logging"}
    assert not heavy & set(done.stdout.split())
