"""Which pages of its memory a process writes: write protection that the kernel lifts by itself.

userfaultfd(2) with UFFD_FEATURE_WP_ASYNC (Linux 6.7): a page that was protected is marked as written
by the first write to it, and the writer goes on at once; the PAGEMAP_SCAN ioctl finds and protects in
one step. Nobody has to answer, so nothing depends on us: when we die all goes on.

Such a descriptor belongs to the memory of whoever made it. QEMU makes none for us, so it is planted
(``plant``) while it has no guest yet; it keeps it open, and any later daemon finds it there. It gives
QEMU no right that it has not got: with UFFD_USER_MODE_ONLY everybody may make one for himself.
"""

import contextlib
import ctypes
import fcntl
import os
import struct

from serai.host.borrow import borrow_file
from serai.host.inject import call_in

USERFAULTFD = 323
"""Its number on x86-64."""
USER_MODE_ONLY = 1
API, REGISTER = 0xC018AA3F, 0xC020AA00
API_VERSION = 0xAA
FEATURES = 1 << 15 | 1 << 13 | 1 << 12
"""Written to without a handler, in pages that are not there yet too, also in shared memory's pages."""
MODE_WRITE_PROTECT = 2
LINK = "anon_inode:[userfaultfd]"

SYSCALL = ctypes.CDLL(None, use_errno=True).syscall
SYSCALL.restype = ctypes.c_long


def plant(pid: int) -> None:
    """Let a process have a descriptor by which it can be told what it writes.

    For one that nobody would miss, in a thread of its own (``inject``). Raises OSError where this kernel or
    this host can't; the process goes on.
    """
    os.close(_make_ready(_make_own()))  # so that nobody is stopped in vain
    number = call_in(pid, USERFAULTFD, os.O_CLOEXEC | USER_MODE_ONLY)
    os.close(_make_ready(borrow_file(pid, number)))


def _make_own() -> int:
    fd: int = SYSCALL(USERFAULTFD, os.O_CLOEXEC | USER_MODE_ONLY)
    if fd < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return fd


def _make_ready(fd: int) -> int:
    """Say which features are wanted, as must be done once; the descriptor is closed on failure."""
    try:
        fcntl.ioctl(fd, API, bytearray(struct.pack("=QQQ", API_VERSION, FEATURES, 0)))
    except BaseException:
        os.close(fd)
        raise
    return fd


def watch(pid: int, start: int, size: int) -> bool:
    """Have the kernel note in a part of a process's memory what is written; False where it can't.

    Nothing is protected yet. Doing it again changes nothing; it lasts as long as the process.
    """
    with contextlib.suppress(OSError):
        for number in map(int, os.listdir(f"/proc/{pid}/fd")):
            if _link_of(pid, number) == LINK:
                return _watch_by(borrow_file(pid, number), start, size)
    return False


def _watch_by(fd: int, start: int, size: int) -> bool:
    try:
        wanted = struct.pack("=QQQQ", start, size, MODE_WRITE_PROTECT, 0)
        fcntl.ioctl(fd, REGISTER, bytearray(wanted))
        return True
    finally:
        os.close(fd)


def _link_of(pid: int, number: int) -> str:
    with contextlib.suppress(FileNotFoundError):
        return os.readlink(f"/proc/{pid}/fd/{number}")
    return ""
