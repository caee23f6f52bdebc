"""Reading what a tool writes, within bounds, however much and however it writes.

Used by ``process`` alone. Lines are passed on as they come, since a tool that works for minutes
tells how far it is; ``\\r`` ends a line too, as progress bars use it.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from typing import IO

OnLine = Callable[[str], None]

CHUNK = 64 << 10
LINE_LIMIT = 64 << 10


class TooMuch(Exception):
    """More was written than anybody wanted to read."""


async def open_reader(
    stack: ExitStack, pipe: IO[bytes] | None, *, limit: int = CHUNK
) -> asyncio.StreamReader:
    """Return a reader of the pipe's end that we hold; closing ``stack`` ends it. None reads nothing."""
    reader = asyncio.StreamReader(limit=limit)
    if pipe is None:
        reader.feed_eof()
        return reader
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
    stack.callback(transport.close)
    return reader


async def read_first(reader: asyncio.StreamReader, limit: int, on_line: OnLine | None) -> bytes:
    """Return the first ``limit`` bytes; raise TooMuch if there are more and none are told as lines."""
    kept = bytearray()
    async for chunk in _chunks(reader, on_line):
        room = limit - len(kept)
        if len(chunk) > room and on_line is None:
            raise TooMuch
        kept += chunk[:room]
    return bytes(kept)


async def read_last(reader: asyncio.StreamReader, limit: int, on_line: OnLine | None) -> bytes:
    """Return the last ``limit`` bytes."""
    kept = bytearray()
    async for chunk in _chunks(reader, on_line):
        kept += chunk
        del kept[:-limit]
    return bytes(kept)


async def _chunks(reader: asyncio.StreamReader, on_line: OnLine | None) -> AsyncIterator[bytes]:
    """Yield what comes until the end, and tell its lines."""
    begun = b""
    while chunk := await reader.read(CHUNK):
        yield chunk
        if on_line is not None:
            *lines, begun = (begun + chunk).replace(b"\r", b"\n").split(b"\n")
            begun = begun[-LINE_LIMIT:]
            for line in lines:
                on_line(line.decode(errors="replace"))
    if on_line is not None and begun:
        on_line(begun.decode(errors="replace"))
