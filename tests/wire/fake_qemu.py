"""A QMP peer for tests: greets, answers, lies, floods or is silent, as a test wants it.

It reads what ``qemu.qmp`` writes (JSON documents without a line end between them) and keeps every
command with the descriptor that came with it.
"""

import asyncio
import contextlib
import json
import os
import select
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

GREETING: Mapping[str, object] = {
    "QMP": {
        "version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "fake"},
        "capabilities": ["oob"],
    }
}
LARGEST_READ = 1 << 16


@dataclass
class Told:
    """A command as it came. ``inode`` is of the descriptor that QEMU would take for it, or 0."""

    name: str
    arguments: dict[str, object]
    id: object
    inode: int = 0


@dataclass
class FakeQemu:
    """What to do: ``answers`` by command; a command in ``silent`` gets none until ``speak``.

    After its answer to the command ``last`` it ends.
    """

    path: Path
    greeting: bytes | None = json.dumps(GREETING).encode() + b"\n"
    answers: dict[str, object] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    silent: set[str] = field(default_factory=set)
    last: str = ""
    told: list[Told] = field(default_factory=list)
    connections: int = 0
    _late: list[Told] = field(default_factory=list)
    _peer: socket.socket | None = None
    _half: bytes = b""
    _fd: int = -1
    _came: asyncio.Event = field(default_factory=asyncio.Event)
    _greeted: "asyncio.Future[None] | None" = None

    def names(self) -> list[str]:
        """Return the commands that came, without the negotiation."""
        return [told.name for told in self.told if told.name != "qmp_capabilities"]

    async def wait_told(self, name: str, times: int = 1) -> None:
        """Wait until a command has come so many times."""
        async with asyncio.timeout(5):
            while self.names().count(name) < times:
                self._came.clear()
                await self._came.wait()

    def send(self, untrue: bytes) -> None:
        """Send bytes as they are."""
        peer = self._peer
        assert peer is not None
        while untrue:
            _, writable, _ = select.select([], [peer], [], 5)
            untrue = untrue[peer.send(untrue) :] if writable else b""

    def tell(self, event: str, **data: object) -> None:
        """Send an event."""
        self.send(json.dumps({"event": event, "data": data}).encode() + b"\n")

    def speak(self) -> None:
        """Answer all that was left unanswered."""
        late, self._late = self._late, []
        self.silent.clear()
        for told in late:
            self._answer(told)

    def hang_up(self) -> None:
        """Close the connection."""
        if self._peer is not None:
            asyncio.get_running_loop().remove_reader(self._peer)
            self._peer.close()
            self._peer = None

    # -- how it works ------------------------------------------------------------------------------

    def _accept(self, listener: socket.socket) -> None:
        peer, _ = listener.accept()
        self.hang_up()
        self.connections += 1
        self._peer, self._half = peer, b""
        peer.setblocking(False)
        loop = asyncio.get_running_loop()
        if self.greeting is not None:
            # in a thread: the reader of a long one is in this loop
            self._greeted = loop.run_in_executor(None, self._greet, peer, self.greeting)
        loop.add_reader(peer, self._read)

    def _greet(self, peer: socket.socket, greeting: bytes) -> None:
        with contextlib.suppress(OSError):
            while greeting:
                _, writable, _ = select.select([], [peer], [], 5)
                greeting = greeting[peer.send(greeting) :] if writable else b""

    def _read(self) -> None:
        assert self._peer is not None
        try:
            data, fds, _, _ = socket.recv_fds(self._peer, LARGEST_READ, 4)
        except OSError:
            data, fds = b"", []
        for fd in fds:  # as QEMU's char-socket: the last that came is kept
            self._drop_fd()
            self._fd = fd
        if not data:
            self.hang_up()
            return
        self._half += data
        self._decode()

    def _decode(self) -> None:
        decoder = json.JSONDecoder()
        while text := self._half.decode().lstrip():
            try:
                document, end = decoder.raw_decode(text)
            except json.JSONDecodeError:
                return
            self._half = text[end:].encode()
            self._take(document)

    def _take(self, document: dict[str, object]) -> None:
        arguments = document.get("arguments") or {}
        assert isinstance(arguments, dict)
        told = Told(str(document["execute"]), arguments, document.get("id"))
        if told.name in ("getfd", "add-fd") and self._fd >= 0:
            told.inode = os.fstat(self._fd).st_ino
            self._drop_fd()
        self.told.append(told)
        self._came.set()
        if told.name in self.silent:
            self._late.append(told)
        else:
            self._answer(told)

    def _answer(self, told: Told) -> None:
        reply: dict[str, object] = {} if told.id is None else {"id": told.id}
        if told.name in self.errors:
            reply["error"] = {"class": "GenericError", "desc": self.errors[told.name]}
        else:
            reply["return"] = self.answers.get(told.name, {})
        self.send(json.dumps(reply).encode() + b"\n")
        if told.name == self.last:
            self.hang_up()

    def _drop_fd(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


@asynccontextmanager
async def fake_qemu(path: Path, **how: object) -> AsyncIterator[FakeQemu]:
    """Listen at ``path`` as long as the block lasts; one is served at a time, the newest."""
    qemu = FakeQemu(path, **how)  # type: ignore[arg-type]
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    listener.setblocking(False)
    loop = asyncio.get_running_loop()
    loop.add_reader(listener, qemu._accept, listener)
    try:
        yield qemu
    finally:
        loop.remove_reader(listener)
        listener.close()
        qemu.hang_up()
        qemu._drop_fd()
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
