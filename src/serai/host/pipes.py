"""Reading what a tool writes, within bounds, however much and however it writes.

Used by ``process`` alone. Lines are passed on as they come, since a tool that works for minutes
tells how far it is; ``\\r`` ends a line too, as progress bars use it.

A pipe is read here and not by a transport of the event loop's: uvloop closes the descriptor of a
transport whose opening was cancelled, and so does Python, later, whose it is by then.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import IO

OnLine = Callable[[str], None]

CHUNK = 64 << 10
LINE_LIMIT = 64 << 10


class TooMuch(Exception):
    """More was written than anybody wanted to read."""


class Pipe:
    """Our end of a tool's output; of one that has none, nothing comes. One may read at a time.

    ``close`` is the end for whoever reads.
    """

    def __init__(self, file: IO[bytes] | None) -> None:
        self._file = file
        self._bell: asyncio.Future[None] | None = None
        if file is not None:
            os.set_blocking(file.fileno(), False)

    async def read(self) -> bytes:
        """Return what comes next; b"" at the end."""
        while self._file is not None:
            with suppress(BlockingIOError):
                return os.read(self._file.fileno(), CHUNK)
            await self._wait(self._file.fileno())
        return b""

    async def _wait(self, fd: int) -> None:
        loop = asyncio.get_running_loop()
        self._bell = loop.create_future()
        loop.add_reader(fd, self._ring)
        try:
            await self._bell
        finally:
            if self._file is not None:
                loop.remove_reader(fd)

    def _ring(self) -> None:
        if self._bell is not None and not self._bell.done():
            self._bell.set_result(None)

    def close(self) -> None:
        """Let go of it; what was not read is lost."""
        file, self._file = self._file, None
        if file is not None:
            asyncio.get_running_loop().remove_reader(file.fileno())
            file.close()
            self._ring()


async def read_first(pipe: Pipe, limit: int, on_line: OnLine | None) -> bytes:
    """Return the first ``limit`` bytes; raise TooMuch if there are more and none are told as lines."""
    kept = bytearray()
    async for chunk in _chunks(pipe, on_line):
        room = limit - len(kept)
        if len(chunk) > room and on_line is None:
            raise TooMuch
        kept += chunk[:room]
    return bytes(kept)


async def read_last(pipe: Pipe, limit: int, on_line: OnLine | None) -> bytes:
    """Return the last ``limit`` bytes."""
    kept = bytearray()
    async for chunk in _chunks(pipe, on_line):
        kept += chunk
        del kept[:-limit]
    return bytes(kept)


async def _chunks(pipe: Pipe, on_line: OnLine | None) -> AsyncIterator[bytes]:
    """Yield what comes until the end, and tell its lines."""
    begun = b""
    while chunk := await pipe.read():
        yield chunk
        if on_line is not None:
            *lines, begun = (begun + chunk).replace(b"\r", b"\n").split(b"\n")
            begun = begun[-LINE_LIMIT:]
            for line in lines:
                on_line(line.decode(errors="replace"))
    if on_line is not None and begun:
        on_line(begun.decode(errors="replace"))
