"""New heads under a running guest: an empty layer over each of its disks, all at one moment."""

import contextlib
import dataclasses
import os
from collections.abc import Iterable, Mapping
from contextlib import ExitStack

from serai.errors import Code, HostFailure, Interrupted, SeraiError
from serai.model.machine import Drive, LayerFile, Machine
from serai.qemu import commands
from serai.qemu.commandline import READ_ONLY, block_node, device_name, node_name
from serai.qemu.lent import Lent
from serai.qemu.qmp import Monitor


async def switch_heads(
    monitor: Monitor, lent: Lent, machine: Machine, heads: Mapping[str, LayerFile], timeout: float
) -> Machine:
    """Put the new heads over the drives named, and return what the machine is then.

    All at one moment, or none. On failure the machine is as before: raises HostFailure
    (``qmp-failed``, or ``snapshot-unfit`` with the file that can't be opened). After Interrupted
    (``qmp-lost``) either may be so; ``active_nodes`` tells.
    """
    drives = {drive.name: drive for drive in machine.drives if drive.name in heads}
    assert drives.keys() == heads.keys()
    opened: dict[str, int] = {}
    try:
        for name, head in heads.items():
            opened[head.node] = await _open_head(monitor, lent, name, head, timeout)
        over = {node_name(drive, 0): heads[name].node for name, drive in drives.items()}
        await commands.put_over(monitor, over, timeout)
    except Interrupted:
        raise
    except BaseException:
        for node, fdset in opened.items():
            with contextlib.suppress(SeraiError):
                await commands.remove_node(monitor, node, timeout)
            await lent.take_back(monitor, fdset, timeout)
        raise
    with contextlib.suppress(SeraiError):  # the heads are switched
        await _let_go_of_old(monitor, lent, drives.values(), timeout)
    return dataclasses.replace(
        machine, drives=tuple(_with_head(drive, heads.get(drive.name)) for drive in machine.drives)
    )


def _with_head(drive: Drive, head: LayerFile | None) -> Drive:
    if head is None:
        return drive
    # the old head keeps the name that it has in QEMU
    old = dataclasses.replace(drive.chain[0], node=node_name(drive, 0), read_only=True)
    rest = tuple(
        dataclasses.replace(layer, node=node_name(drive, index))
        for index, layer in enumerate(drive.chain[1:], 1)
    )
    return dataclasses.replace(drive, chain=(head, old, *rest))


async def _let_go_of_old(
    monitor: Monitor, lent: Lent, drives: Iterable[Drive], timeout: float
) -> None:
    """Have QEMU close what it can write to the old heads with.

    It reads them through another descriptor by now. But its lock for writing is on this one.
    """
    labels = {label_of(drive.name, "0") for drive in drives}
    labels |= {label_of(drive.name, node_name(drive, 0)) for drive in drives}
    for fdset in await commands.query_fdsets(monitor, timeout):
        for entry in fdset.fds:
            if entry.opaque in labels:
                await lent.take_back(monitor, fdset.fdset_id, timeout, fd=entry.fd)


def label_of(drive: str, layer: str) -> str:
    """Return how the descriptors of a drive's layer are labelled, as ``resources`` names them."""
    return f"{drive}/{layer}"


async def _open_head(
    monitor: Monitor, lent: Lent, drive: str, head: LayerFile, timeout: float
) -> int:
    """Open a head in QEMU, twice: when it is one no longer, QEMU opens it read-only."""
    label = label_of(drive, head.node)
    with ExitStack() as stack:
        writable, readable = _open_file(stack, head.path)
        fdset = await commands.add_fd(monitor, writable, timeout, label=label)
        try:
            more = f"{label}{READ_ONLY}"
            await commands.add_fd(monitor, readable, timeout, fdset=fdset, label=more)
            await commands.add_node(monitor, block_node(head, head.node, fdset), timeout)
        except HostFailure:
            await lent.take_back(monitor, fdset, timeout)
            raise
        return fdset


def _open_file(stack: ExitStack, path: str) -> list[int]:
    try:
        fds = []
        for flags in (os.O_RDWR, os.O_RDONLY):
            fds.append(os.open(path, flags | os.O_CLOEXEC))
            stack.callback(os.close, fds[-1])
        return fds
    except OSError as error:
        raise HostFailure(
            Code.SNAPSHOT_UNFIT, f"the new head {path} can't be opened: {error.strerror}"
        ) from error


async def finish_switch(
    monitor: Monitor, lent: Lent, machine: Machine, heads: Mapping[str, LayerFile], timeout: float
) -> Machine:
    """Do as ``switch_heads``, where that may have been interrupted anywhere by our own end."""
    active = await active_nodes(monitor, machine, timeout)
    done = {name: head for name, head in heads.items() if active.get(name) == head.node}
    late = {name: head for name, head in heads.items() if name not in done}
    before = [
        drive
        for drive in machine.drives
        if drive.name in done and node_name(drive, 0) != done[drive.name].node
    ]
    with contextlib.suppress(SeraiError):
        await _let_go_of_old(monitor, lent, before, timeout)
    switched = {drive.name: done[drive.name] for drive in before}
    machine = dataclasses.replace(
        machine,
        drives=tuple(_with_head(drive, switched.get(drive.name)) for drive in machine.drives),
    )
    if not late:
        return machine
    await _drop_heads(monitor, [head.node for head in late.values()], timeout)
    return await switch_heads(monitor, lent, machine, late, timeout)


async def _drop_heads(monitor: Monitor, nodes: Iterable[str], timeout: float) -> None:
    """Close heads that were opened and put over nothing; those in use, or not there, stay so."""
    for node in nodes:
        with contextlib.suppress(HostFailure):
            await commands.remove_node(monitor, node, timeout)


async def active_nodes(monitor: Monitor, machine: Machine, timeout: float) -> dict[str, str]:
    """Return, for each drive of the machine, the node that it reads and writes now."""
    return {
        drive.name: await commands.node_of_device(monitor, device_name(drive.name), timeout)
        for drive in machine.drives
    }
