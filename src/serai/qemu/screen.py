"""A picture of a guest's screen."""

import os

from serai.qemu import commands
from serai.qemu.lent import Lent
from serai.qemu.qmp import Monitor

SCREENSHOT_LIMIT = 64 << 20


async def take_picture(monitor: Monitor, lent: Lent, timeout: float) -> bytes:
    """Return what the screen shows, as PNG."""
    picture = os.memfd_create("screenshot", os.MFD_CLOEXEC)
    try:
        await _dump_screen(monitor, lent, picture, timeout)
        size = min(os.fstat(picture).st_size, SCREENSHOT_LIMIT)
        return os.pread(picture, size, 0)
    finally:
        os.close(picture)


async def _dump_screen(monitor: Monitor, lent: Lent, picture: int, timeout: float) -> None:
    # QEMU takes from an fdset only a descriptor with the very access mode that it wants
    write_only = os.open(f"/proc/self/fd/{picture}", os.O_WRONLY | os.O_CLOEXEC)
    try:
        fdset = await commands.add_fd(monitor, write_only, timeout)
    finally:
        os.close(write_only)
    try:
        await commands.screendump(monitor, fdset, timeout)
    finally:
        await lent.take_back(monitor, fdset, timeout)
