"""What lasts: events, logs, files, consoles, and how all of it ends."""

import asyncio
import os
import resource
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from api_peer import Inn, read_head, served
from fake_engine import ENDLESS
from httpx import RemoteProtocolError
from msgspec import json
from websockets.asyncio.client import ClientConnection, unix_connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from serai.api import follow, server, streams
from serai.api.app import build_app
from serai.api.events import render_event
from serai.api.inside import open_console
from serai.errors import Code, Conflict, HostFailure, NotFound
from serai.host.logs import trim_log
from serai.model.event import Event, EventKind


@pytest.fixture
async def inn(tmp_path: Path) -> AsyncIterator[Inn]:
    async with served(tmp_path) as each:
        each.engine.add_guests(3)
        yield each


async def until(check: object) -> None:
    """Wait for what another task does; the test's own time limit ends it."""
    while not check():  # type: ignore[operator]
        await asyncio.sleep(0.002)


# events


class Watcher:
    """A reader of server-sent events."""

    def __init__(self, answer: httpx.Response) -> None:
        self.answer = answer
        self._lines = answer.aiter_lines()

    async def block(self) -> dict[str, str]:
        """Return the next block; a heartbeat is empty."""
        found: dict[str, str] = {}
        async for line in self._lines:
            if not line:
                return found
            name, _, value = line.partition(":")
            if name:
                found[name] = value.removeprefix(" ")
        raise EOFError

    async def event(self) -> dict[str, str]:
        """Return the next event, heartbeats skipped."""
        while not (found := await self.block()):
            pass
        return found


@asynccontextmanager
async def watching(inn: Inn, query: str = "", **headers: str) -> AsyncIterator[Watcher]:
    wanted = {"accept": "text/event-stream", **{k.replace("_", "-"): v for k, v in headers.items()}}
    async with inn.http.stream("GET", f"/v1/events{query}", headers=wanted) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "text/event-stream"
        yield Watcher(answer)


async def test_new_events_arrive_as_they_happen(inn: Inn) -> None:
    await inn.engine.tell(EventKind.GUEST_STATE, "old")
    async with watching(inn) as watcher:
        await until(lambda: inn.engine.watchers)
        await inn.engine.tell(EventKind.GUEST_CREATED, "new\nline")
        event = await watcher.event()
    assert (event["id"], event["event"]) == ("2", "guest-created")
    data = json.decode(event["data"])
    assert data["subject"] == "new\nline"
    inn.judge.validate(data, {"$ref": "#/components/schemas/Event"})


async def test_a_stream_resumes_after_what_was_seen(inn: Inn) -> None:
    for number in range(5):
        await inn.engine.tell(EventKind.GUEST_STATE, str(number))
    async with watching(inn, "?after=1", last_event_id="3") as watcher:
        assert [(await watcher.event())["id"] for _ in range(2)] == ["4", "5"]
    async with watching(inn, "?after=4") as watcher:
        assert (await watcher.event())["id"] == "5"


async def test_missed_has_no_id(inn: Inn) -> None:
    for _ in range(200):
        await inn.engine.tell(EventKind.GUEST_STATE)
    async with watching(inn, "?after=0") as watcher:
        event = await watcher.event()
    assert event["event"] == "missed"
    assert "id" not in event


def test_an_event_that_was_not_stored_has_no_id() -> None:
    """A client that resumed from number 0 would be told everything anew."""
    event = Event(seq=0, at=1.0, kind=EventKind.GUEST_STATE)
    assert not render_event(event).startswith(b"id:")


async def test_heartbeats_keep_a_quiet_stream_alive(
    inn: Inn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "HEARTBEAT", 0.02)
    async with watching(inn) as watcher:
        assert [await watcher.block() for _ in range(3)] == [{}, {}, {}]


async def test_a_watcher_that_leaves_is_forgotten(inn: Inn) -> None:
    async with watching(inn):
        await until(lambda: inn.engine.watchers == 1)
    await until(lambda: inn.engine.watchers == 0)


@pytest.mark.parametrize("seen", ["x", "-1", "1.5", "9" * 30, "²"])
async def test_a_last_event_id_that_is_none(inn: Inn, seen: str) -> None:
    headers = {"accept": "text/event-stream", "last-event-id": seen.encode()}
    assert await inn.refused("GET", "/v1/events", headers=headers) == "400 value-invalid"


# logs


async def next_text(chunks: AsyncIterator[bytes], length: int) -> bytes:
    found = b""
    while len(found) < length:
        found += await anext(chunks)
    return found


@asynccontextmanager
async def following(inn: Inn, query: str = "") -> AsyncIterator[AsyncIterator[bytes]]:
    async with inn.http.stream("GET", f"/v1/guests/g1/log?follow=true{query}") as answer:
        assert answer.status_code == 200
        yield answer.aiter_bytes()


async def test_log_whole_and_tail(inn: Inn) -> None:
    content = bytes(range(256)) * 1000
    inn.engine.log_path("g1").write_bytes(content)
    assert (await inn.ask("GET", "/v1/guests/g1/log")).content == content
    assert (await inn.ask("GET", "/v1/guests/g1/log?tail=1000")).content == content[-1000:]
    assert (await inn.ask("GET", "/v1/guests/g1/log?tail=0")).content == b""
    assert (await inn.ask("GET", f"/v1/guests/g1/log?tail={10**15}")).content == content


async def test_log_of_a_guest_that_never_ran_is_empty(inn: Inn) -> None:
    assert (await inn.ask("GET", "/v1/guests/g1/log")).content == b""
    assert await inn.refused("GET", "/v1/guests/nope/log") == "404 guest-not-found"


async def test_follow_gives_what_is_added(inn: Inn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "POLL", 0.01)
    path = inn.engine.log_path("g1")
    async with following(inn) as chunks:
        await asyncio.sleep(0.03)
        path.write_bytes(b"first\n")
        assert await next_text(chunks, 6) == b"first\n"
        with path.open("ab") as log:
            log.write(b"second\n")
        assert await next_text(chunks, 7) == b"second\n"


async def test_follow_survives_a_cut(inn: Inn, monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon cuts a long log to its newer half in place; no line is lost or told twice."""
    monkeypatch.setattr(follow, "POLL", 0.01)
    path = inn.engine.log_path("g1")
    lines = [f"{number:06d} a line of the log\n".encode() for number in range(20_000)]
    received, trims = b"", 0
    async with following(inn) as chunks:
        for begin in range(0, len(lines), 500):
            with path.open("ab") as log:
                log.write(b"".join(lines[begin : begin + 500]))
            received += await next_text(chunks, 500 * len(lines[0]))
            trims += trim_log(path, 1 << 16)
    assert trims > 5
    assert received == b"".join(lines)


async def test_follow_after_a_cut_to_nothing(inn: Inn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "POLL", 0.01)
    path = inn.engine.log_path("g1")
    path.write_bytes(b"x" * 5000)
    async with following(inn) as chunks:
        await next_text(chunks, 5000)
        os.truncate(path, 0)
        await asyncio.sleep(0.03)
        with path.open("ab") as log:
            log.write(b"anew")
        assert await next_text(chunks, 4) == b"anew"


async def test_follow_ends_with_the_guest(inn: Inn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "POLL", 0.01)
    inn.engine.log_path("g1").write_bytes(b"bye")
    async with following(inn) as chunks:
        assert await next_text(chunks, 3) == b"bye"
        inn.engine.log_path("g1").unlink()
        assert [chunk async for chunk in chunks] == []
    async with following(inn) as chunks:
        del inn.engine.all_guests["g1"]
        assert [chunk async for chunk in chunks] == []


async def test_follow_leaves_nothing_open(inn: Inn) -> None:
    inn.engine.log_path("g1").write_bytes(b"x")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        async with following(inn) as chunks:
            await next_text(chunks, 1)
    await inn.http.aclose()
    await until(lambda: len(os.listdir("/proc/self/fd")) <= before)


# files


async def test_push_and_pull_a_large_file(inn: Inn) -> None:
    content = os.urandom(10 << 20)
    target = "/v1/guests/g1/files?path=/tmp/a%20b"
    answer = await inn.ask("PUT", f"{target}&mode=0755", content=content)
    assert answer.status_code == 204
    assert inn.engine.files["g1", "/tmp/a b"] == content
    assert (await inn.ask("GET", target)).content == content


async def test_push_of_nothing_and_in_chunks(inn: Inn) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(10):
            yield b"piece"

    assert (await inn.ask("PUT", "/v1/guests/g1/files?path=/a")).status_code == 204
    answer = await inn.ask("PUT", "/v1/guests/g1/files?path=/b", content=pieces())
    assert answer.status_code == 204
    assert inn.engine.files == {("g1", "/a"): b"", ("g1", "/b"): b"piece" * 10}


async def test_pulls_and_pushes_that_fail_at_once_are_problems(inn: Inn) -> None:
    assert await inn.refused("GET", "/v1/guests/g1/files?path=/no") == "502 file-failed"
    assert await inn.refused("GET", "/v1/guests/g1/files") == "400 value-invalid"
    assert await inn.refused("PUT", "/v1/guests/g1/files?path=/x&mode=9") == "400 value-invalid"
    refused = await inn.refused("PUT", "/v1/guests/g1/files?path=/too-large", content=b"x" * 100)
    assert refused == "502 file-failed"


async def test_a_pull_that_fails_under_way_is_cut(inn: Inn) -> None:
    inn.engine.files["g1", "/broken"] = b"part"
    with pytest.raises(RemoteProtocolError):
        await inn.http.get("/v1/guests/g1/files?path=/broken")
    assert (await inn.ask("GET", "/v1/system")).status_code == 200


async def test_a_pull_holds_back_for_a_slow_client(inn: Inn) -> None:
    """The fake gives 64 KiB chunks for ever: memory must not grow with what nobody reads."""
    reader, writer = await asyncio.open_unix_connection(inn.path, limit=1 << 16)
    writer.write(b"GET /v1/guests/g1/files?path=/endless HTTP/1.1\r\nhost: x\r\n\r\n")
    await read_head(reader)
    begun, memory = time.process_time(), _memory()
    await asyncio.sleep(0.3)
    assert _memory() - memory < 16 << 20
    assert time.process_time() - begun < 0.2
    writer.close()
    await until(lambda: not inn.engine.running)
    assert inn.engine.given < ENDLESS / 2, "it was read on after the client had left"


def _memory() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


async def test_a_push_holds_back_a_fast_client(inn: Inn, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = asyncio.Event()

    async def push(guest: str, path: str, chunks: AsyncIterator[bytes], **_: object) -> None:
        await anext(chunks)
        await taken.wait()
        async for _chunk in chunks:
            pass

    monkeypatch.setattr(inn.engine, "push", push)
    reader, writer = await inn.connect()
    size = 32 << 20
    writer.write(
        b"PUT /v1/guests/g1/files?path=/x HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % size
    )
    sending = asyncio.create_task(_send_all(writer, size))
    await asyncio.sleep(0.2)
    assert not sending.done()
    taken.set()
    await sending
    assert (await read_head(reader))[0] == 204
    writer.close()


async def _send_all(writer: asyncio.StreamWriter, size: int) -> None:
    for _ in range(size >> 16):
        writer.write(bytes(1 << 16))
        await writer.drain()


async def test_a_client_that_leaves_ends_what_it_waits_for(inn: Inn) -> None:
    _, writer = await inn.connect()
    body = b'{"argv": ["sleep"]}'
    head = b"POST /v1/guests/g1/exec HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body)
    writer.write(head + body)
    await until(lambda: inn.engine.running)
    writer.close()
    await asyncio.wait_for(inn.engine.ended.wait(), 5)


# consoles


@asynccontextmanager
async def guest_console(inn: Inn, answer: object = None) -> AsyncIterator[asyncio.Queue[bytes]]:
    """A guest that echoes what is typed, in capitals; its side of the console is a socket."""
    heard: asyncio.Queue[bytes] = asyncio.Queue()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if answer:
            await answer(reader, writer)  # type: ignore[operator]
        while chunk := await reader.read(1000):
            heard.put_nowait(chunk)
            writer.write(chunk.upper())
        writer.close()

    guest = await asyncio.start_unix_server(talk, inn.engine.folder / "console.sock")
    async with guest:
        yield heard


def console(inn: Inn, guest: str = "g1") -> unix_connect:
    uri = f"ws://serai/v1/guests/{guest}/console"
    return unix_connect(str(inn.path), uri, compression=None)


async def closing(socket: ClientConnection) -> tuple[int, str]:
    with pytest.raises(ConnectionClosed):
        await asyncio.wait_for(socket.recv(), 5)
    return socket.close_code or 0, socket.close_reason or ""


async def test_console_carries_bytes_both_ways(inn: Inn) -> None:
    async with guest_console(inn) as heard, console(inn) as socket:
        await socket.send(b"login\xff\x00")
        assert await socket.recv() == b"LOGIN\xff\x00"
        await socket.send("text is taken too: é")
        assert (await heard.get(), await heard.get())[1] == "text is taken too: é".encode()


async def test_console_of_nobody_is_closed_with_the_problem(inn: Inn) -> None:
    async with console(inn, "nope") as socket:
        assert await closing(socket) == (4404, "guest-not-found")
    state = Conflict(Code.GUEST_STATE, "it is stopped")
    inn.engine.fail_next("open_console", state)
    async with console(inn) as socket:
        assert await closing(socket) == (4409, "guest-state")


async def test_console_with_a_bug(inn: Inn, caplog: pytest.LogCaptureFixture) -> None:
    inn.engine.fail_next("open_console", KeyError("secret"))
    async with console(inn) as socket:
        assert await closing(socket) == (4500, "bug")
    assert "secret" in caplog.text


async def test_console_closes_when_the_guest_ends(inn: Inn) -> None:
    async def leave(_: object, writer: asyncio.StreamWriter) -> None:
        writer.write(b"bye")
        writer.close()

    async with guest_console(inn, leave), console(inn) as socket:
        assert await socket.recv() == b"bye"
        assert (await closing(socket))[0] == 1000


async def test_console_lets_go_when_the_client_leaves(inn: Inn) -> None:
    left = asyncio.Event()

    async def listen(reader: asyncio.StreamReader, _: object) -> None:
        await reader.read()
        left.set()

    async with guest_console(inn, listen):
        async with console(inn):
            pass
        await asyncio.wait_for(left.wait(), 5)


class GoneSocket:
    """A client that leaves at the very moment when the guest's console ends."""

    path_params: Mapping[str, str] = {"guest": "g1"}

    async def accept(self) -> None:
        """Take it."""

    async def receive(self) -> dict[str, object]:
        return {"type": "websocket.disconnect"}

    async def close(self, code: int, reason: str) -> None:
        raise AssertionError(f"told {code} {reason}, and nobody is there")


class EndedConsole:
    """An engine whose guest's console has ended, and its other side."""

    async def open_console(self, _guest: str) -> "tuple[asyncio.StreamReader, EndedConsole]":
        reader = asyncio.StreamReader()
        reader.feed_eof()
        return reader, self

    def close(self) -> None:
        """Close the writer."""


async def test_console_tells_nothing_to_a_client_that_left_with_the_guest(inn: Inn) -> None:
    app = build_app(inn.engine, settings=inn.settings)
    room = replace(app.state.room, engine=EndedConsole())
    await open_console(room, GoneSocket())  # type: ignore[arg-type]


async def test_console_holds_back_a_client_that_types_faster_than_the_guest_reads(
    inn: Inn,
) -> None:
    go = asyncio.Event()

    async def wait(*_: object) -> None:
        await go.wait()

    async with guest_console(inn, wait), console(inn) as socket:
        sending = asyncio.create_task(_type(socket))
        await asyncio.sleep(0.2)
        assert not sending.done()
        go.set()
        reading = asyncio.create_task(_read_away(socket))
        await asyncio.wait_for(sending, 20)
        reading.cancel()


async def _type(socket: ClientConnection) -> None:
    for _ in range(64):
        await socket.send(bytes(1 << 18))


async def _read_away(socket: ClientConnection) -> None:
    while True:
        await socket.recv()


async def test_console_holds_back_a_guest_that_floods(inn: Inn) -> None:
    written = 0

    async def flood(_: object, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        while True:
            writer.write(bytes(1 << 16))
            await writer.drain()
            written += 1 << 16

    async with guest_console(inn, flood), console(inn) as socket:
        await asyncio.sleep(0.3)
        held = written
        assert held < 16 << 20
        for _ in range(10):
            await socket.recv()
        socket.transport.abort()


async def test_a_message_that_is_too_large_closes_the_console(inn: Inn) -> None:
    async with guest_console(inn), console(inn) as socket:
        with pytest.raises(ConnectionClosed):
            await socket.send(bytes(server.MESSAGE_LIMIT + 1))
            await socket.recv()
        assert socket.close_code == 1009


async def test_websockets_that_lead_nowhere_get_a_problem(inn: Inn) -> None:
    for path in ("/nope", "/v1/guests/g1", "/v1/guests/g1/console/x"):
        with pytest.raises(InvalidStatus) as caught:
            async with unix_connect(str(inn.path), f"ws://serai{path}"):
                pass
        assert caught.value.response.status_code == 404
        assert json.decode(caught.value.response.body)["code"] == "route-not-found"


# the end


async def test_stopping_ends_all_that_lasts_at_once_and_well(inn: Inn) -> None:
    inn.engine.hold = True
    inn.engine.log_path("g1").write_bytes(b"x")
    async with guest_console(inn), console(inn) as socket, watching(inn) as watcher:
        async with following(inn) as chunks:
            await next_text(chunks, 1)
            waiting = asyncio.create_task(inn.ask("POST", "/v1/guests/g1/stop?wait=60"))
            running = asyncio.create_task(
                inn.ask("POST", "/v1/guests/g1/exec", {"argv": ["sleep"]})
            )
            await until(lambda: inn.engine.all_jobs and inn.engine.running)
            begun = time.monotonic()
            inn.stop.set()
            assert [chunk async for chunk in chunks] == []
        assert (await watcher.event())["event"] == "job-changed"
        with pytest.raises(EOFError):
            await watcher.event()
        assert (await waiting).status_code == 202
        answer = await running
        assert (answer.status_code, answer.json()["code"]) == (503, "daemon-stopping")
        assert await closing(socket) == (1012, "daemon-stopping")
    await inn.done
    assert time.monotonic() - begun < server.STOP_TIMEOUT
    assert inn.engine.running == set()


async def test_stopping_cuts_what_does_not_end(inn: Inn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "STOP_TIMEOUT", 0.2)
    reader, writer = await asyncio.open_unix_connection(inn.path, limit=1 << 16)
    writer.write(b"GET /v1/guests/g1/files?path=/endless HTTP/1.1\r\nhost: x\r\n\r\n")
    await read_head(reader)
    inn.stop.set()
    await asyncio.wait_for(inn.done, 2)
    assert inn.engine.running == set()
    writer.close()


async def test_stopping_with_idle_connections_takes_no_time(inn: Inn) -> None:
    writers = [(await inn.connect())[1] for _ in range(10)]
    await inn.ask("GET", "/v1/system")
    begun = time.monotonic()
    inn.stop.set()
    await inn.done
    assert time.monotonic() - begun < server.STOP_TIMEOUT / 2
    with pytest.raises((ConnectionError, FileNotFoundError)):
        await inn.connect()
    for writer in writers:
        writer.close()


async def test_nothing_is_done_while_nobody_asks(inn: Inn) -> None:
    """The loop sleeps: uvicorn's own would wake ten times in this second, once each time."""
    await inn.ask("GET", "/v1/system")
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
    await asyncio.sleep(1)
    assert resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw - before < 6


async def test_an_error_of_the_host_before_a_stream_is_a_problem(inn: Inn) -> None:
    inn.engine.fail_next("pull", HostFailure(Code.AGENT_UNAVAILABLE, "no agent"))
    assert await inn.refused("GET", "/v1/guests/g1/files?path=/x") == "502 agent-unavailable"
    inn.engine.fail_next("guest", NotFound(Code.GUEST_NOT_FOUND, "gone"))
    assert await inn.refused("GET", "/v1/guests/g1/log?follow=1") == "404 guest-not-found"
