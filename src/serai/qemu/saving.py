"""Saving a guest that has its memory privately: its devices, and the pages that it has changed.

    begin      while it runs, whatever time it takes
    catch_up   just before it is held
    take       while it is held
    finish     when it goes on

What is saved loads over the guest's base (docs/design/0030).
"""

import asyncio
import os
from collections.abc import Callable
from typing import ParamSpec

from serai.errors import Code, HostFailure
from serai.host.pages import write_all
from serai.host.threads import in_own_thread
from serai.qemu import commands
from serai.qemu.ahead import Ahead
from serai.qemu.lent import Lent
from serai.qemu.memory import Ram, looking
from serai.qemu.qmp import Monitor
from serai.qemu.state import STATE_LIMIT, splice

P = ParamSpec("P")


class Saving:
    """One saving; ``Instance.saving`` gives it. Each step raises HostFailure and changes no guest.

    (``snapshot-unfit``, ``qmp-failed``, ``permission``, ``disk-full``)
    """

    def __init__(
        self, monitor: Monitor, lent: Lent, ram: Ram, ahead: Ahead, timeout: float
    ) -> None:
        self._monitor = monitor
        self._lent = lent
        self._ram = ram
        self._ahead = ahead
        self._timeout = timeout
        self._devices = b""

    async def begin(self) -> None:
        """Copy ahead what can be, if it is much."""
        await self._apart(self._ahead.copy)

    async def catch_up(self) -> None:
        """Leave little to be done while the guest is held."""
        await self._apart(self._ahead.catch_up)

    async def take(self, pages_fd: int) -> None:
        """Take the moment; the guest is held. It may go on then."""
        # at once: saving devices changes no memory, or QEMU's own migration would lose that
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._apart(self._copy, pages_fd))
                self._devices = await _save_devices(self._monitor, self._lent, self._timeout)
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from failed

    def _copy(self, pages_fd: int) -> None:
        if self._ahead.begun:
            self._ahead.copy_rest()
        else:
            self._ram.save(self._ram.changed(), pages_fd)

    async def finish(self, base_state_fd: int, state_fd: int, pages_fd: int) -> None:
        """Write what ``Instance.take_state`` takes; ``base_state_fd`` is its base's stream."""
        if self._ahead.begun:
            await self._apart(self._ahead.gather, pages_fd)
        await in_own_thread(_write_spliced, base_state_fd, self._devices, state_fd)

    async def _apart(self, work: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
        with looking(self._ram.pid):
            await in_own_thread(work, *args, **kwargs)


async def _save_devices(monitor: Monitor, lent: Lent, timeout: float) -> bytes:
    """Return the state of all devices as QEMU writes it."""
    fd = os.memfd_create("devices", os.MFD_CLOEXEC)
    try:
        async with lent.lend(monitor, fd, timeout) as fdset:
            await commands.save_devices(monitor, fdset, timeout)
        return _read_whole(fd)
    finally:
        os.close(fd)


def _write_spliced(base_fd: int, devices: bytes, state_fd: int) -> None:
    os.ftruncate(state_fd, 0)
    write_all(state_fd, splice(_read_whole(base_fd), devices), 0)


def _read_whole(fd: int) -> bytes:
    size = os.fstat(fd).st_size
    if size > STATE_LIMIT:
        raise HostFailure(Code.SNAPSHOT_UNFIT, "the state of the devices is too large")
    return os.pread(fd, size, 0)
