"""Page sets: the pages of a guest's memory that differ from its base, as one file.

    16 bytes        the magic ``SERAIPG1`` and how many pages there are (u64)
    4 bytes each    the pages' numbers, ascending; zeroes up to a multiple of 4096
    4096 bytes each the pages, in the same order

All numbers are little-endian. A page of zeroes is content like any other: a page that became zero.
A file is believed only as far as ``read_numbers`` has checked it; what is in the pages is the
guest's own affair.
"""

import os
import struct
import sys
from array import array
from collections.abc import Iterable
from itertools import islice
from operator import ge

from serai.errors import Code, HostFailure

PAGE = 4096
MAGIC = b"SERAIPG1"
HEAD = struct.Struct("<8sQ")
COUNT_LIMIT = 1 << 28
"""A TiB of changed pages."""
CHECKED_AT_ONCE = 1 << 16

Run = tuple[int, int]
"""Pages side by side: the first one's number, and how many."""


def pages_offset(count: int) -> int:
    """Return where the pages begin in a file of ``count`` pages; the i-th is at ``+ i * PAGE``."""
    return -(-(HEAD.size + 4 * count) // PAGE) * PAGE


def numbers_of(runs: Iterable[Run]) -> "array[int]":
    """Return the numbers of all pages of ``runs``, which must be ascending."""
    numbers = array("I")
    for first, count in runs:
        numbers.extend(range(first, first + count))
    return numbers


def runs_of(numbers: "array[int]") -> list[Run]:
    """Return ascending ``numbers`` as runs, each as long as can be."""
    following = zip(numbers, islice(numbers, 1, None), strict=False)
    breaks = [at for at, (one, other) in enumerate(following, 1) if other != one + 1]
    begins = [0, *breaks] if numbers else []
    return [
        (numbers[begin], end - begin)
        for begin, end in zip(begins, [*breaks, len(numbers)], strict=False)
    ]


def write_numbers(fd: int, numbers: "array[int]") -> int:
    """Begin a file of the pages ``numbers`` (ascending); return where the first page belongs.

    What was in the file is gone. Raises OSError.
    """
    os.ftruncate(fd, 0)
    little = numbers[:]
    if sys.byteorder == "big":
        little.byteswap()
    head = HEAD.pack(MAGIC, len(numbers)) + little.tobytes()
    offset = pages_offset(len(numbers))
    write_all(fd, head.ljust(offset, b"\0"), 0)
    return offset


def read_numbers(fd: int, *, pages: int) -> "array[int]":
    """Return the numbers of the pages in a file; ``pages`` is how many the guest's memory has.

    Raises HostFailure (``snapshot-corrupt``) when the file is not, to the byte, a page set for such
    a memory.
    """
    count = _read_count(fd)
    offset = pages_offset(count)
    if count > pages or os.fstat(fd).st_size != offset + count * PAGE:
        raise _corrupt(f"it can't hold {count} pages")
    untrusted_table = _read(fd, offset - HEAD.size, HEAD.size)
    if any(untrusted_table[4 * count :]):
        raise _corrupt("there is something between its numbers and its pages")
    numbers = array("I")
    numbers.frombytes(untrusted_table[: 4 * count])
    if sys.byteorder == "big":
        numbers.byteswap()
    _check_order(numbers)
    if numbers and numbers[-1] >= pages:
        raise _corrupt(f"it has page {numbers[-1]} of a memory of {pages}")
    return numbers


def _read_count(fd: int) -> int:
    untrusted_head = _read(fd, HEAD.size, 0)
    magic, count = HEAD.unpack(untrusted_head)
    if magic != MAGIC or not 0 <= count <= COUNT_LIMIT:
        raise _corrupt("its head is not one")
    return int(count)


def _check_order(numbers: "array[int]") -> None:
    # in pieces, so that other threads get a turn
    for begin in range(0, len(numbers), CHECKED_AT_ONCE):
        piece = numbers[begin : begin + CHECKED_AT_ONCE + 1]
        if any(map(ge, piece, islice(piece, 1, None))):
            raise _corrupt("its numbers do not ascend")


def _read(fd: int, size: int, offset: int) -> bytes:
    data = b""
    while len(data) < size:
        more = os.pread(fd, size - len(data), offset + len(data))
        if not more:
            raise _corrupt("it ends too early")
        data += more
    return data


def read_into(fd: int, into: memoryview, offset: int) -> None:
    """Fill ``into`` from ``offset``. Raises OSError, or HostFailure when the file ends before."""
    while into:
        count = os.preadv(fd, [into], offset)
        if not count:
            raise _corrupt("it ends too early")
        into, offset = into[count:], offset + count


def write_all(fd: int, data: "bytes | memoryview", offset: int) -> None:
    """Write ``data`` at ``offset``, whole. Raises OSError."""
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written


def _corrupt(why: str) -> HostFailure:
    return HostFailure(
        Code.SNAPSHOT_CORRUPT,
        f"a file of changed pages is damaged: {why}",
        hint="See: serai check",
    )
