"""What must be quick imports next to nothing, and the quick way and the long way agree."""

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cli_stage import Stage, run_here, staged

from serai.cli import fast
from serai.settings import find_places

SHOW_MODULES = """
import sys
sys.argv = ["serai", *sys.argv[1:]]
from serai.__main__ import main
code = main()
print(*sys.modules, file=sys.stderr)
sys.exit(code)
"""


@pytest.fixture
def stage(serai_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    with staged(serai_home, monkeypatch) as made:
        made.engine.add_guests(2)
        yield made


def modules_of(stage: Stage, *words: str) -> set[str]:
    argv = [sys.executable, "-I", "-c", SHOW_MODULES, *words]
    # what measures coverage imports a lot by itself
    env = {name: value for name, value in stage.environ.items() if not name.startswith("COVERAGE")}
    done = subprocess.run(argv, env=env, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stderr.decode().split())


HEAVY = {"asyncio", "http.client", "msgspec", "rich", "websockets", "httpx", "ssl", "email.parser"}


@pytest.mark.parametrize(
    "words", [["list"], ["list", "--format", "json"], ["list", "--format=table"]]
)
def test_the_list_imports_next_to_nothing(stage: Stage, words: list[str]) -> None:
    found = modules_of(stage, *words)
    assert "serai.cli.fast" in found
    too_much = {*HEAVY, "click", "dataclasses", "pathlib", "typing", "inspect", "subprocess"}
    assert not found & too_much


@pytest.mark.parametrize(
    ("words", "also"),
    [
        (["--help"], {"serai.client", "http.client", "serai.cli.guests"}),
        (["show", "g0"], {"serai.cli.verbs", "serai.cli.inside"}),
        (["exec", "g0", "--", "ls"], {"serai.cli.guests"}),
        (["stop", "g0"], {"serai.cli.guests"}),
        (["vnc", "g0"], {"serai.cli.forward"}),
    ],
)
def test_a_command_imports_only_what_it_needs(
    stage: Stage, words: list[str], also: set[str]
) -> None:
    heavy = HEAVY - {"msgspec", "http.client", "email.parser", "ssl"}
    assert not modules_of(stage, *words) & (heavy | also)


@pytest.mark.parametrize("is_root", [True, False])
@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"HOME": "/home/u"},
        {"HOME": ""},
        {"SERAI_HOME": "/srv/x"},
        {"SERAI_HOME": "relative/../x"},
        {"SERAI_HOME": ""},
        {"XDG_RUNTIME_DIR": "/run/user/7", "HOME": "/home/u"},
        {"XDG_RUNTIME_DIR": "relative", "HOME": "/home/u"},
        {"XDG_DATA_HOME": "/data", "HOME": "/home/u"},
        {"XDG_DATA_HOME": "relative", "HOME": "/home/u"},
    ],
)
def test_both_ways_find_the_same_socket(
    monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], is_root: bool
) -> None:
    for name in ("SERAI_HOME", "HOME", "XDG_RUNTIME_DIR", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "geteuid", lambda: 0 if is_root else 1000)
    found = os.path.normpath(fast._socket_path())
    assert found == os.path.normpath(find_places(environ, is_root=is_root).socket)


@contextmanager
def answering(path: Path, *answers: bytes) -> Iterator[None]:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def serve() -> None:
        for answer in answers:
            sock, _ = listener.accept()
            with sock:
                sock.recv(65536)
                sock.sendall(answer)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield
    thread.join(10)
    listener.close()


ANSWERS = {
    "nothing": b"",
    "a problem": b'HTTP/1.1 500 X\r\n\r\n{"code":"bug"}',
    "half": b'HTTP/1.1 200 OK\r\n\r\n{"items":[{"name":"a"',
    "no JSON": b"HTTP/1.1 200 OK\r\n\r\nhello",
    "no page": b"HTTP/1.1 200 OK\r\n\r\n[]",
    "not the last page": b'HTTP/1.1 200 OK\r\n\r\n{"items":[],"next":"more"}',
}


@pytest.mark.parametrize("name", ANSWERS)
def test_what_is_not_plain_is_left_to_the_long_way(
    serai_home: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("SERAI_HOME", str(serai_home))
    (serai_home / "run").mkdir()
    with answering(serai_home / "run" / "api.sock", ANSWERS[name]):
        assert fast.fetch_guests() is None


def test_the_long_way_says_what_is_wrong(serai_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERAI_HOME", str(serai_home))
    (serai_home / "run").mkdir()
    with answering(serai_home / "run" / "api.sock", b"", b""):
        done = run_here(monkeypatch, ("list",))
    assert (done.code, done.out) == (8, b"")


def test_thousands_of_guests_are_listed(stage: Stage) -> None:
    stage.engine.add_guests(3000)
    assert len(json.loads(stage.serai("list", "--format", "json").out)) == 3000
    assert len(stage.serai("list").text.splitlines()) == 3001
