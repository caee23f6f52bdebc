"""A descriptor planted in a process that waits: it gets one, and goes on as if nothing had been."""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from serai.host import inject, userfault

ECHO = "import sys\nfor line in sys.stdin: print(line.strip(), flush=True)"
GETPPID, CLOSE = 110, 3


@contextmanager
def waiting() -> "Iterator[subprocess.Popen[str]]":
    """A process that waits for its input."""
    argv = [sys.executable, "-c", ECHO]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as made:
        assert asked(made, "ready") == "ready"
        yield made
        made.kill()


def asked(process: "subprocess.Popen[str]", text: str) -> str:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(f"{text}\n")
    process.stdin.flush()
    return process.stdout.readline().strip()


def test_a_call_is_made_in_its_name() -> None:
    with waiting() as process:
        assert inject.call_in(process.pid, GETPPID, 0) == os.getpid()
        for number in range(200):
            assert inject.call_in(process.pid, GETPPID, 0) == os.getpid()
            assert asked(process, str(number)) == str(number)


def test_a_call_that_fails_says_so() -> None:
    with waiting() as process:
        with pytest.raises(OSError) as caught:
            inject.call_in(process.pid, CLOSE, 12345)
        assert caught.value.errno == 9
        assert asked(process, "on") == "on"


def test_a_process_that_has_ended() -> None:
    with waiting() as process:
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(OSError):
            inject.call_in(process.pid, GETPPID, 0)
        assert process.wait() == -signal.SIGKILL  # its end is still there for its owner


def test_another_architecture_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    with pytest.raises(OSError, match="architecture"):
        inject.call_in(os.getppid(), GETPPID, 0)


def test_what_is_planted_is_found_again() -> None:
    try:
        os.close(userfault._make_ready(userfault._make_own()))
    except OSError as error:
        pytest.skip(f"this kernel notes no writes: {error}")
    with waiting() as process:
        before = len(os.listdir("/proc/self/fd"))
        start = ctypes.addressof(ctypes.c_long())  # not theirs, so nothing can be watched there
        assert not userfault.watch(process.pid, start, 4096)
        userfault.plant(process.pid)
        links = [
            userfault._link_of(process.pid, int(each))
            for each in os.listdir(f"/proc/{process.pid}/fd")
        ]
        assert links.count(userfault.LINK) == 1
        with open(f"/proc/{process.pid}/maps") as maps:
            (heap,) = (line for line in maps if "[heap]" in line)
        begin, end = (int(each, 16) for each in heap.split()[0].split("-"))
        assert userfault.watch(process.pid, begin, end - begin)
        assert userfault.watch(process.pid, begin, end - begin)
        assert asked(process, "on") == "on"
        assert len(os.listdir("/proc/self/fd")) == before


def test_an_old_kernel_stops_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(userfault, "FEATURES", 1 << 60)
    monkeypatch.setattr(userfault, "call_in", lambda *_: pytest.fail("it was stopped in vain"))
    with pytest.raises(OSError):
        userfault.plant(os.getppid())
