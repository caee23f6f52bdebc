"""A guest's memory from outside: what its QEMU maps, read and written through ``/proc/PID``.

The memory is a memfd that the daemon made (docs/design/0004). A guest that was booted maps it
shared; one that was forked, or frozen once, maps it privately: what it writes are pages of its own,
which nobody else sees, and ``/proc/PID/pagemap`` tells which (proc_pid_pagemap(5)). A file that
others map privately is a *base*: sealed, so that it never changes again.

QEMU is not trusted here: what ``/proc`` says of it is checked, and a base is told from a lookalike
by its owner, which is us. Looking into another process needs ptrace's permission (ptrace(2));
docs/design/0031 says what that means for a daemon without root.
"""

import contextlib
import errno
import fcntl
import os
import re
import struct
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from serai.errors import Code, HostFailure
from serai.host.pages import (
    PAGE,
    Run,
    numbers_of,
    pages_offset,
    read_into,
    read_numbers,
    runs_of,
    write_all,
)
from serai.host.pages import write_numbers as begin_page_set
from serai.host.userfault import watch
from serai.host.vm import PIECES_LIMIT, read_memory_of, write_memory_of

BUFFER = 1 << 20
PRIVATE = re.compile(rb"([0-9a-f]+)-([0-9a-f]+) rw-p ([0-9a-f]+) ", re.ASCII)
"""The beginning of a line of ``/proc/PID/maps`` (proc(5))."""
MAPS_LIMIT = 8 << 20
BASE_MODE = 0o666
FIRST_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | 0x10
"""With F_SEAL_FUTURE_WRITE (linux/fcntl.h), which Python 3.11 does not name."""

PAGEMAP_SCAN = 0xC0606610
SCAN_ARGUMENTS = struct.Struct("=12Q")
IS_WRITTEN, IS_FILE, IS_PRESENT, IS_SWAPPED = 1 << 1, 1 << 2, 1 << 3, 1 << 4
PROTECT = 1 << 0 | 1 << 1
"""Protect what is found, as the same step, and only where the kernel notes what is written."""
REGIONS = 4096
ENTRIES_AT_ONCE = 1 << 17

OWN_PAGE = bytes((top & 0xA0) == 0x80 or (top & 0x40) != 0 for top in range(256))
"""By the top byte of an entry of pagemap: in memory and not the file's, or swapped out."""
OWN_PAGES = re.compile(rb"\x01+")


def ram_name(ram: str) -> str:
    """Return the name of the memory file ``ram``."""
    return f"serai-ram-{ram}"


@dataclass(frozen=True, slots=True)
class Ram:
    """The memory of a running guest as its QEMU has it; ``open_ram`` gives one."""

    pid: int
    pagemap: int
    start: int
    pages: int

    # -- what was changed --------------------------------------------------------------------------

    def changed(self) -> list[Run]:
        """Return the pages of a private mapping that differ from the base, or may."""
        try:
            return list(self._scan())
        except OSError as error:
            if error.errno not in (errno.ENOTTY, errno.EINVAL):
                raise
        return list(self._read_pagemap())  # a kernel before 6.7

    def watch(self) -> bool:
        """Have the kernel note what is written from now on; False where it can't (``userfault``)."""
        return watch(self.pid, self.start, self.pages * PAGE)

    def take_changed(self) -> list[Run]:
        """Return what ``changed`` does, and have the next writes noted. Needs ``watch``."""
        return list(self._scan(flags=PROTECT))

    def take_written(self) -> list[Run]:
        """Return those of the changed pages that were written since they were taken last."""
        return list(self._scan(flags=PROTECT, also=IS_WRITTEN))

    def _scan(self, *, flags: int = 0, also: int = 0) -> Iterator[Run]:
        regions = array("Q", bytes(REGIONS * 24))
        found, at, end = REGIONS, self.start, self.start + self.pages * PAGE
        while found == REGIONS:
            # in memory or swapped out, and not a page of the file; ``walk_end`` is not to be
            # believed: Linux 6.18 leaves an earlier one there
            arguments = bytearray(self._scan_arguments(flags, at, end, regions, also))
            found = fcntl.ioctl(self.pagemap, PAGEMAP_SCAN, arguments)
            for index in range(0, 3 * found, 3):
                yield self._run(regions[index], regions[index + 1])
            at = regions[3 * found - 2] if found else end

    @staticmethod
    def _scan_arguments(
        flags: int, begin: int, end: int, regions: "array[int]", also: int
    ) -> bytes:
        vector = regions.buffer_info()[0]
        wanted = IS_PRESENT | IS_SWAPPED
        return SCAN_ARGUMENTS.pack(
            SCAN_ARGUMENTS.size, flags, begin, end, 0, vector, REGIONS, 0,
            IS_FILE, IS_FILE | also, wanted, wanted,
        )  # fmt: skip

    def _run(self, begin: int, end: int) -> Run:
        return (begin - self.start) // PAGE, (end - begin) // PAGE

    def _read_pagemap(self) -> Iterator[Run]:
        for first in range(0, self.pages, ENTRIES_AT_ONCE):
            count = min(ENTRIES_AT_ONCE, self.pages - first)
            entries = os.pread(self.pagemap, 8 * count, (self.start // PAGE + first) * 8)
            if len(entries) != 8 * count:
                raise _gone()
            for found in OWN_PAGES.finditer(entries[7::8].translate(OWN_PAGE)):
                yield first + found.start(), found.end() - found.start()

    # -- pages out and in --------------------------------------------------------------------------

    def save(self, runs: list[Run], fd: int) -> int:
        """Write these pages to ``fd`` as a page set; return how many there are."""
        numbers = numbers_of(runs)
        offset = begin_page_set(fd, numbers)
        buffer = bytearray(BUFFER)
        for pieces, size in self._batches(runs):
            read_memory_of(self.pid, pieces, buffer, size)
            write_all(fd, memoryview(buffer)[:size], offset)
            offset += size
        return len(numbers)

    def copy(self, runs: list[Run], fd: int) -> None:
        """Write these pages to ``fd``, each where it is in the memory."""
        buffer = bytearray(BUFFER)
        for pieces, size in self._batches(runs):
            read_memory_of(self.pid, pieces, buffer, size)
            filled = 0
            for at, length in zip(pieces[::2], pieces[1::2], strict=True):
                write_all(fd, memoryview(buffer)[filled : filled + length], at - self.start)
                filled += length

    def load(self, fd: int) -> int:
        """Write the pages of a page set into the memory; return how many there were.

        Raises HostFailure (``snapshot-corrupt``) when the set is damaged; nothing is written then.
        """
        numbers = read_numbers(fd, pages=self.pages)
        offset = pages_offset(len(numbers))
        buffer = bytearray(BUFFER)
        for pieces, size in self._batches(runs_of(numbers)):
            read_into(fd, memoryview(buffer)[:size], offset)
            write_memory_of(self.pid, pieces, buffer, size)
            offset += size
        return len(numbers)

    def _batches(self, runs: list[Run]) -> Iterator[tuple["array[int]", int]]:
        """Give the places of pages in QEMU, as many as one call can take, and their size in all."""
        pieces, filled = array("Q"), 0
        for first, count in runs:
            at, left = self.start + first * PAGE, count * PAGE
            while left:
                size = min(left, BUFFER - filled)
                pieces.append(at)
                pieces.append(size)
                at, left, filled = at + size, left - size, filled + size
                if filled == BUFFER or len(pieces) == 2 * PIECES_LIMIT:
                    yield pieces, filled
                    pieces, filled = array("Q"), 0
        if filled:
            yield pieces, filled


@contextmanager
def open_ram(pid: int, name: str, size: int) -> Iterator[Ram]:
    """Open the memory of a running QEMU, ``size`` bytes from the memfd ``name``.

    Raises HostFailure: ``permission`` where this host does not let us, ``snapshot-unfit`` when
    QEMU has not mapped it as it should. What is done with it may raise OSError; it is wrapped too.
    """
    with looking(pid), contextlib.ExitStack() as stack:
        pagemap = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, pagemap)
        with open(f"/proc/{pid}/maps", "rb") as file:
            start = find_mapping(file.read(MAPS_LIMIT), name, size)
        yield Ram(pid, pagemap, start, size // PAGE)


def find_mapping(untrusted_maps: bytes, name: str, size: int) -> int:
    """Return where a memfd is mapped, whole and privately, by the text of ``/proc/PID/maps``."""
    wanted = b" /memfd:%b (deleted)" % name.encode()
    lines = (line for line in untrusted_maps.splitlines() if line.endswith(wanted))
    found = filter(None, map(PRIVATE.match, lines))
    pieces = [tuple(int(word, 16) for word in each.groups()) for each in found]
    if not pieces:
        raise _unfit("it is not mapped privately")
    start, end = pieces[0][0], pieces[0][0]
    for begin, piece_end, offset in pieces:
        if begin != end or offset != begin - start:
            raise _unfit("it is mapped in pieces")
        end = piece_end
    if end - start != size:
        raise _unfit("it has another size")
    return start


# -- the file behind it ----------------------------------------------------------------------------


def open_ram_file(pid: int, name: str, size: int, *, private: bool) -> int:
    """Return a new descriptor of a running QEMU's memory file; one that is ``private`` is a base.

    Raises HostFailure: ``permission``, or ``snapshot-unfit`` when QEMU has no such file.
    """
    wanted = f"/memfd:{name} (deleted)"
    with looking(pid):
        for each in os.listdir(f"/proc/{pid}/fd"):
            path = f"/proc/{pid}/fd/{each}"
            with contextlib.suppress(FileNotFoundError):
                if os.readlink(path) == wanted:
                    return _checked(os.open(path, os.O_RDWR | os.O_CLOEXEC), size, private)
    raise _unfit("QEMU has no such file")


def seal_base(pid: int, name: str, size: int) -> None:
    """Seal the base that a running QEMU has mapped privately, if that was not done yet.

    Only a file that was made ours before: QEMU can't have put another in its place. Raises as
    ``open_ram_file`` and ``seal_memory`` do.
    """
    fd = open_ram_file(pid, name, size, private=False)
    try:
        if os.fstat(fd).st_uid == os.geteuid():
            seal_memory(fd)
    finally:
        os.close(fd)


def _checked(fd: int, size: int, private: bool) -> int:
    facts = os.fstat(fd)
    is_base = facts.st_uid == os.geteuid() and is_sealed(fd)
    if facts.st_size != size or (private and not is_base):
        os.close(fd)
        raise _unfit("QEMU's file is not the one that it was given")
    return fd


def is_sealed(fd: int) -> bool:
    """Tell whether a memory file never changes again."""
    return bool(fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_WRITE)


def close_to_new_writers(fd: int) -> None:
    """Let a memory file be written by nobody but who has it mapped shared already.

    It becomes ours, and anybody who is given it may open and map it privately. Doing it again
    changes nothing. From now on holes can't be punched into it either.
    """
    os.fchown(fd, os.geteuid(), os.getegid())
    os.fchmod(fd, BASE_MODE)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, FIRST_SEALS)


def seal_memory(fd: int) -> None:
    """Seal a memory file for good: it is a base. Nobody may have it mapped shared any more.

    Doing it again changes nothing. Raises HostFailure (``snapshot-unfit``) when somebody still has.
    """
    if is_sealed(fd):
        return
    close_to_new_writers(fd)
    try:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL)
    except OSError as error:
        raise _unfit("somebody can still write to it") from error


# -- what goes wrong -------------------------------------------------------------------------------


@contextmanager
def looking(pid: int) -> Iterator[None]:
    """Turn what the kernel says about looking into a process, an OSError, into our errors."""
    try:
        yield
    except PermissionError as error:
        raise HostFailure(
            Code.PERMISSION,
            f"this host does not let serai look into the memory of process {pid}",
            hint="Run the daemon as root, or: sysctl kernel.yama.ptrace_scope=0",
        ) from error
    except (FileNotFoundError, ProcessLookupError) as error:
        raise _gone() from error
    except OSError as error:
        code = Code.DISK_FULL if error.errno == errno.ENOSPC else Code.SNAPSHOT_UNFIT
        raise HostFailure(
            code, f"the guest's memory can't be read or written: {error.strerror}"
        ) from error


def _gone() -> HostFailure:
    return HostFailure(Code.SNAPSHOT_UNFIT, "QEMU ended while its memory was read or written")


def _unfit(why: str) -> HostFailure:
    return HostFailure(Code.SNAPSHOT_UNFIT, f"the guest's memory can't be frozen: {why}")
