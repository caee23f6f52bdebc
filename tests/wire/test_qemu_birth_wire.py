"""The wire to the birth port, with somebody at the other end who lies."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from serai.errors import Code, HostFailure, Interrupted, SeraiError
from serai.qemu.birth_wire import LINE_LIMIT, BirthWire

SOON = 5.0
SHORT = 0.2
NONCE = "0123456789abcdef"
LINE = f"serai1 {NONCE} 5eed 1 0"
OK = f"ok {NONCE}\n".encode()


@dataclass
class FakePort:
    """The port behind QEMU's socket. ``answer`` makes what is sent when a line has come."""

    answer: Callable[[bytes], bytes] = lambda line: OK
    lines: list[bytes] = field(default_factory=list)
    writers: list[asyncio.StreamWriter] = field(default_factory=list)
    ends: bool = False

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        while line := await reader.readline():
            if line == b"\n":
                continue
            self.lines.append(line)
            writer.write(self.answer(line))
            if self.ends:
                writer.close()


@asynccontextmanager
async def listening(path: Path, port: FakePort) -> AsyncIterator[FakePort]:
    server = await asyncio.start_unix_server(port.serve, path)
    try:
        yield port
    finally:
        server.close()
        for writer in port.writers:
            writer.transport.abort()
        await server.wait_closed()


@pytest.fixture
async def port(tmp_path: Path) -> AsyncIterator[FakePort]:
    async with listening(tmp_path / "birth.sock", FakePort()) as port:
        yield port


@pytest.fixture
def wire(tmp_path: Path) -> BirthWire:
    return BirthWire(tmp_path / "birth.sock")


async def failure(wire: BirthWire, timeout: float = SOON) -> SeraiError:
    wire.say(LINE)
    with pytest.raises(SeraiError) as raised:
        await wire.hear(NONCE, timeout)
    return raised.value


async def test_one_line_and_its_answer(port: FakePort, wire: BirthWire) -> None:
    wire.prepare()
    for _ in range(3):
        wire.say(LINE)
        await wire.hear(NONCE, SOON)
    assert port.lines == [f"{LINE}\n".encode()] * 3
    assert len(port.writers) == 1
    wire.disconnect()


async def test_what_another_has_half_said_ends_before_the_line(
    tmp_path: Path, wire: BirthWire
) -> None:
    seen = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.readline())
        writer.write(OK)
        await reader.read()
        writer.close()

    server = await asyncio.start_unix_server(serve, tmp_path / "birth.sock")
    wire.say(LINE)
    await wire.hear(NONCE, SOON)
    assert seen == [b"\n"]
    wire.disconnect()
    server.close()
    await server.wait_closed()


@pytest.mark.parametrize(
    "before",
    [
        b"ok fedcba9876543210\n",
        b"\n\xff\xff {}\n",
        b"error fedcba9876543210 m 5\nok\n",
        b"x" * 5000 + b"\n",
        b"y" * 127 + b"\n",
        f"ok {NONCE}\0\nok{NONCE}\n".encode(),
    ],
)
async def test_what_is_no_answer_to_this_is_skipped(
    port: FakePort, wire: BirthWire, before: bytes
) -> None:
    port.answer = lambda line: before + OK
    wire.say(LINE)
    await wire.hear(NONCE, SOON)
    wire.disconnect()


@pytest.mark.parametrize(
    "untrusted",
    [
        f"error {NONCE} m 16\n".encode(),
        f"ok {NONCE} \n".encode(),
        f"OK {NONCE}\n".encode(),
        f" {NONCE}\n".encode(),
        b"x\n" * 100_000,
        b"z" * 200_000,
    ],
)
async def test_what_is_odd_is_refused(port: FakePort, wire: BirthWire, untrusted: bytes) -> None:
    port.answer = lambda line: untrusted
    error = await failure(wire)
    assert isinstance(error, HostFailure)
    assert error.code is Code.AGENT_PROTOCOL
    assert len(error.message) < 400


async def test_silence_is_waited_for_so_long(port: FakePort, wire: BirthWire) -> None:
    port.answer = lambda line: f"ok {NONCE}".encode()  # and never the end of the line
    error = await failure(wire, SHORT)
    assert isinstance(error, Interrupted)
    assert error.code is Code.AGENT_TIMEOUT


async def test_after_a_failure_it_begins_anew(port: FakePort, wire: BirthWire) -> None:
    port.answer = lambda line: b""
    await failure(wire, SHORT)
    port.answer = lambda line: OK
    wire.say(LINE)
    await wire.hear(NONCE, SOON)
    assert len(port.writers) == 2
    wire.disconnect()


async def test_one_that_goes_away(port: FakePort, wire: BirthWire) -> None:
    port.ends, port.answer = True, lambda line: b"ok"
    error = await failure(wire)
    assert error.code is Code.AGENT_UNAVAILABLE


async def test_nobody_there(wire: BirthWire) -> None:
    wire.prepare()
    error = await failure(wire)
    assert error.code is Code.AGENT_UNAVAILABLE


async def test_a_line_that_is_too_long_is_not_said(port: FakePort, wire: BirthWire) -> None:
    wire.say("x" * (LINE_LIMIT + 1))
    with pytest.raises(Interrupted):
        await wire.hear(NONCE, SOON)
    assert port.lines == []


async def test_one_that_reads_nothing_holds_nobody_up(tmp_path: Path, wire: BirthWire) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.pause_reading()  # type: ignore[attr-defined]

    server = await asyncio.start_unix_server(serve, tmp_path / "birth.sock")
    for _ in range(2000):
        wire.say("x" * LINE_LIMIT)
    wire.disconnect()
    server.close()
