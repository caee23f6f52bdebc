"""NICs that come and go while the guest runs, and their cables.

A NIC sits in one of the machine's PCIe ports (``Nic.place``). Its tap is a descriptor that QEMU is
given under a name; ``device_del`` only asks, and the guest lets go when it is ready to.
"""

import asyncio
import contextlib

from serai.errors import Code, HostFailure, SeraiError
from serai.model.machine import SPARE, Machine, Nic
from serai.qemu import commands
from serai.qemu.commandline import build_netdev, build_nic, nic_device_name, tap_name
from serai.qemu.qmp import Monitor


def free_place(machine: Machine) -> str:
    """Return a PCIe port with nothing in it; "" where there is none."""
    taken = {nic.place for nic in machine.nics} | {drive.port for drive in machine.drives}
    places = (f"{SPARE}{index}" for index in range(machine.spares))
    return next((place for place in places if place not in taken), "")


async def plug(monitor: Monitor, nic: Nic, tap_fd: int, timeout: float) -> None:
    """Plug a NIC with a tap into a running machine. On failure it is as before."""
    name = tap_name(nic)
    await commands.give_fd(monitor, name, tap_fd, timeout)
    try:
        await commands.add_netdev(monitor, build_netdev(nic, name), timeout)
    except HostFailure:
        with contextlib.suppress(SeraiError):
            await commands.forget_fd(monitor, name, timeout)
        raise
    try:
        await commands.add_device(monitor, build_nic(nic), timeout)
    except HostFailure:
        with contextlib.suppress(SeraiError):
            await commands.remove_netdev(monitor, nic.name, timeout)
        raise


async def unplug(monitor: Monitor, nic: Nic, gone: asyncio.Event, timeout: float) -> None:
    """Pull a NIC; ``gone`` is set when the guest has let go of it.

    Raises HostFailure (``timeout``) when it does not within ``timeout`` seconds; it still may.
    """
    await commands.remove_device(monitor, nic_device_name(nic.name), timeout)
    try:
        async with asyncio.timeout(timeout):
            await gone.wait()
    except TimeoutError as error:
        raise HostFailure(
            Code.TIMEOUT,
            f"the guest has not let go of {nic.name} within {timeout:g} s",
            hint="It may not have started up yet: try again when it has, or when it is stopped.",
        ) from error
    await commands.remove_netdev(monitor, nic.name, timeout)
