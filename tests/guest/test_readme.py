"""The README is true: its tour is walked, its example is run."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from keeper import Daemon

README = (Path(__file__).parents[2] / "README.md").read_text()
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SET_UP = ("serai daemon start", "serai image build tiny")
LIMIT = 60.0


def blocks(language: str) -> list[str]:
    return [text for found, text in BLOCK.findall(README) if found == language]


def steps() -> list[tuple[str, str]]:
    """Return the commands of the tour and what is printed below each."""
    found: list[tuple[str, str]] = []
    for line in "".join(blocks("console")).splitlines():
        if line.startswith("$ "):
            found.append((line[2:], ""))
        else:
            command, told = found.pop()
            found.append((command, f"{told}{line}\n"))
    return [each for each in found if each[0] not in SET_UP]


def plain(text: str) -> list[str]:
    """Take everything out that differs from run to run: times, sizes, versions, digests."""
    text = re.sub(r"\bsha256:[0-9a-f]+", "DIGEST", text)
    text = re.sub(r"\b[0-9.]+ ?(ms|s|min)\b|\bnow\b", "TIME", text)
    return re.sub(r"\d[\w.-]*", "NUMBER", text).split()


def test_its_tour(daemon: Daemon) -> None:
    assert len(steps()) > 10
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    for command, told in steps():
        done = subprocess.run(
            ["sh", "-c", command],
            env={**daemon.environ, "PATH": path},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )
        assert done.returncode == 0, (command, done.stderr)
        assert plain(done.stdout) == plain(told), command
    assert daemon.inn.guests() == []


def test_its_example(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SERAI_HOME", str(daemon.home))
    (example,) = blocks("python")
    exec(compile(example, "README.md", "exec"), {})
    assert re.findall(r"True|False", capsys.readouterr().out) == ["True"] * 3
    assert daemon.inn.guests() == []
