"""Log files that others write to and that must not grow without bound."""

import ctypes
import os
from pathlib import Path

COLLAPSE_RANGE = 0x08
"""``fallocate(2)``: take a range out of a file; ext4 and xfs can, in whole blocks."""

CHUNK = 1 << 20

_libc = ctypes.CDLL(None, use_errno=True)


def trim_log(path: Path, limit: int) -> bool:
    """Cut the file to the newer half of ``limit`` if it has grown over ``limit``; tell if so.

    The writer must append (``O_APPEND``). Where the file system can take out a range, nothing
    that is written meanwhile is lost; elsewhere only what arrives within the last two system calls
    of the copy, some microseconds. A missing file is fine.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        size = os.fstat(fd).st_size
        if size <= limit:
            return False
        block = os.fstatvfs(fd).f_bsize
        surplus = (size - limit // 2) // block * block
        if not surplus or not _collapse(fd, surplus):
            _copy_down(fd, size - limit // 2)
        return True
    finally:
        os.close(fd)


def _collapse(fd: int, length: int) -> bool:
    """Take the first ``length`` bytes out of the file; False where the file system can't."""
    result = _libc.fallocate(
        ctypes.c_int(fd), ctypes.c_int(COLLAPSE_RANGE), ctypes.c_int64(0), ctypes.c_int64(length)
    )
    return bool(result == 0)


def _copy_down(fd: int, start: int) -> None:
    """Move what is from ``start`` on to the front, and what was appended meanwhile, then cut."""
    kept = 0
    while chunk := os.pread(fd, CHUNK, start + kept):
        kept += os.pwrite(fd, chunk, kept)
    os.ftruncate(fd, kept)
