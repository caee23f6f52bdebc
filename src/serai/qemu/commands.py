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
from serai.qemu.qmp import Monitor

TIMEOUT = 10.0

T = TypeVar("T")


class RunState(StrEnum):
    """What a QEMU says of its guest, reduced to what matters here (RunState in the manual)."""

    RUNNING = "running"
    PAUSED = "paused"
    IO_ERROR = "io-error"
    POWERED_OFF = "powered-off"
    PANICKED = "panicked"
    OTHER = "other"


RUN_STATES: Mapping[str, RunState] = {
    "running": RunState.RUNNING,
    "paused": RunState.PAUSED,
    "prelaunch": RunState.PAUSED,
    "suspended": RunState.RUNNING,
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


class _Balloon(msgspec.Struct):
    actual: int


class _Chardev(msgspec.Struct, rename="kebab"):
    label: str
    frontend_open: bool


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
    """Let the virtual CPUs run."""
    await _ask(monitor, "cont", _Nothing, timeout)


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


async def add_fd(monitor: Monitor, fd: int, timeout: float = TIMEOUT) -> int:
    """Give QEMU a descriptor; return the number of the fdset that holds it."""
    return (await _ask(monitor, "add-fd", _Fd, timeout, fd=fd)).fdset_id


async def remove_fdset(monitor: Monitor, fdset: int, timeout: float = TIMEOUT) -> None:
    """Take an fdset from QEMU."""
    await _ask(monitor, "remove-fd", _Nothing, timeout, {"fdset-id": fdset})


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
            await _ask(monitor, "closefd", _Nothing, timeout, {"fdname": name})
        raise
