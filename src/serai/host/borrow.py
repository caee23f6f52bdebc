"""Open files of another process, shared with it: pidfd_getfd(2), which Python does not have.

A tap has one owner of its queue, so a second QEMU of the same guest can't open it by name: it is
given the very file that the first one has. Needs ptrace's permission, as reading memory does.
"""

import contextlib
import ctypes
import os
from collections.abc import Collection

from serai.errors import Code, HostFailure

PIDFD_GETFD = 438
"""Its number, the same on all architectures (Linux 5.6)."""
TUN = "/dev/net/tun"

SYSCALL = ctypes.CDLL(None, use_errno=True).syscall
SYSCALL.restype = ctypes.c_long


def borrow_taps(pid: int, names: Collection[str]) -> dict[str, int]:
    """Return new descriptors of the taps that a process has open, by interface; the caller closes them.

    Raises HostFailure (``permission``) where this host does not let us, or it has not got one.
    """
    found: dict[str, int] = {}
    try:
        for number in map(int, os.listdir(f"/proc/{pid}/fd")) if names else ():
            name = _tap_at(pid, number)
            if name in names and name not in found:
                found[name] = borrow_file(pid, number)
        missing = set(names) - set(found)
        if missing:
            raise FileNotFoundError(f"it has not got {', '.join(sorted(missing))}")
    except OSError as error:
        for fd in found.values():
            os.close(fd)
        raise HostFailure(
            Code.PERMISSION, f"the taps of process {pid} can't be shared: {error}"
        ) from error
    return found


def _tap_at(pid: int, number: int) -> str:
    """Return which interface an open file leads to; "" if it is no tap."""
    with contextlib.suppress(FileNotFoundError):
        if os.readlink(f"/proc/{pid}/fd/{number}") == TUN:
            with open(f"/proc/{pid}/fdinfo/{number}") as file:
                facts = dict(line.split(":", 1) for line in file if ":" in line)
            return facts.get("iff", "").strip()
    return ""


def borrow_file(pid: int, number: int) -> int:
    """Return a new descriptor of what a process has open as ``number``. Raises OSError."""
    pidfd = os.pidfd_open(pid)
    try:
        fd: int = SYSCALL(PIDFD_GETFD, pidfd, number, 0)
        if fd < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        return fd
    finally:
        os.close(pidfd)
