"""Commands as processes: at a terminal, interrupted, with pipes that break."""

import contextlib
import json
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_stage import Stage, staged

from serai.model.event import EventKind
from serai.model.job import JobState
from serai.model.talk import VncAddress

LIMIT = 30.0


@pytest.fixture
def stage(serai_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    with staged(serai_home, monkeypatch) as made:
        made.engine.add_guests(1)
        yield made


class Terminal:
    """A terminal that a command runs at, and what it has shown."""

    def __init__(self, process: "subprocess.Popen[bytes]", ours: int) -> None:
        self.process = process
        self.ours = ours
        self.shown = b""

    def until(self, wanted: bytes) -> bytes:
        """Read until ``wanted`` is shown."""
        deadline = time.monotonic() + LIMIT
        while wanted not in self.shown:
            ready, _, _ = select.select([self.ours], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"{wanted!r} was not shown, but {self.shown!r}"
            self.shown += os.read(self.ours, 4096)
        return self.shown

    def type(self, keys: bytes) -> None:
        """Press keys."""
        os.write(self.ours, keys)


@contextlib.contextmanager
def terminal(stage: Stage, *words: str, **environ: str) -> Iterator[Terminal]:
    ours, theirs = pty.openpty()
    argv = [sys.executable, "-m", "serai", *words]
    env = {**stage.environ, "TERM": "xterm", **environ}
    process = subprocess.Popen(
        argv, env=env, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    )
    before = termios.tcgetattr(theirs)
    try:
        yield Terminal(process, ours)
        assert termios.tcgetattr(theirs) == before, "the terminal was not put back"
    finally:
        process.kill()
        process.wait()
        os.close(theirs)
        os.close(ours)


@pytest.fixture
def echo(stage: Stage) -> Iterator[list[socket.socket]]:
    """A serial console that answers with what is typed, in capitals."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(stage.engine.folder / "console.sock"))
    listener.listen()
    opened: list[socket.socket] = []

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = listener.accept()
                opened.append(sock)
                while data := sock.recv(4096):
                    sock.sendall(data.upper())

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield opened
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    for sock in opened:
        sock.close()
    thread.join(LIMIT)


# -- console ---------------------------------------------------------------------------------------


def test_console_at_a_terminal_until_escape(stage: Stage, echo: list[socket.socket]) -> None:
    with terminal(stage, "console", "g0") as seen:
        seen.until(b"leave with ctrl-]\r\n")
        seen.type(b"hello\x03")
        seen.until(b"HELLO\x03")
        seen.type(b"last\x1dnot sent")
        assert seen.process.wait(LIMIT) == 0
        assert b"NOT" not in seen.shown


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_console_that_is_ended_puts_the_terminal_back(
    stage: Stage, echo: list[socket.socket], number: int
) -> None:
    with terminal(stage, "console", "g0") as seen:
        seen.until(b"leave with ctrl-]")
        seen.process.send_signal(number)
        assert seen.process.wait(LIMIT) == 128 + number


def test_a_console_ends_with_its_guest(stage: Stage, echo: list[socket.socket]) -> None:
    with terminal(stage, "console", "g0") as seen:
        seen.until(b"leave with ctrl-]")
        seen.type(b"x")
        seen.until(b"X")
        echo[0].shutdown(socket.SHUT_RDWR)
        assert seen.process.wait(LIMIT) == 0


def test_a_console_says_when_the_daemon_stops(stage: Stage, echo: list[socket.socket]) -> None:
    with terminal(stage, "console", "g0") as seen:
        seen.until(b"leave with ctrl-]")
        stage.stop()
        seen.until(b"the daemon is stopping; the guest runs on")
        assert seen.process.wait(LIMIT) == 8


def test_console_with_a_pipe(stage: Stage, echo: list[socket.socket]) -> None:
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with stage.process("console", "g0", **pipes) as process:
        out, _ = process.communicate(b"hello\n" * 1000, LIMIT)
        assert (process.returncode, out) == (0, b"HELLO\n" * 1000)


def test_console_of_a_guest_that_is_off(stage: Stage) -> None:
    stage.serai("stop", "g0")
    done = stage.serai("console", "g0", stdin=b"")
    assert done.code == 4
    assert "serai log g0" in done.err
    stage.serai("resume", "g0")
    (stage.engine.folder / "console.sock").unlink(missing_ok=True)
    assert stage.serai("console", "g0", stdin=b"").code != 0


# -- interruptions ---------------------------------------------------------------------------------


def _interrupted(stage: Stage, *words: str, then: bytes) -> tuple[int, str]:
    stage.engine.hold = True
    with stage.process(*words, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + LIMIT
        while not stage.engine.all_jobs and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)  # so that it waits for the job by now; if not, it was told of it anyway
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=LIMIT)
        assert then in err, err
        return process.returncode, err.decode()


def test_an_interrupted_verb_says_how_to_wait_for_it(stage: Stage) -> None:
    code, _ = _interrupted(stage, "stop", "g0", then=b"serai job wait 000000")
    assert code == 130
    assert stage.engine.all_jobs["000000"].state is JobState.QUEUED


def test_an_interrupted_launch_is_cancelled_and_says_what_is_left(stage: Stage) -> None:
    code, err = _interrupted(stage, "launch", "tiny", "web1", then=b"serai delete --force web1")
    assert (code, "web1 is running" in err) == (130, True)
    assert stage.engine.all_jobs["000000"].state is JobState.CANCELLED


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("fork g0 x --count 3", b"cancelled: there are no forks of g0"),
        ("snapshot create g0 ready", b"cancelled: there is no snapshot of g0"),
        ("image publish g0 mine", b"cancelled: there is no image of g0"),
    ],
)
def test_what_is_left_of_interrupted_forks_and_snapshots_is_told(
    stage: Stage, words: str, told: bytes
) -> None:
    code, _ = _interrupted(stage, *words.split(), then=told)
    assert code == 130


def test_an_interrupted_build_is_cancelled(stage: Stage) -> None:
    code, _ = _interrupted(stage, "image", "build", "tiny", then=b"nothing is left of tiny")
    assert code == 130


# -- progress --------------------------------------------------------------------------------------


def test_progress_is_drawn_on_a_terminal_and_gone_at_the_end(stage: Stage) -> None:
    stage.engine.hold = True
    with terminal(stage, "start", "g0") as seen:
        seen.until(b"g0: waiting")
        stage.do(stage.engine.finish("000000"))
        drawn = seen.until(b"g0 is started")
        assert b"\x1b[2K" in drawn.rpartition(b"g0: waiting")[2], "the bar is still there"
        assert seen.process.wait(LIMIT) == 0


def test_nothing_is_drawn_for_what_takes_a_moment(stage: Stage) -> None:
    with terminal(stage, "stop", "g0") as seen:
        seen.process.wait(LIMIT)
        assert seen.until(b"\n") == b"g0 is stopped\r\n"


# -- colours and pipes -----------------------------------------------------------------------------


@pytest.mark.parametrize(("environ", "is_coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_colours_only_on_a_terminal_that_wants_them(
    stage: Stage, environ: dict[str, str], is_coloured: bool
) -> None:
    for words in (["list"], ["list", "--label", "nope=1"], ["show", "nope"]):
        with terminal(stage, *words, **environ) as seen:
            seen.process.wait(LIMIT)
            seen.until(b"\n")
            if words != ["list", "--label", "nope=1"]:
                assert (b"\x1b[" in seen.shown) == is_coloured
    assert "\x1b" not in stage.serai("list").text + stage.serai("show", "nope").err


@pytest.mark.parametrize("words", [["list"], ["list", "-q"], ["events", "-f", "--after", "0"]])
def test_a_broken_pipe_is_quiet(stage: Stage, words: list[str]) -> None:
    stage.do(stage.engine.tell(EventKind.GUEST_CREATED, "g0"))
    reading, writing = os.pipe()
    os.close(reading)
    with stage.process(*words, stdout=writing, stderr=subprocess.PIPE) as process:
        os.close(writing)
        _, err = process.communicate(timeout=LIMIT)
        assert (process.returncode, err) == (0, b"")


def test_a_closed_standard_input_is_none(stage: Stage) -> None:
    script = f"exec {sys.executable} -m serai exec g0 -- cat <&-"
    done = subprocess.run(["sh", "-c", script], env=stage.environ, capture_output=True, timeout=LIMIT, check=False)  # fmt: skip
    assert (done.returncode, done.stdout) == (0, b"cat")


def test_an_encoding_without_our_characters_is_no_error(stage: Stage) -> None:
    stage.do(stage.engine.tell(EventKind.GUEST_CREATED, "täg…"))
    env = {**stage.environ, "PYTHONIOENCODING": "ascii"}
    argv = [sys.executable, "-m", "serai", "events"]
    done = subprocess.run(argv, env=env, capture_output=True, timeout=LIMIT, check=False)
    assert (done.returncode, done.stdout.split()[-1]) == (0, b"t?g?")


def test_events_are_followed_until_the_daemon_ends(stage: Stage) -> None:
    words = ("events", "-f", "--after", "0", "--format", "json")
    stage.do(stage.engine.tell(EventKind.GUEST_CREATED, "first"))
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with stage.process(*words, **pipes) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["subject"] == "first"
        stage.do(stage.engine.tell(EventKind.GUEST_CREATED, "second"))
        assert json.loads(process.stdout.readline())["subject"] == "second"
        stage.stop()
        _, err = process.communicate(timeout=LIMIT)
        assert (process.returncode, json.loads(err)["code"]) == (8, "daemon-stopping")


def test_a_log_is_followed(stage: Stage) -> None:
    path = stage.engine.log_path("g0")
    path.write_bytes(b"one\n")
    with stage.process("log", "-f", "g0", stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"one\n"
        with path.open("ab") as log:
            log.write(b"two\n")
        assert process.stdout.readline() == b"two\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(LIMIT) == 130


def test_vnc_is_forwarded_to_several_viewers(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    path = stage.engine.folder / "vnc.sock"
    screen = socket.socket(socket.AF_UNIX)
    screen.bind(str(path))
    screen.listen()
    monkeypatch.setattr(stage.engine, "vnc", lambda guest: VncAddress(socket=str(path)))
    with stage.process("vnc", "g0", "--tcp", "0", stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        host, _, port = process.stdout.readline().decode().strip().partition(":")
        assert host == "127.0.0.1"
        viewers = [socket.create_connection((host, int(port))) for _ in range(2)]
        for viewer in viewers:
            there, _ = screen.accept()
            there.sendall(b"RFB 003.008\n")
            assert viewer.recv(100) == b"RFB 003.008\n"
            viewer.sendall(b"hello")
            assert there.recv(100) == b"hello"
            there.close()
            assert viewer.recv(100) == b""
            viewer.close()
        screen.close()
        process.send_signal(signal.SIGINT)
        assert process.wait(LIMIT) == 0
