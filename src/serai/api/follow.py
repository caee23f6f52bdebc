"""The serial log of a guest as a stream, also while the guest writes and the daemon cuts it.

A log that grows too long is cut by the daemon to its newer half, in place, since QEMU goes on
writing to the same file. A reader that only kept its offset would then repeat or lose lines. So
every read begins with the last bytes that were given out: if they are not there any more, the file
was cut, they are looked for where they are now, and reading goes on behind them.
"""

import os
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

from serai.errors import HostFailure
from serai.host.supervise import wait_until

CHUNK = 64 << 10
MEMORY = 1 << 10
SEARCH_LIMIT = 64 << 20
PATIENCE = 7 * 86400.0
POLL = 0.2
"""How often a followed log is looked at, in seconds.

asyncio has no event for a file that grows. inotify would be one, but takes three C functions by
``ctypes`` and one of the 128 instances that a user has; looking five times a second costs 30 µs of
each second, only while somebody follows.
"""


class LogReader:
    """One reader's place in a log. Reads are of cached pages of a small file: no thread is used."""

    def __init__(self, fd: int, tail: int | None) -> None:
        self.fresh = b""
        self._fd = fd
        self._offset = 0 if tail is None else max(0, os.fstat(fd).st_size - tail)
        self._seen = b""
        self._lost = False

    def look(self) -> bool:
        """Read on; return whether there is something new, or never will be: the log was deleted."""
        return self.read() or os.fstat(self._fd).st_nlink == 0

    def read(self) -> bool:
        """Put what is new since the last read, at most 64 KiB, in ``fresh``; false for nothing."""
        block = os.pread(self._fd, len(self._seen) + CHUNK, self._offset - len(self._seen))
        if not block.startswith(self._seen):
            self.fresh = b""
            return self._search()
        self._lost = False
        self.fresh = block[len(self._seen) :]
        self._offset += len(self.fresh)
        self._seen = (self._seen + self.fresh)[-MEMORY:]
        return bool(self.fresh)

    def _search(self) -> bool:
        """Find the place anew; not before the second look, so that a cut in progress is over."""
        if not self._lost:
            self._lost = True
            return False
        self._lost = False
        content = os.pread(self._fd, SEARCH_LIMIT, 0)
        found = content.rfind(self._seen)
        self._offset = found + len(self._seen) if found >= 0 else 0
        self._seen = self._seen if found >= 0 else b""
        return self.read()


def _open(path: Path) -> int | None:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None


async def read_log(path: Path, *, tail: int | None) -> AsyncGenerator[bytes, None]:
    """Give the log as it is; nothing if there is none yet."""
    fd = _open(path)
    if fd is None:
        return
    try:
        reader = LogReader(fd, tail)
        while reader.read():
            yield reader.fresh
    finally:
        os.close(fd)


async def follow_log(
    path: Path, *, tail: int | None, exists: Callable[[], bool]
) -> AsyncGenerator[bytes, None]:
    """Give the log and then what is added to it, until the guest is deleted.

    ``exists`` says whether the guest is still there, for a log that was never begun. A follower
    for whom nothing was added in a week is let go.
    """
    if not path.exists():
        await _wait_for("the log begins", lambda: path.exists() or not exists())
        tail = None
    fd = _open(path)
    if fd is None:
        return
    try:
        reader = LogReader(fd, tail)
        while await _wait_for("the log grows", reader.look) and reader.fresh:
            yield reader.fresh
    finally:
        os.close(fd)


async def _wait_for(what: str, check: Callable[[], bool]) -> bool:
    try:
        await wait_until(what, check, timeout=PATIENCE, every=POLL)
    except HostFailure:
        return False
    return True
