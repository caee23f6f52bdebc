"""A TCP port of this host that leads to a unix socket, for as long as it is wanted."""

import asyncio
import contextlib
import os
from asyncio import StreamReader, StreamWriter
from collections.abc import Callable
from pathlib import Path

CHUNK = 64 << 10
PATH_LIMIT = 107
BACKLOG = 16


def forward(path: Path, port: int, on_open: Callable[[int], None]) -> None:
    """Listen on 127.0.0.1 and pass every connection on to ``path``, until interrupted.

    ``on_open`` is told the port once it is open. Raises OSError when it can't be opened.
    """
    asyncio.run(_forward(path, port, on_open))


async def _forward(path: Path, port: int, on_open: Callable[[int], None]) -> None:
    async def on_viewer(viewer: StreamReader, to_viewer: StreamWriter) -> None:
        try:
            screen, to_screen = await _connect(path)
        except OSError:
            to_viewer.close()  # the guest is off: the viewer sees the end at once
            return
        await asyncio.gather(_pass_on(viewer, to_screen), _pass_on(screen, to_viewer))

    server = await asyncio.start_server(on_viewer, "127.0.0.1", port, backlog=BACKLOG)
    async with server:
        on_open(server.sockets[0].getsockname()[1])
        await server.serve_forever()


async def _connect(path: Path) -> tuple[StreamReader, StreamWriter]:
    if len(os.fsencode(path)) <= PATH_LIMIT:
        return await asyncio.open_unix_connection(path)
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return await asyncio.open_unix_connection(f"/proc/self/fd/{folder}/{path.name}")
    finally:
        os.close(folder)


async def _pass_on(source: StreamReader, target: StreamWriter) -> None:
    """Pass bytes on until either side ends; then the target is closed, which ends the other way."""
    with contextlib.suppress(OSError):
        while data := await source.read(CHUNK):
            target.write(data)
            await target.drain()
    target.close()
