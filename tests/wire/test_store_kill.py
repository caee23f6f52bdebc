"""Kill -9 at any moment: what was acknowledged is there, whole, and the database is sound."""

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

ROUNDS = 20
LONGEST_LIFE = 0.2


@pytest.fixture
def victim() -> Iterator[subprocess.Popen[str]]:
    program = [sys.executable, str(Path(__file__).with_name("store_victim.py"))]
    with subprocess.Popen(
        program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(timeout=10) == 0


def live_and_die(victim: subprocess.Popen[str], path: Path, turn: int) -> list[int]:
    """Let a child commit for a while, kill it, and return what it had acknowledged.

    In every other turn the while begins with its first commit; else it may be killed at its birth.
    """
    assert victim.stdin is not None
    assert victim.stdout is not None
    victim.stdin.write(f"{1 + turn * 100_000} {path}\n")
    pid = int(victim.stdout.readline().removeprefix("pid "))
    acknowledged = [int(victim.stdout.readline())] if turn % 2 else []
    time.sleep(random.uniform(0.0, LONGEST_LIFE))
    os.kill(pid, signal.SIGKILL)
    return acknowledged + [int(line) for line in iter(victim.stdout.readline, "dead\n")]


def read_all(path: Path, sql: str) -> set[int]:
    with closing(sqlite3.connect(path)) as connection:
        return {int(value) for (value,) in connection.execute(sql)}


def test_what_was_acknowledged_survives(victim: subprocess.Popen[str], tmp_path: Path):
    path = tmp_path / "serai.db"
    acknowledged: set[int] = set()
    for turn in range(ROUNDS):
        acknowledged |= set(live_and_die(victim, path, turn))
        with closing(sqlite3.connect(path)) as connection:
            assert connection.execute("pragma integrity_check").fetchall() == [("ok",)]
    guests = read_all(path, "select number from guests")
    assert acknowledged <= guests
    assert read_all(path, "select json_extract(body, '$.subject') from events") == guests
    assert len(acknowledged) >= ROUNDS // 2
