"""The blocking and the async connection against a peer that misbehaves in every way it can."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from serai.client import guest_calls, image_calls
from serai.client.async_connection import AsyncConnection
from serai.client.blocking import Connection
from serai.client.calls import Call
from serai.errors import Bug, Code, Conflict, Interrupted, NotFound, SeraiError

Peer = Callable[[socket.socket], None]

OK = b"HTTP/1.1 200 OK\r\ncontent-type: x/y\r\n"
LIMIT = 10.0


def say(data: bytes) -> Peer:
    """Return a peer that reads a head and answers with ``data``."""

    def peer(sock: socket.socket) -> None:
        read_head(sock)
        sock.sendall(data)

    return peer


def read_head(sock: socket.socket) -> bytes:
    seen = b""
    while b"\r\n\r\n" not in seen:
        piece = sock.recv(1)
        if not piece:
            break
        seen += piece
    return seen


@contextmanager
def peers(path: Path, *each: Peer) -> Iterator[None]:
    """Serve one connection by each of the peers, in order."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    listener.settimeout(LIMIT)

    def serve() -> None:
        for peer in each:
            sock, _ = listener.accept()
            sock.settimeout(LIMIT)
            with sock:
                peer(sock)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield
        thread.join(LIMIT)
        assert not thread.is_alive()
    finally:
        listener.close()


@pytest.fixture
def path(serai_home: Path) -> Path:
    return serai_home / "api.sock"


async def ask_both(path: Path, call: Call[Any], peer: Peer) -> list[Any]:
    """Ask by both connections; an error counts as an answer."""
    answers = []
    with peers(path, peer):
        answers.append(await asyncio.to_thread(_ask_blocking, path, call))
    path.unlink()
    with peers(path, peer):
        connection = AsyncConnection(path)
        try:
            answers.append(await connection.ask(call))
        except SeraiError as error:
            answers.append(error)
        await connection.close()
    return answers


def _ask_blocking(path: Path, call: Call[Any]) -> Any:
    connection = Connection(path)
    try:
        return connection.ask(call)
    except SeraiError as error:
        return error
    finally:
        connection.close()


PICTURE = guest_calls.take_screenshot("g")
PROBLEM = b'{"family":"conflict","code":"guest-state","message":"no","hint":"h","status":409,"x":1}'

MISBEHAVIOUR: dict[str, tuple[bytes, type[SeraiError], Code]] = {
    "a problem": (
        b"HTTP/1.1 409 Conflict\r\ncontent-length: %d\r\n\r\n" % len(PROBLEM) + PROBLEM,
        Conflict, Code.GUEST_STATE,
    ),
    "an error without a problem": (
        b"HTTP/1.1 500 Oops\r\ncontent-length: 4\r\n\r\noops", Interrupted, Code.DAEMON_UNREACHABLE
    ),
    "a problem of a code from the future": (
        b'HTTP/1.1 400 X\r\ncontent-length: 50\r\n\r\n{"family":"invalid","code":"future","message":"m"}',
        Bug, Code.BUG,
    ),
    "nothing": (b"", Interrupted, Code.DAEMON_UNREACHABLE),
    "half a head": (OK, Interrupted, Code.DAEMON_UNREACHABLE),
    "half a body": (OK + b"content-length: 10\r\n\r\nabc", Interrupted, Code.DAEMON_UNREACHABLE),
    "half a chunk": (
        OK + b"transfer-encoding: chunked\r\n\r\n5\r\nabc", Interrupted, Code.DAEMON_UNREACHABLE
    ),
    "no HTTP": (b"SSH-2.0-OpenSSH\r\n\r\n", Interrupted, Code.DAEMON_UNREACHABLE),
}  # fmt: skip


@pytest.mark.parametrize("name", MISBEHAVIOUR)
async def test_a_bad_answer_is_an_error_of_ours(path: Path, name: str) -> None:
    data, kind, code = MISBEHAVIOUR[name]
    for answer in await ask_both(path, PICTURE, say(data)):
        assert (type(answer), answer.code) == (kind, code), answer


@pytest.mark.parametrize("body", [b"[]", b"{", b"{}", b'{"items":1}', b"\xff"])
async def test_an_answer_of_another_version_is_a_bug_with_a_hint(path: Path, body: bytes) -> None:
    data = OK + b"content-length: %d\r\n\r\n" % len(body) + body
    for answer in await ask_both(path, image_calls.list_images(), say(data)):
        assert isinstance(answer, Bug)
        assert "one version" in answer.hint


async def test_a_silent_daemon_is_given_up(path: Path) -> None:
    call: Call[bytes] = Call(method="GET", path="/v1/x", timeout=0.2)

    def silent(sock: socket.socket) -> None:
        read_head(sock)
        assert sock.recv(1) == b""  # until the client has enough

    for answer in await ask_both(path, call, silent):
        assert isinstance(answer, Interrupted)
        assert answer.code is Code.TIMEOUT


async def test_nobody_listens(path: Path) -> None:
    for connect in (False, True):
        if connect:
            socket.socket(socket.AF_UNIX).bind(str(path))  # a file that nobody listens at
        with pytest.raises(NotFound, match="no daemon answers") as blocking:
            Connection(path).ask(PICTURE)
        with pytest.raises(NotFound, match="no daemon answers"):
            await AsyncConnection(path).ask(PICTURE)
        assert blocking.value.hint == "Start it: serai daemon start"


async def test_a_long_path_is_reached(serai_home: Path) -> None:
    folder = serai_home / ("x" * 150)
    folder.mkdir()
    short = serai_home / "short.sock"
    with peers(short, *[say(OK + b"content-length: 2\r\n\r\nok")] * 2):
        short.rename(folder / "api.sock")
        asked = await asyncio.to_thread(_ask_blocking, folder / "api.sock", PICTURE)
        connection = AsyncConnection(folder / "api.sock")
        assert asked == await connection.ask(PICTURE) == b"ok"
        await connection.close()


def test_a_kept_connection_is_used_again_and_a_closed_one_is_not(path: Path) -> None:
    answer = OK + b"content-length: 1\r\n\r\n"
    asked: list[bytes] = []

    def twice(sock: socket.socket) -> None:
        for number in (b"1", b"2"):
            asked.append(read_head(sock))
            sock.sendall(answer + number)

    with peers(path, twice, say(answer + b"3")):
        connection = Connection(path)
        assert [connection.ask(PICTURE), connection.ask(PICTURE)] == [b"1", b"2"]
        deadline = time.monotonic() + LIMIT
        while not connection._idle[0].has_answer and time.monotonic() < deadline:
            pass
        assert connection.ask(PICTURE) == b"3"
    assert len(asked) == 2


def test_a_connection_goes_on_after_a_problem(path: Path) -> None:
    data, _, _ = MISBEHAVIOUR["a problem"]
    with peers(path, say(data), say(OK + b"content-length: 1\r\n\r\nx")):
        connection = Connection(path)
        with pytest.raises(Conflict):
            connection.ask(PICTURE)
        connection.close()
        assert connection.ask(PICTURE) == b"x"


def pieces_of(path: Path) -> list[bytes]:
    return list(Connection(path).stream(guest_calls.show_log("g")))


def test_a_stream_is_given_as_it_comes(path: Path) -> None:
    gone_on = threading.Event()

    def slow(sock: socket.socket) -> None:
        read_head(sock)
        sock.sendall(OK + b"transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n")
        assert gone_on.wait(LIMIT)
        sock.sendall(b"2\r\nde\r\n0\r\n\r\n")

    with peers(path, slow):
        stream = Connection(path).stream(guest_calls.show_log("g"))
        assert next(stream) == b"abc"
        gone_on.set()
        assert list(stream) == [b"de"]


@pytest.mark.parametrize(
    "data",
    [
        OK + b"content-length: 10\r\n\r\nabc",
        OK + b"transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n",
        OK + b"transfer-encoding: chunked\r\n\r\n9\r\nabc",
    ],
    ids=["length", "between chunks", "in a chunk"],
)
async def test_a_stream_that_is_cut_off_is_an_error(path: Path, data: bytes) -> None:
    with peers(path, say(data)), pytest.raises(Interrupted, match="cut off"):
        pieces_of(path)
    path.unlink()
    with peers(path, say(data)):
        connection = AsyncConnection(path)
        with pytest.raises(Interrupted, match="cut off"):
            async for _ in connection.stream(guest_calls.show_log("g")):
                pass
        await connection.close()


def _goes_on_reading(sock: socket.socket) -> None:
    say(MISBEHAVIOUR["a problem"][0])(sock)
    while sock.recv(1 << 16):
        pass


@pytest.mark.parametrize("peer", [say(MISBEHAVIOUR["a problem"][0]), _goes_on_reading])
def test_an_upload_stops_when_it_is_refused(path: Path, peer: Peer) -> None:
    given = 0

    def long() -> Iterator[bytes]:
        nonlocal given
        while given < 20_000:
            given += 1
            yield bytes(1 << 16)

    call = guest_calls.push_file("g", "/f", mode=0o644, unpack=False)
    with peers(path, peer), pytest.raises(Conflict, match="no"):
        Connection(path).send(call, long())
    assert given < 19_000


def test_an_upload_whose_source_fails_says_why_and_is_cut(path: Path) -> None:
    seen = b""

    def listen(sock: socket.socket) -> None:
        nonlocal seen
        while piece := sock.recv(1 << 16):
            seen += piece

    def failing() -> Iterator[bytes]:
        yield b"first"
        raise PermissionError(13, "may not", "/x")

    call = guest_calls.push_file("g", "/f", mode=0o644, unpack=False)
    with peers(path, listen), pytest.raises(PermissionError, match="may not"):
        Connection(path).send(call, failing())
    assert b"first" in seen
    assert not seen.endswith(b"0\r\n\r\n"), "a part must not look like the whole"


def job_json(state: str) -> bytes:
    fields = {"id": "J1", "kind": "launch", "subject": "web1", "state": state}
    body = json.dumps({**fields, "created_at": 1, "updated_at": 1}).encode()
    return OK + b"content-length: %d\r\n\r\n" % len(body) + body


async def test_a_daemon_that_goes_away_during_a_job_leaves_its_name(path: Path) -> None:
    def dies(sock: socket.socket) -> None:
        say(job_json("running"))(sock)
        read_head(sock)

    call = guest_calls.do_to_guest("web1", "start")
    with peers(path, dies), pytest.raises(Interrupted) as blocking:
        Connection(path).finish(call)
    path.unlink()
    with peers(path, dies):
        connection = AsyncConnection(path)
        with pytest.raises(Interrupted) as awaited:
            await connection.finish(call)
        await connection.close()
    for raised in (blocking, awaited):
        assert "web1 (launch)" in raised.value.message
        assert raised.value.hint.endswith("serai job wait J1")


def test_progress_is_told_at_once_and_at_the_end_no_more(path: Path) -> None:
    told: list[str] = []

    def three(sock: socket.socket) -> None:
        for state in ("queued", "running", "done"):
            say(job_json(state))(sock)

    with peers(path, three):
        connection = Connection(path)
        job = connection.finish(
            guest_calls.do_to_guest("web1", "start"), lambda job: told.append(str(job.state))
        )
        connection.close()
    assert (told, job.state) == (["queued", "running"], "done")
