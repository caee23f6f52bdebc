"""The QMP commands that we use, typed; the only place with their names.

Reference: QEMU's QMP Reference Manual (docs/interop/qemu-qmp-ref). Each raises what
``Monitor.execute`` raises; ``TIMEOUT`` holds for all that return at once.
"""

from enum import StrEnum

import msgspec

from serai.qemu.qmp import Monitor

TIMEOUT = 10.0


class RunState(StrEnum):
    """What a QEMU says of its guest, reduced to what matters here (RunState in the manual)."""

    RUNNING = "running"
    PAUSED = "paused"
    IO_ERROR = "io-error"
    POWERED_OFF = "powered-off"
    PANICKED = "panicked"
    OTHER = "other"


RUN_STATES = {
    "running": RunState.RUNNING,
    "paused": RunState.PAUSED,
    "prelaunch": RunState.PAUSED,
    "suspended": RunState.RUNNING,
    "io-error": RunState.IO_ERROR,
    "shutdown": RunState.POWERED_OFF,
    "guest-panicked": RunState.PANICKED,
}


class _Status(msgspec.Struct):
    status: str


class _Fd(msgspec.Struct, rename="kebab"):
    fdset_id: int


class _CpuProps(msgspec.Struct, rename="kebab"):
    socket_id: int = 0
    core_id: int = 0
    thread_id: int = 0


class CpuSlot(msgspec.Struct, rename="kebab"):
    """A place for a CPU; ``qom_path`` is None while it is empty."""

    type: str
    props: _CpuProps
    qom_path: str | None = None


async def query_status(monitor: Monitor, timeout: float = TIMEOUT) -> RunState:
    """Return what the guest is doing."""
    answer = msgspec.convert(await monitor.execute("query-status", timeout=timeout), _Status)
    return RUN_STATES.get(answer.status, RunState.OTHER)


async def cont(monitor: Monitor) -> None:
    """Let the virtual CPUs run."""
    await monitor.execute("cont", timeout=TIMEOUT)


async def stop(monitor: Monitor) -> None:
    """Hold the virtual CPUs."""
    await monitor.execute("stop", timeout=TIMEOUT)


async def quit_qemu(monitor: Monitor, timeout: float) -> None:
    """End QEMU, its disks flushed."""
    await monitor.execute("quit", timeout=timeout)


async def press_power(monitor: Monitor) -> None:
    """Press the machine's power button (ACPI)."""
    await monitor.execute("system_powerdown", timeout=TIMEOUT)


async def resize_block(monitor: Monitor, node: str, size: int) -> None:
    """Grow a block node to ``size`` bytes; the guest is told."""
    await monitor.execute("block_resize", {"node-name": node, "size": size}, timeout=TIMEOUT)


async def set_balloon(monitor: Monitor, size: int) -> None:
    """Ask the guest to live with ``size`` bytes of its memory; it follows when it can."""
    await monitor.execute("balloon", {"value": size}, timeout=TIMEOUT)


async def query_cpu_slots(monitor: Monitor) -> list[CpuSlot]:
    """Return all places for CPUs, filled and empty."""
    answer = await monitor.execute("query-hotpluggable-cpus", timeout=TIMEOUT)
    return msgspec.convert(answer, list[CpuSlot])


async def plug_cpu(monitor: Monitor, slot: CpuSlot) -> None:
    """Fill an empty place with a CPU."""
    props = {
        "socket-id": slot.props.socket_id,
        "core-id": slot.props.core_id,
        "thread-id": slot.props.thread_id,
    }
    name = f"cpu-{slot.props.socket_id}-{slot.props.core_id}-{slot.props.thread_id}"
    await monitor.execute("device_add", {"driver": slot.type, "id": name, **props}, timeout=TIMEOUT)


async def add_fd(monitor: Monitor, fd: int) -> int:
    """Give QEMU a descriptor; return the number of the fdset that holds it."""
    monitor.send_descriptor(fd)
    return msgspec.convert(await monitor.execute("add-fd", timeout=TIMEOUT), _Fd).fdset_id


async def remove_fdset(monitor: Monitor, fdset: int) -> None:
    """Take an fdset from QEMU."""
    await monitor.execute("remove-fd", {"fdset-id": fdset}, timeout=TIMEOUT)


async def screendump(monitor: Monitor, fdset: int) -> None:
    """Write what the screen shows, as PNG, into an fdset."""
    arguments = {"filename": f"/dev/fdset/{fdset}", "format": "png"}
    await monitor.execute("screendump", arguments, timeout=TIMEOUT)


async def add_vnc_client(monitor: Monitor, fd: int) -> None:
    """Give QEMU's VNC server the connected socket of a viewer."""
    monitor.send_descriptor(fd)
    await monitor.execute("getfd", {"fdname": "viewer"}, timeout=TIMEOUT)
    arguments = {"protocol": "vnc", "fdname": "viewer", "skipauth": True}
    await monitor.execute("add_client", arguments, timeout=TIMEOUT)
