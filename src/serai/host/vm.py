"""Another process's memory, many pieces in one call: process_vm_readv(2), which Python does not have.

Needs ptrace's permission, as ``/proc/PID/mem`` does, and is half as dear for a page alone.
"""

import ctypes
import os
from array import array

PIECES_LIMIT = 1024
"""IOV_MAX of Linux (uio.h)."""


class _Piece(ctypes.Structure):
    _fields_ = (("address", ctypes.c_void_p), ("size", ctypes.c_size_t))


LIBC = ctypes.CDLL(None, use_errno=True)
READ, WRITE = LIBC.process_vm_readv, LIBC.process_vm_writev
for each in (READ, WRITE):
    each.restype = ctypes.c_ssize_t
    each.argtypes = (
        ctypes.c_int, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong,
        ctypes.c_ulong,
    )  # fmt: skip


def read_memory_of(pid: int, pieces: "array[int]", into: bytearray, size: int) -> None:
    """Read pieces of a process's memory, one after the other, into the first ``size`` bytes.

    ``pieces`` are pairs of address and size (``array("Q")``), ``size`` in all. Raises OSError.
    """
    _transfer(READ, pid, pieces, into, size)


def write_memory_of(pid: int, pieces: "array[int]", data: bytearray, size: int) -> None:
    """Write the first ``size`` bytes into pieces of a process's memory. Raises OSError."""
    _transfer(WRITE, pid, pieces, data, size)


def _transfer(
    call: "ctypes._NamedFuncPointer", pid: int, pieces: "array[int]", own: bytearray, size: int
) -> None:
    assert size <= len(own) and len(pieces) <= 2 * PIECES_LIMIT
    local = _Piece(ctypes.addressof((ctypes.c_char * len(own)).from_buffer(own)), size)
    there, _ = pieces.buffer_info()
    done = call(pid, ctypes.byref(local), 1, there, len(pieces) // 2, 0)
    if done < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    if done != size:
        raise ProcessLookupError
