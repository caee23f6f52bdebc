"""A guest agent for tests: behaves as qemu-ga, except where a test wants it to lie.

A ``Behaviour`` is asked for every command and returns the bytes to send. ``good`` answers as
qemu-ga does; the others are made of it.
"""

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serai.qemu.agent import NOTHING, Agent

LINE = b"\n"
Answer = Callable[[str, dict[str, Any]], bytes | None]


def reply(value: object) -> bytes:
    """Return the line that answers with ``value``."""
    return json.dumps({"return": value}).encode() + LINE


def refusal(desc: str) -> bytes:
    """Return the line of an error, as qemu-ga gives it."""
    return json.dumps({"error": {"class": "GenericError", "desc": desc}}).encode() + LINE


@dataclass
class FakeAgent:
    """The agent behind QEMU's socket: one connection at a time is served, as QEMU does.

    ``answers`` maps a command to what it returns, to the raw bytes of an answer, to a callable of
    its arguments, or to None for silence. ``sync`` makes the answer to a guest-sync-delimited.
    """

    path: Path
    answers: dict[str, Any] = field(default_factory=dict)
    told: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    greeting: bytes = b""
    marks: int = 0
    sync: Callable[[int], bytes | None] = lambda number: b"\xff" + reply(number)
    connections: int = 0
    writer: asyncio.StreamWriter | None = None
    _came: asyncio.Event = field(default_factory=asyncio.Event)

    def names(self) -> list[str]:
        """Return the commands that came, without the syncs."""
        return [name for name, _ in self.told if name != "guest-sync-delimited"]

    async def wait_told(self, name: str, times: int = 1) -> None:
        """Wait until a command has come so many times."""
        async with asyncio.timeout(5):
            while [told for told, _ in self.told].count(name) < times:
                self._came.clear()
                await self._came.wait()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.writer = writer
        try:
            with contextlib.suppress(ConnectionError, BrokenPipeError):
                writer.write(self.greeting)
                while line := await reader.readline():
                    await self._take(line, writer)
        finally:
            writer.close()

    async def _take(self, line: bytes, writer: asyncio.StreamWriter) -> None:
        self.marks += line.count(b"\xff")
        document = json.loads(line.replace(b"\xff", b""))
        name, arguments = document["execute"], document.get("arguments", {})
        self.told.append((name, arguments))
        self._came.set()
        answer = self._answer(name, arguments)
        if answer is not None:
            writer.write(answer)
            await writer.drain()

    def _answer(self, name: str, arguments: dict[str, Any]) -> bytes | None:
        if name == "guest-sync-delimited":
            return self.sync(arguments["id"])
        answer = self.answers.get(name, refusal(f"The command {name} has not been found"))
        if callable(answer):
            answer = answer(arguments)
        return answer if answer is None or isinstance(answer, bytes) else reply(answer)


async def ping(agent: Agent, timeout: float) -> None:
    """Ask it the least that can be asked."""
    await agent.wire.call("guest-ping", NOTHING, timeout=timeout)


@asynccontextmanager
async def fake_agent(path: Path) -> AsyncIterator[FakeAgent]:
    """Serve at ``path`` as long as the block lasts."""
    agent = FakeAgent(path, {"guest-ping": {}})
    server = await asyncio.start_unix_server(agent._serve, path, limit=64 << 20)
    try:
        yield agent
    finally:
        server.close()
        if agent.writer is not None:
            agent.writer.transport.abort()
        await server.wait_closed()


class FakeGuest:
    """The commands and files of a guest, for ``FakeAgent.answers``."""

    def __init__(self) -> None:
        self.files: dict[str, bytearray] = {}
        self.handles: dict[int, tuple[str, int]] = {}
        self.ran: list[dict[str, Any]] = []
        self.status: dict[str, Any] = {"exited": True, "exitcode": 0}
        self.asked = 0
        self.ends_after = 0
        self.most_per_write = 1 << 30

    def answers(self) -> dict[str, Any]:
        """Return what makes an agent of it."""
        return {
            "guest-ping": {},
            "guest-exec": self._exec,
            "guest-exec-status": self._status,
            "guest-file-open": self._open,
            "guest-file-write": self._write,
            "guest-file-read": self._read,
            "guest-file-close": {},
        }

    def _exec(self, arguments: dict[str, Any]) -> dict[str, int]:
        self.ran.append(arguments)
        self.asked = 0
        return {"pid": len(self.ran)}

    def _status(self, arguments: dict[str, Any]) -> dict[str, Any]:
        self.asked += 1
        return self.status if self.asked > self.ends_after else {"exited": False}

    def _open(self, arguments: dict[str, Any]) -> Any:
        path, mode = arguments["path"], arguments["mode"]
        if mode == "r" and path not in self.files:
            return refusal(f"failed to open file '{path}' (mode: 'r'): No such file or directory")
        if mode == "w":
            self.files[path] = bytearray()
        self.handles[len(self.handles) + 1000] = (path, 0)
        return len(self.handles) + 999

    def _write(self, arguments: dict[str, Any]) -> dict[str, Any]:
        path, _ = self.handles[arguments["handle"]]
        data = base64.b64decode(arguments["buf-b64"])[: self.most_per_write]
        self.files[path] += data
        return {"count": len(data), "eof": False}

    def _read(self, arguments: dict[str, Any]) -> dict[str, Any]:
        path, at = self.handles[arguments["handle"]]
        data = bytes(self.files[path][at : at + arguments["count"]])
        self.handles[arguments["handle"]] = (path, at + len(data))
        eof = len(data) < arguments["count"]
        return {"count": len(data), "buf-b64": base64.b64encode(data).decode(), "eof": eof}
