"""One running QEMU, and all that can be done with it.

How it begins and ends is in ``life``. Not for: deciding anything about the guest (``engine``).
"""

import asyncio
import socket

from serai.host.sockets import connect_unix
from serai.qemu import commands
from serai.qemu.commands import TIMEOUT, RunState
from serai.qemu.events import InstanceEvent, InstanceEventKind
from serai.qemu.life import Life
from serai.qemu.resources import memory_name, socket_path
from serai.qemu.screen import take_picture

__all__ = ["Instance", "InstanceEvent", "InstanceEventKind", "RunState", "memory_name"]


class Instance(Life):
    """One running QEMU. Make it with ``start`` or ``adopt``."""

    async def status(self, timeout: float = TIMEOUT) -> RunState:
        """Return what the guest is doing; Interrupted (``qmp-lost``) when QEMU does not say."""
        return await commands.query_status(await self._connected(timeout), timeout)

    async def go_on(self, timeout: float = TIMEOUT) -> None:
        """Let the virtual CPUs run."""
        await commands.cont(await self._connected(timeout), timeout)

    async def hold(self, timeout: float = TIMEOUT) -> None:
        """Hold the virtual CPUs."""
        await commands.stop(await self._connected(timeout), timeout)

    async def press_power(self, timeout: float = TIMEOUT) -> None:
        """Press the power button."""
        await commands.press_power(await self._connected(timeout), timeout)

    async def resize_drive(self, name: str, size: int, timeout: float = TIMEOUT) -> None:
        """Grow a drive to ``size`` bytes."""
        await commands.resize_block(await self._connected(timeout), name, size, timeout)

    async def set_balloon(self, size: int, timeout: float = TIMEOUT) -> None:
        """Ask the guest to live with ``size`` bytes of memory; ``memory`` says how far it is."""
        await commands.set_balloon(await self._connected(timeout), size, timeout)

    async def memory(self, timeout: float = TIMEOUT) -> int:
        """Return how many bytes of memory the guest has now, its balloon taken off."""
        return await commands.query_balloon(await self._connected(timeout), timeout)

    async def plug_cpus(self, count: int, timeout: float = TIMEOUT) -> None:
        """Plug CPUs in until there are ``count``; those that are there stay.

        The guest may still have to bring them up (``Agent.online_cpus``).
        """
        monitor = await self._connected(timeout)
        slots = await commands.query_cpu_slots(monitor, timeout)
        empty = [slot for slot in slots if slot.qom_path is None]
        for slot in empty[: max(0, count - (len(slots) - len(empty)))]:
            await commands.plug_cpu(monitor, slot, timeout)

    # -- looking -----------------------------------------------------------------------------------

    async def screenshot(self, timeout: float = TIMEOUT) -> bytes:
        """Return what the screen shows, as PNG."""
        return await take_picture(await self._connected(timeout), timeout)

    async def add_vnc_client(self, viewer: socket.socket, timeout: float = TIMEOUT) -> None:
        """Let QEMU serve the connected VNC ``viewer``; the caller closes its own copy.

        From then on nothing of it goes through us: it stays when the daemon goes.
        """
        monitor = await self._connected(timeout)
        await commands.add_vnc_client(monitor, viewer.fileno(), timeout)

    async def open_console(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to the serial console; one at a time is served, others wait."""
        return await connect_unix(socket_path(self._run_dir, "console"))
