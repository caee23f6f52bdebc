"""Descriptors that QEMU is lent for one thing, and takes its time to close.

While its guest is held, QEMU closes nothing of an fdset, not even what it was told to (monitor's
``monitor_fdset_cleanup``). So what was taken back then is taken back once more when the guest goes
on.
"""

import contextlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from serai.errors import SeraiError
from serai.qemu import commands
from serai.qemu.qmp import Monitor


class Lent:
    """What one QEMU was lent and may still have open."""

    def __init__(self) -> None:
        self._left: dict[tuple[int, int | None], None] = {}

    @asynccontextmanager
    async def lend(self, monitor: Monitor, file: int, timeout: float) -> AsyncIterator[int]:
        """Lend a file of ours to be written, and give the number of its fdset; it is taken back."""
        # QEMU takes from an fdset only a descriptor with the very access mode that it wants
        write_only = os.open(f"/proc/self/fd/{file}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            fdset = await commands.add_fd(monitor, write_only, timeout)
        finally:
            os.close(write_only)
        try:
            yield fdset
        finally:
            await self.take_back(monitor, fdset, timeout)

    async def take_back(
        self, monitor: Monitor, fdset: int, timeout: float, *, fd: int | None = None
    ) -> None:
        """Have an fdset closed, or one descriptor of it; never raises for what QEMU says."""
        self._left[fdset, fd] = None
        with contextlib.suppress(SeraiError):
            await commands.remove_fdset(monitor, fdset, timeout, fd=fd)

    async def close_left(self, monitor: Monitor, timeout: float) -> None:
        """Have all closed that was taken back; for when the guest has just gone on."""
        left, self._left = self._left, {}
        for fdset, fd in left:
            with contextlib.suppress(SeraiError):  # it may be closed already
                await commands.remove_fdset(monitor, fdset, timeout, fd=fd)
