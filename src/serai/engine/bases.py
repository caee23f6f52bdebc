"""Memory bases that are in use: frozen RAM that any number of guests map privately.

A base is a sealed memory file and the stream of devices that was saved with it. It comes from a
guest whose memory was frozen, or from the disk (read and verified once). It stays open here while
something was made from it lately; guests that run on it keep the memory themselves, so another
daemon finds it through them. Its stream is kept beside the sockets for that.
"""

import asyncio
import os
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from serai.disk.memory import MemoryFolder
from serai.qemu.instance import Instance

IDLE_LIMIT = 60.0
"""How long a base that nobody uses stays open, in seconds."""


@dataclass(slots=True)
class Base:
    """A base in use: ``fd`` is its memory, ``state_fd`` the stream of devices saved with it."""

    id: str
    fd: int
    state_fd: int
    used_at: float

    def close(self) -> None:
        """Let go of it."""
        os.close(self.fd)
        os.close(self.state_fd)


class Bases:
    """All bases that are open. ``folder`` keeps their streams for the next daemon."""

    def __init__(self, folder: Path, memory: MemoryFolder) -> None:
        self._folder = folder
        self._memory = memory
        self._open: dict[str, Base] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def add(self, base_id: str, fd: int, state_fd: int) -> Base:
        """Take over a base that was just frozen: both descriptors are ours from now on."""
        self._state_path(base_id).write_bytes(os.pread(state_fd, os.fstat(state_fd).st_size, 0))
        base = Base(base_id, fd, state_fd, time.monotonic())
        self._open[base_id] = base
        return base

    async def find(self, base_id: str, runner: Instance | None = None) -> Base:
        """Return a base: one that is open, that ``runner`` runs on, or from the disk (verified).

        Raises HostFailure (``snapshot-corrupt``) when its file is gone or not what was stored.
        """
        async with self._locks.setdefault(base_id, asyncio.Lock()):
            base = self._open.get(base_id)
            if base is None and runner is not None and self._state_path(base_id).exists():
                base = self._reopen(base_id, runner)
            if base is None:
                base = await self._load(base_id)
            base.used_at = time.monotonic()
            return base

    def _reopen(self, base_id: str, runner: Instance) -> Base:
        state_fd = os.open(self._state_path(base_id), os.O_RDONLY | os.O_CLOEXEC)
        self._open[base_id] = Base(base_id, runner.memory_fd(), state_fd, time.monotonic())
        return self._open[base_id]

    async def _load(self, base_id: str) -> Base:
        fd = await self._memory.load_base(base_id)
        try:
            state_fd = await self._memory.load_base_state(base_id)
        except BaseException:
            os.close(fd)
            raise
        return self.add(base_id, fd, state_fd)

    def is_open(self, base_id: str) -> bool:
        """Tell whether it is in use here."""
        return base_id in self._open

    def tidy(self, in_use: Collection[str]) -> None:
        """Close what nobody has used for a minute; forget the streams of what no guest runs on."""
        now = time.monotonic()
        for base in [each for each in self._open.values() if now - each.used_at > IDLE_LIMIT]:
            if base.id not in in_use:
                del self._open[base.id]
                base.close()
        for path in self._folder.iterdir():
            if path.name not in in_use and path.name not in self._open:
                path.unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of all; guests that run on them go on."""
        for base in self._open.values():
            base.close()
        self._open.clear()

    def _state_path(self, base_id: str) -> Path:
        return self._folder / base_id
