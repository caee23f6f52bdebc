"""Unix sockets that we make ourselves: bound before anybody is started who should use them.

A path in ``sockaddr_un`` holds 107 bytes (unix(7)); a longer one is reached through
``/proc/self/fd/N/name``, with N the opened folder.
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PATH_LIMIT = 107
BACKLOG = 16


@contextmanager
def short_address(path: Path) -> Iterator[str]:
    """Give an address that fits for ``path``, valid within the block."""
    if len(os.fsencode(path)) <= PATH_LIMIT:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def bind_unix(path: Path, *, mode: int, backlog: int = BACKLOG) -> socket.socket:
    """Return a listening, non-blocking socket at ``path``; what was there before is replaced.

    ``mode`` is the file's from the first moment on. The caller removes the file.
    """
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        os.fchmod(listener.fileno(), mode)
        with short_address(path) as address:
            listener.bind(address)
        os.chmod(path, mode)
        listener.listen(backlog)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


def call_unix(path: Path) -> socket.socket:
    """Return a non-blocking socket that is connected to the one at ``path``.

    Never waits: a local socket takes a caller at once or not at all. Raises OSError;
    BlockingIOError when as many wait for the listener already as it lets wait (connect(2): EAGAIN,
    which asyncio's own loop would take for a connection that is on its way).
    """
    caller = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        caller.setblocking(False)
        with short_address(path) as address:
            caller.connect(address)
    except BaseException:
        caller.close()
        raise
    return caller


async def connect_unix(
    path: Path, *, limit: int = 64 << 10
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to the socket at ``path``; ``limit`` bounds a line of the reader.

    Raises as ``call_unix`` does.
    """
    caller = call_unix(path)
    try:
        return await asyncio.open_unix_connection(sock=caller, limit=limit)
    except BaseException:
        caller.close()
        raise
