"""Disks that are plugged into a running machine and out of it, what they may be used, CD media.

A drive that is plugged in gets all its files as descriptors, like those that a QEMU is started with,
and the same names; so nothing later can tell which way it came. On failure nothing of it is left.
"""

import asyncio
import contextlib
import os
import time
from contextlib import ExitStack

from serai.errors import Code, Conflict, HostFailure, SeraiError
from serai.model.machine import Drive, Machine
from serai.model.volume import NO_LIMITS
from serai.plan.volume import PORTS
from serai.qemu import commands
from serai.qemu.commandline import (
    READ_ONLY,
    describe_chain,
    device_name,
    disk_device,
    node_name,
)
from serai.qemu.lent import Lent
from serai.qemu.qmp import Monitor

FREEING_LIMIT, FREEING_LOOK = 5.0, 0.02
"""For how long a node is asked for that its device still holds, and how often, in seconds."""
PERIPHERALS = "/machine/peripheral"
VOLUME = "vol-"
"""How the names of drives begin that are plugged into ports (``plan.machine``)."""


async def plug(monitor: Monitor, lent: Lent, drive: Drive, queues: int, timeout: float) -> None:
    """Plug a disk with so many queues (``Machine.queues``) into its port; the guest is told.

    On failure (HostFailure ``qmp-failed``, or ``file-failed`` with the file that can't be opened)
    nothing of it is left.
    """
    await open_chain(monitor, lent, drive, timeout)
    try:
        # what is plugged in comes too late for the firmware
        device = {
            key: each for key, each in disk_device(drive, queues).items() if key != "bootindex"
        }
        await commands.plug_device(monitor, device, timeout)
    except HostFailure:
        await close_chain(monitor, lent, drive, timeout)
        raise
    if drive.limits != NO_LIMITS:
        await commands.limit_device(monitor, device_name(drive.name), drive.limits, timeout)


async def open_chain(monitor: Monitor, lent: Lent, drive: Drive, timeout: float) -> None:
    """Open all layers of a drive in QEMU, as nodes with the names that they have in ``drive``."""
    fdsets: dict[str, int] = {}
    with ExitStack() as stack:
        try:
            for index, layer in enumerate(drive.chain):
                label = f"{drive.name}/{index}"
                modes = [os.O_RDONLY] if layer.read_only else [os.O_RDWR, os.O_RDONLY]
                for mode in modes:
                    fd = _open(stack, layer.path, mode)
                    more = READ_ONLY if len(modes) > 1 and mode == os.O_RDONLY else ""
                    fdsets[label] = await commands.add_fd(
                        monitor, fd, timeout, fdset=fdsets.get(label), label=f"{label}{more}"
                    )
            await commands.add_node(monitor, describe_chain(drive, fdsets), timeout)
        except HostFailure:
            for fdset in fdsets.values():
                await lent.take_back(monitor, fdset, timeout)
            raise


def _open(stack: ExitStack, path: str, mode: int) -> int:
    try:
        fd = os.open(path, mode | os.O_CLOEXEC)
    except OSError as error:
        raise HostFailure(
            Code.FILE_FAILED, f"the disk {path} can't be opened: {error.strerror}"
        ) from error
    stack.callback(os.close, fd)
    return fd


async def close_chain(monitor: Monitor, lent: Lent, drive: Drive, timeout: float) -> None:
    """Have QEMU close all files of a drive that no device uses any more; never raises for its words."""
    for index in range(len(drive.chain)):  # heads that were put over others are nodes of their own
        with contextlib.suppress(SeraiError):
            await _remove_node(monitor, node_name(drive, index), timeout)
    with contextlib.suppress(SeraiError):
        for fdset in await commands.query_fdsets(monitor, timeout):
            if any(entry.opaque.startswith(f"{drive.name}/") for entry in fdset.fds):
                await lent.take_back(monitor, fdset.fdset_id, timeout)


async def _remove_node(monitor: Monitor, node: str, timeout: float) -> None:
    """Close a node as soon as its device has let go.

    A device that is not found in the machine any more holds its node until QEMU has freed it, which
    waits for a grace period (RCU); of that end nobody hears who was not there when it began.
    """
    until = time.monotonic() + FREEING_LIMIT
    while True:
        try:
            return await commands.remove_node(monitor, node, timeout)
        except HostFailure as error:
            if "is in use" not in error.message or time.monotonic() > until:
                raise
        await asyncio.sleep(FREEING_LOOK)


async def is_plugged(monitor: Monitor, drive: str, timeout: float) -> bool:
    """Tell whether the device of a drive is in the machine."""
    return f"{device_name(drive)}" in await commands.list_objects(monitor, PERIPHERALS, timeout)


async def plugged(monitor: Monitor, timeout: float) -> set[str]:
    """Return the names of all drives whose devices came with a port (``VOLUME``)."""
    names = await commands.list_objects(monitor, PERIPHERALS, timeout)
    end = device_name("")
    return {
        each.removesuffix(end) for each in names if each.startswith(VOLUME) and each.endswith(end)
    }


async def busy_ports(monitor: Monitor, timeout: float) -> set[str]:
    """Return the ports that nothing more can be plugged into, as QEMU has it.

    A machine that an older daemon started has fewer.
    """
    names = await commands.list_objects(monitor, PERIPHERALS, timeout)
    busy = set(PORTS) - set(names)
    for name in names:
        if name in PORTS:
            there = await commands.list_objects(monitor, f"{PERIPHERALS}/{name}/{name}", timeout)
            if any(each.startswith("child[") for each in there):
                busy.add(name)
    return busy


async def keep_limits(monitor: Monitor, machine: Machine, timeout: float) -> None:
    """Let the machine's disks do no more than they may: a new QEMU knows of no limits."""
    for drive in machine.drives:
        if drive.limits != NO_LIMITS:
            await commands.limit_device(monitor, device_name(drive.name), drive.limits, timeout)


async def change_medium(
    monitor: Monitor, lent: Lent, old: Drive, new: Drive, timeout: float, *, force: bool
) -> None:
    """Take what ``old`` has out of a CD drive, put in what ``new`` has.

    Raises Conflict (``volume-held``) when the guest has locked the drive.
    """
    device = device_name(old.name)
    await commands.open_tray(monitor, device, timeout, force=force)
    try:  # where the guest has locked the tray it was asked, and QEMU calls that a success
        await commands.remove_medium(monitor, device, timeout)
    except HostFailure as error:
        raise Conflict(
            Code.VOLUME_HELD,
            "the guest has locked its CD drive",
            hint="Unmount the medium inside, or use --force.",
        ) from error
    if old.chain:
        await close_chain(monitor, lent, old, timeout)
    if new.chain:
        await open_chain(monitor, lent, new, timeout)
        await commands.insert_medium(monitor, device, node_name(new, 0), timeout)
    await commands.close_tray(monitor, device, timeout)
