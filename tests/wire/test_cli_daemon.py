"""``serai daemon``: a real daemon in the background, started, asked, stopped; and what goes wrong."""

import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cli_stage import Done

LIMIT = 60.0


class Home:
    """A home for a daemon, and commands that talk to it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.environ = {**os.environ, "SERAI_HOME": str(path), "SERAI_ACCEL": "tcg"}

    def serai(self, *words: str, **environ: str) -> Done:
        done = subprocess.run(
            [sys.executable, "-m", "serai", *words],
            env={**self.environ, **environ}, capture_output=True, timeout=LIMIT, check=False,
        )  # fmt: skip
        return Done(done.returncode, done.stdout, done.stderr.decode())

    @property
    def lock(self) -> Path:
        return self.path / "run" / "daemon.lock"


@pytest.fixture
def home(serai_home: Path) -> Iterator[Home]:
    made = Home(serai_home)
    yield made
    assert made.serai("daemon", "stop").code == 0


def test_start_status_stop(home: Home) -> None:
    started = home.serai("daemon", "start")
    assert (started.code, started.text[:28]) == (0, "the daemon runs, as process ")
    again = home.serai("daemon", "start")
    assert again.text == started.text.replace("runs,", "runs already,")
    status = json.loads(home.serai("daemon", "status", "--format", "json").out)
    assert str(status["pid"]) in started.text
    assert status["version"]
    text = home.serai("daemon", "status").text
    assert f"pid:         {status['pid']}" in text and str(home.path) in text
    assert os.getsid(status["pid"]) == status["pid"], "it is in a session of its own"
    assert home.serai("list").code == 0
    assert home.serai("daemon", "stop").text == "the daemon is stopped\n"
    assert not (home.path / "run" / "api.sock").exists()
    assert home.serai("daemon", "stop").text == "no daemon runs\n"
    gone = home.serai("daemon", "status")
    assert (gone.code, gone.out) == (3, b"")
    assert "hint: Start it: serai daemon start" in gone.err


def test_many_start_it_at_once_and_one_is_started(home: Home) -> None:
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda _: home.serai("daemon", "start"), range(4)))
    assert [each.code for each in done] == [0] * 4, [each.err for each in done]
    assert len({each.text.split()[-1] for each in done}) == 1


def test_one_that_can_not_start_says_why(home: Home) -> None:
    done = home.serai("daemon", "start", SERAI_HEARTBEAT="often")
    assert (done.code, done.out) == (7, b"")
    assert "'often' is not a duration" in done.err
    assert str(home.path / "state" / "daemon.log") in done.err
    assert home.serai("daemon", "start", "--format", "json").code == 0


def test_run_in_the_foreground(home: Home) -> None:
    reading, writing = os.pipe()
    argv = [sys.executable, "-m", "serai", "daemon", "run", "--ready-fd", str(writing)]
    with subprocess.Popen(
        argv, env=home.environ, pass_fds=(writing,), stderr=subprocess.PIPE
    ) as run:
        os.close(writing)
        assert os.read(reading, 1) == b"1"
        os.close(reading)
        second = home.serai("daemon", "run")
        assert (second.code, "a daemon runs here already" in second.err) == (4, True)
        run.send_signal(signal.SIGINT)
        assert run.wait(LIMIT) == 0


HANGS = """
import fcntl, os, sys, time
file = open(sys.argv[1], "a+")
fcntl.flock(file, fcntl.LOCK_EX)
file.truncate(0)
file.write(f"{os.getpid()}\\n")
file.flush()
print("holds it", flush=True)
time.sleep(600)
"""


def test_one_that_does_not_answer_can_be_stopped(home: Home) -> None:
    home.lock.parent.mkdir()
    argv = [sys.executable, "-c", HANGS, str(home.lock)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as hanging:
        assert hanging.stdout is not None
        hanging.stdout.readline()
        done = home.serai("daemon", "stop", "--format", "json")
        assert (done.code, json.loads(done.out)["pid"]) == (0, hanging.pid)
        assert hanging.wait(LIMIT) == -signal.SIGTERM


def test_a_number_in_a_lock_that_nobody_holds_is_no_daemon(home: Home) -> None:
    home.lock.parent.mkdir()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as innocent:
        home.lock.write_text(f"{innocent.pid}\n")
        assert home.serai("daemon", "stop").text == "no daemon runs\n"
        with home.lock.open() as held_by_us:
            fcntl.flock(held_by_us, fcntl.LOCK_EX)
            assert home.serai("daemon", "stop").text == "no daemon runs\n"
        assert innocent.poll() is None
        innocent.kill()
