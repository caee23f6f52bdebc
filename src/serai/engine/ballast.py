"""Some room kept back on the disk, for when it is full.

Guests write to the disk that the database is on. Once they have filled it no job could be stored,
so none of them could be stopped or deleted, and nobody could make room. So a file is kept that
means nothing: it is cut by a piece each time when the database finds no room for a change, and
filled again once there is enough. Pieces, because somebody else may take what is given free.
"""

import os
import shutil
from contextlib import suppress
from pathlib import Path

SIZE = 8 << 20
PIECE = 1 << 20
"""A change takes some 10 KiB of it; the write-ahead log begins anew when it has 4 MiB."""


class Ballast:
    """The file at ``path``; ``reserve`` is how much has to be free beside it before it is made."""

    def __init__(self, path: Path, reserve: int) -> None:
        self._path = path
        self._reserve = reserve

    def fill(self) -> None:
        """Make the file whole if it is not and there is room enough; failing is no error."""
        with suppress(OSError):
            if self._size() >= SIZE or shutil.disk_usage(self._path.parent).free < self._reserve:
                return
            fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(fd, 0, SIZE)
            finally:
                os.close(fd)

    def cut(self) -> bool:
        """Give a piece of the file free; tell whether that has made room."""
        size = self._size()
        if not size:
            return False
        try:
            os.truncate(self._path, max(0, size - PIECE))
        except OSError:
            return False
        return True

    def _size(self) -> int:
        try:
            return self._path.stat().st_size
        except OSError:
            return 0
