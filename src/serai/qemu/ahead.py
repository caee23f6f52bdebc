"""The memory of a guest copied while it runs, so that it is held for what is left only.

    copy       all pages that it has changed, then those that it wrote meanwhile, and again, until
               little is left or no less than before
    catch_up   the same, once more, just before it is held
    copy_rest  what it has written since; it is held
    gather     the copies become a page set; it goes on

The kernel notes what is written (``host.userfault``). The copies lie in a memory file of their own, each page
at its place, and a page that was copied while it was written is found as written in the next turn. Where
the kernel can't, or little was changed, nothing is done ahead.

All of it blocks, and belongs into a thread; none of it changes the guest.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from serai.host.pages import PAGE, Run, numbers_of, read_into, write_all
from serai.host.pages import write_numbers as begin_page_set
from serai.qemu.memory import BUFFER, Ram

LITTLE = 1024
"""So many pages are copied in 3 ms."""
TURNS = 8
COPIED = re.compile(rb"\x01+")


class Ahead:
    """What was copied ahead; ``open_ahead`` gives one. ``begun``: something was."""

    def __init__(self, ram: Ram, stage: int) -> None:
        self._ram = ram
        self._stage = stage
        self._copied = bytearray(ram.pages)
        self.begun = False

    def copy(self) -> None:
        """Begin, if much was changed."""
        runs = self._ram.changed()
        if count_pages(runs) > LITTLE and self._ram.watch():
            os.ftruncate(self._stage, self._ram.pages * PAGE)
            self.begun = True
            self._take(self._ram.take_changed())
            self.catch_up()

    def catch_up(self) -> None:
        """Copy what was written since, until that is little or does not become less by half."""
        before = self._ram.pages
        for _ in range(TURNS if self.begun else 0):
            count = self._take(self._ram.take_written())
            if count <= LITTLE or 2 * count > before:
                return
            before = count

    def copy_rest(self) -> None:
        """Copy what was written since; the guest is held."""
        self._take(self._ram.take_written())

    def _take(self, runs: list[Run]) -> int:
        self._ram.copy(runs, self._stage)
        for first, count in runs:
            self._copied[first : first + count] = b"\1" * count
        return count_pages(runs)

    def gather(self, fd: int) -> int:
        """Make a page set of all copies; return how many there are. The copies are gone then."""
        runs = [
            (found.start(), found.end() - found.start()) for found in COPIED.finditer(self._copied)
        ]
        end = begin_page_set(fd, numbers_of(runs)) + PAGE * count_pages(runs)
        buffer = memoryview(bytearray(BUFFER))
        for first, count in reversed(runs):
            # from the end, so that what was moved can be given back
            for at in range((first + count) * PAGE, first * PAGE, -BUFFER):
                size = min(BUFFER, at - first * PAGE)
                read_into(self._stage, buffer[:size], at - size)
                end -= size
                write_all(fd, buffer[:size], end)
                os.ftruncate(self._stage, at - size)
        return count_pages(runs)


def count_pages(runs: list[Run]) -> int:
    """Return how many pages there are in all."""
    return sum(count for _, count in runs)


@contextmanager
def open_ahead(ram: Ram) -> Iterator[Ahead]:
    """Give what the memory can be copied ahead with; it is gone after the block."""
    stage = os.memfd_create("serai-ahead", os.MFD_CLOEXEC)
    try:
        yield Ahead(ram, stage)
    finally:
        os.close(stage)
