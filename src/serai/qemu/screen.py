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
        async with lent.lend(monitor, picture, timeout) as fdset:
            await commands.screendump(monitor, fdset, timeout)
        size = min(os.fstat(picture).st_size, SCREENSHOT_LIMIT)
        return os.pread(picture, size, 0)
    finally:
        os.close(picture)
