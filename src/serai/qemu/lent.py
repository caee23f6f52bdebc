"""Descriptors that QEMU is lent for one thing, and takes its time to close.

While its guest is held, QEMU closes nothing of an fdset, not even what it was told to (monitor's
``monitor_fdset_cleanup``). So what was taken back then is taken back once more when the guest goes
on.
"""

import contextlib

from serai.errors import SeraiError
from serai.qemu import commands
from serai.qemu.qmp import Monitor


class Lent:
    """What one QEMU was lent and may still have open."""

    def __init__(self) -> None:
        self._left: dict[tuple[int, int | None], None] = {}

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
