"""The QMP commands that we use, typed; the only place with their names.

Reference: QEMU's QMP Reference Manual (docs/interop/qemu-qmp-ref). Each raises what
``Monitor.execute`` raises, and HostFailure (``qmp-failed``) when the answer is not as the manual
says. ``TIMEOUT`` is for callers who have no limit of their own: all of these return at once.
"""

import contextlib
from collections.abc import Mapping
from enum import StrEnum
from typing import TypeVar

import msgspec

from serai.errors import Code, HostFailure, SeraiError
from serai.host.supervise import wait_until
from serai.model.volume import Limits
from serai.qemu.qmp import Monitor

TIMEOUT = 10.0
FINISHING = 0.002

T = TypeVar("T")


class RunState(StrEnum):
    """What a QEMU says of its guest, reduced to what matters here (RunState in the manual)."""

    RUNNING = "running"
    PAUSED = "paused"
    IO_ERROR = "io-error"
    POWERED_OFF = "powered-off"
    PANICKED = "panicked"
    WAITING = "waiting"  # prepared: there is no guest in it yet
    OTHER = "other"


RUN_STATES: Mapping[str, RunState] = {
    "running": RunState.RUNNING,
    "paused": RunState.PAUSED,
    "prelaunch": RunState.PAUSED,
    "suspended": RunState.RUNNING,
    "finish-migrate": RunState.PAUSED,
    "postmigrate": RunState.PAUSED,
    "save-vm": RunState.PAUSED,
    "inmigrate": RunState.WAITING,
    "io-error": RunState.IO_ERROR,
    "shutdown": RunState.POWERED_OFF,
    "guest-panicked": RunState.PANICKED,
}


class _Nothing(msgspec.Struct):
    pass


class _Status(msgspec.Struct):
    status: str


class _Fd(msgspec.Struct, rename="kebab"):
    fdset_id: int


class FdsetEntry(msgspec.Struct):
    """A descriptor of an fdset: QEMU's number of it, and the label that it was given."""

    fd: int
    opaque: str = ""


class Fdset(msgspec.Struct, rename="kebab"):
    """Descriptors that QEMU opens as one file, by the way in which it wants to use it."""

    fdset_id: int
    fds: list[FdsetEntry]


class _Property(msgspec.Struct):
    name: str


class _Balloon(msgspec.Struct):
    actual: int


class _Chardev(msgspec.Struct, rename="kebab"):
    label: str
    frontend_open: bool


class _Migration(msgspec.Struct, rename="kebab"):
    status: str = ""
    error_desc: str = ""


class CpuSlot(msgspec.Struct, rename="kebab"):
    """A place for a CPU; ``qom_path`` is None while it is empty."""

    type: str
    props: dict[str, int]
    qom_path: str | None = None

    @property
    def place(self) -> tuple[int, ...]:
        """Where it is, from the coarse to the fine."""
        names = ("socket-id", "die-id", "core-id", "thread-id")
        return tuple(self.props.get(name, 0) for name in names)


async def _ask(
    monitor: Monitor,
    command: str,
    kind: type[T],
    timeout: float,
    arguments: Mapping[str, object] | None = None,
    *,
    fd: int | None = None,
) -> T:
    untrusted = await monitor.execute(command, arguments, timeout=timeout, fd=fd)
    try:
        return msgspec.convert(untrusted, kind)
    except (msgspec.ValidationError, RecursionError) as error:
        raise HostFailure(
            Code.QMP_FAILED,
            f"QEMU's answer to {command} is not as its manual says: {error}",
            details={"command": command},
        ) from error


async def query_status(monitor: Monitor, timeout: float = TIMEOUT) -> RunState:
    """Return what the guest is doing."""
    answer = await _ask(monitor, "query-status", _Status, timeout)
    return RUN_STATES.get(answer.status, RunState.OTHER)


async def cont(monitor: Monitor, timeout: float = TIMEOUT) -> None:
    """Let the virtual CPUs run.

    QEMU tells that a stream has ended a moment before it has put itself in order (the state
    ``finish-migrate``), and refuses this until then: it is asked once more afterwards.
    """
    try:
        await _ask(monitor, "cont", _Nothing, timeout)
    except HostFailure:
        await wait_until(
            "the end of a stream",
            lambda: _is_in_order(monitor, timeout),
            timeout=timeout,
            every=FINISHING,
        )
        await _ask(monitor, "cont", _Nothing, timeout)


async def _is_in_order(monitor: Monitor, timeout: float) -> bool:
    answer = await _ask(monitor, "query-status", _Status, timeout)
    return answer.status != "finish-migrate"


async def stop(monitor: Monitor, timeout: float = TIMEOUT) -> None:
    """Hold the virtual CPUs."""
    await _ask(monitor, "stop", _Nothing, timeout)


async def quit_qemu(monitor: Monitor, timeout: float = TIMEOUT) -> None:
    """End QEMU, its disks flushed."""
    await _ask(monitor, "quit", _Nothing, timeout)


async def press_power(monitor: Monitor, timeout: float = TIMEOUT) -> None:
    """Press the machine's power button (ACPI)."""
    await _ask(monitor, "system_powerdown", _Nothing, timeout)


async def resize_block(monitor: Monitor, node: str, size: int, timeout: float = TIMEOUT) -> None:
    """Grow a block node to ``size`` bytes; the guest is told."""
    arguments = {"node-name": node, "size": size}
    await _ask(monitor, "block_resize", _Nothing, timeout, arguments)


async def set_balloon(monitor: Monitor, size: int, timeout: float = TIMEOUT) -> None:
    """Ask the guest to live with ``size`` bytes of its memory; it follows when it can."""
    await _ask(monitor, "balloon", _Nothing, timeout, {"value": size})


async def query_balloon(monitor: Monitor, timeout: float = TIMEOUT) -> int:
    """Return how much memory the balloon leaves to the guest now, in bytes."""
    return (await _ask(monitor, "query-balloon", _Balloon, timeout)).actual


async def is_port_open(monitor: Monitor, chardev: str, timeout: float = TIMEOUT) -> bool:
    """Tell whether somebody in the guest has the serial port behind ``chardev`` open."""
    answer = await _ask(monitor, "query-chardev", list[_Chardev], timeout)
    return any(each.frontend_open for each in answer if each.label == chardev)


async def query_cpu_slots(monitor: Monitor, timeout: float = TIMEOUT) -> list[CpuSlot]:
    """Return all places for CPUs, filled and empty, in their order."""
    answer = await _ask(monitor, "query-hotpluggable-cpus", list[CpuSlot], timeout)
    return sorted(answer, key=lambda slot: slot.place)


async def plug_cpu(monitor: Monitor, slot: CpuSlot, timeout: float = TIMEOUT) -> None:
    """Fill an empty place with a CPU."""
    name = "cpu-" + "-".join(str(number) for number in slot.place)
    arguments = {"driver": slot.type, "id": name, **slot.props}
    await _ask(monitor, "device_add", _Nothing, timeout, arguments)


async def add_fd(
    monitor: Monitor,
    fd: int,
    timeout: float = TIMEOUT,
    *,
    fdset: int | None = None,
    label: str = "",
) -> int:
    """Give QEMU a descriptor, in a new fdset or that one; return the number of the fdset."""
    arguments = {"opaque": label} | ({} if fdset is None else {"fdset-id": fdset})
    return (await _ask(monitor, "add-fd", _Fd, timeout, arguments, fd=fd)).fdset_id


async def remove_fdset(
    monitor: Monitor, fdset: int, timeout: float = TIMEOUT, *, fd: int | None = None
) -> None:
    """Take an fdset from QEMU, or one descriptor of it (by QEMU's number)."""
    arguments = {"fdset-id": fdset} | ({} if fd is None else {"fd": fd})
    await _ask(monitor, "remove-fd", _Nothing, timeout, arguments)


async def query_fdsets(monitor: Monitor, timeout: float = TIMEOUT) -> list[Fdset]:
    """Return all fdsets."""
    return await _ask(monitor, "query-fdsets", list[Fdset], timeout)


async def screendump(monitor: Monitor, fdset: int, timeout: float = TIMEOUT) -> None:
    """Write what the screen shows, as PNG, into an fdset."""
    arguments = {"filename": f"/dev/fdset/{fdset}", "format": "png"}
    await _ask(monitor, "screendump", _Nothing, timeout, arguments)


async def add_vnc_client(monitor: Monitor, fd: int, timeout: float = TIMEOUT) -> None:
    """Give QEMU's VNC server the connected socket of a viewer."""
    name = f"viewer-{fd}"
    await _ask(monitor, "getfd", _Nothing, timeout, {"fdname": name}, fd=fd)
    try:
        arguments = {"protocol": "vnc", "fdname": name, "skipauth": True}
        await _ask(monitor, "add_client", _Nothing, timeout, arguments)
    except HostFailure:
        with contextlib.suppress(SeraiError):  # the first error tells more
            await forget_fd(monitor, name, timeout)
        raise


# -- devices that come and go ----------------------------------------------------------------------


async def add_user_forward(
    monitor: Monitor, netdev: str, forward: str, timeout: float = TIMEOUT
) -> str:
    """Forward a port of the host by QEMU's own network; return what QEMU says, "" if all is well."""
    return await _human(monitor, f"hostfwd_add {netdev} {forward}", timeout)


async def remove_user_forward(
    monitor: Monitor, netdev: str, forward: str, timeout: float = TIMEOUT
) -> str:
    """End such a forward; return what QEMU says."""
    return await _human(monitor, f"hostfwd_remove {netdev} {forward}", timeout)


async def _human(monitor: Monitor, line: str, timeout: float) -> str:
    """Say a line of the monitor for people: for what QMP has no command of its own."""
    answer = await _ask(monitor, "human-monitor-command", str, timeout, {"command-line": line})
    return answer.strip()


# -- the state of the machine ----------------------------------------------------------------------


async def set_up_migration(monitor: Monitor, timeout: float = TIMEOUT) -> None:
    """Have memory that is in a shared file left out of streams, and the end of one told."""
    capabilities = [{"capability": name, "state": True} for name in ("x-ignore-shared", "events")]
    arguments = {"capabilities": capabilities}
    await _ask(monitor, "migrate-set-capabilities", _Nothing, timeout, arguments)


async def give_fd(monitor: Monitor, name: str, fd: int, timeout: float = TIMEOUT) -> None:
    """Give QEMU a descriptor under a name; what takes it up takes it away."""
    await _ask(monitor, "getfd", _Nothing, timeout, {"fdname": name}, fd=fd)


async def save_stream(monitor: Monitor, name: str, timeout: float = TIMEOUT) -> None:
    """Begin to write the machine into a given descriptor; an event tells the end."""
    await _ask(monitor, "migrate", _Nothing, timeout, {"uri": f"fd:{name}"})


async def load_stream(monitor: Monitor, name: str, timeout: float = TIMEOUT) -> None:
    """Begin to read the machine from a given descriptor; an event, or QEMU's end, tells the end."""
    await _ask(monitor, "migrate-incoming", _Nothing, timeout, {"uri": f"fd:{name}"})


async def cancel_stream(monitor: Monitor, timeout: float = TIMEOUT) -> None:
    """Give up writing the machine; nothing happens when nothing is written."""
    await _ask(monitor, "migrate_cancel", _Nothing, timeout)


async def why_stream_failed(monitor: Monitor, timeout: float = TIMEOUT) -> str:
    """Return why writing the machine failed, in QEMU's words; may be empty."""
    return (await _ask(monitor, "query-migrate", _Migration, timeout)).error_desc


async def save_devices(monitor: Monitor, fdset: int, timeout: float = TIMEOUT) -> None:
    """Write the state of all devices, and no memory at all, into an fdset."""
    arguments = {"filename": f"/dev/fdset/{fdset}", "live": False}
    await _ask(monitor, "xen-save-devices-state", _Nothing, timeout, arguments)


# -- block nodes -----------------------------------------------------------------------------------


async def add_node(monitor: Monitor, node: Mapping[str, object], timeout: float = TIMEOUT) -> None:
    """Open a block node."""
    await _ask(monitor, "blockdev-add", _Nothing, timeout, node)


async def remove_node(monitor: Monitor, name: str, timeout: float = TIMEOUT) -> None:
    """Close a block node that nobody uses."""
    await _ask(monitor, "blockdev-del", _Nothing, timeout, {"node-name": name})


async def put_over(monitor: Monitor, overlays: Mapping[str, str], timeout: float = TIMEOUT) -> None:
    """Put a node over each of those named: all at one moment, or none."""
    actions = [
        {"type": "blockdev-snapshot", "data": {"node": below, "overlay": above}}
        for below, above in overlays.items()
    ]
    await _ask(monitor, "transaction", _Nothing, timeout, {"actions": actions})


async def plug_device(
    monitor: Monitor, device: Mapping[str, object], timeout: float = TIMEOUT
) -> None:
    """Plug a device into the running machine."""
    await _ask(monitor, "device_add", _Nothing, timeout, device)


async def unplug_device(monitor: Monitor, device: str, timeout: float = TIMEOUT) -> None:
    """Ask the guest to let a device go; an event tells when it has."""
    await _ask(monitor, "device_del", _Nothing, timeout, {"id": device})


async def list_objects(monitor: Monitor, path: str, timeout: float = TIMEOUT) -> list[str]:
    """Return the names of what an object has."""
    answer = await _ask(monitor, "qom-list", list[_Property], timeout, {"path": path})
    return [each.name for each in answer]


async def limit_device(
    monitor: Monitor, device: str, limits: Limits, timeout: float = TIMEOUT
) -> None:
    """Let a virtio disk do so much a second from now on.

    The device on the bus is only a wrapper: what has the disk is inside it.
    """
    arguments: dict[str, object] = {
        "id": f"/machine/peripheral/{device}/virtio-backend",
        "iops": limits.iops,
        "iops_rd": 0,
        "iops_wr": 0,
        "bps": limits.bps,
        "bps_rd": 0,
        "bps_wr": 0,
    }
    if limits.iops_burst:
        arguments |= {"iops_max": limits.iops_burst, "iops_max_length": limits.burst_seconds}
    if limits.bps_burst:
        arguments |= {"bps_max": limits.bps_burst, "bps_max_length": limits.burst_seconds}
    await _ask(monitor, "block_set_io_throttle", _Nothing, timeout, arguments)


async def open_tray(
    monitor: Monitor, device: str, timeout: float = TIMEOUT, *, force: bool = False
) -> None:
    """Open the tray of a CD drive; without ``force`` a guest that locked it is asked."""
    arguments = {"id": device, "force": force}
    await _ask(monitor, "blockdev-open-tray", _Nothing, timeout, arguments)


async def close_tray(monitor: Monitor, device: str, timeout: float = TIMEOUT) -> None:
    """Close the tray of a CD drive."""
    await _ask(monitor, "blockdev-close-tray", _Nothing, timeout, {"id": device})


async def remove_medium(monitor: Monitor, device: str, timeout: float = TIMEOUT) -> None:
    """Take the medium out of an open tray; one that is empty stays so."""
    await _ask(monitor, "blockdev-remove-medium", _Nothing, timeout, {"id": device})


async def insert_medium(monitor: Monitor, device: str, node: str, timeout: float = TIMEOUT) -> None:
    """Put a node into an open and empty tray."""
    arguments = {"id": device, "node-name": node}
    await _ask(monitor, "blockdev-insert-medium", _Nothing, timeout, arguments)


async def serve_nbd(monitor: Monitor, listener: str, timeout: float = TIMEOUT) -> None:
    """Serve NBD on a listening socket that was given under a name."""
    address = {"type": "fd", "data": {"str": listener}}
    await _ask(monitor, "nbd-server-start", _Nothing, timeout, {"addr": address})


async def add_export(monitor: Monitor, node: str, name: str, timeout: float = TIMEOUT) -> None:
    """Let a node be read by NBD, under a name."""
    arguments = {"type": "nbd", "id": "export", "node-name": node, "name": name, "writable": False}
    await _ask(monitor, "block-export-add", _Nothing, timeout, arguments)


async def node_of_device(monitor: Monitor, device: str, timeout: float = TIMEOUT) -> str:
    """Return the name of the node that a disk device reads and writes."""
    arguments = {"path": f"/machine/peripheral/{device}", "property": "drive"}
    return await _ask(monitor, "qom-get", str, timeout, arguments)


# -- devices that come and go ----------------------------------------------------------------------


async def add_netdev(
    monitor: Monitor, netdev: Mapping[str, object], timeout: float = TIMEOUT
) -> None:
    """Make the host's side of a NIC."""
    await _ask(monitor, "netdev_add", _Nothing, timeout, netdev)


async def remove_netdev(monitor: Monitor, name: str, timeout: float = TIMEOUT) -> None:
    """Remove the host's side of a NIC that nobody uses."""
    await _ask(monitor, "netdev_del", _Nothing, timeout, {"id": name})


async def add_device(
    monitor: Monitor, device: Mapping[str, object], timeout: float = TIMEOUT
) -> None:
    """Plug a device in."""
    await _ask(monitor, "device_add", _Nothing, timeout, device)


async def remove_device(monitor: Monitor, name: str, timeout: float = TIMEOUT) -> None:
    """Ask the guest to let go of a device; an event tells when it is gone."""
    await _ask(monitor, "device_del", _Nothing, timeout, {"id": name})


async def set_link(monitor: Monitor, name: str, up: bool, timeout: float = TIMEOUT) -> None:
    """Pull a NIC's cable, or put it back."""
    await _ask(monitor, "set_link", _Nothing, timeout, {"name": name, "up": up})


async def forget_fd(monitor: Monitor, name: str, timeout: float = TIMEOUT) -> None:
    """Have QEMU close a descriptor that it was given and did not take up."""
    await _ask(monitor, "closefd", _Nothing, timeout, {"fdname": name})
