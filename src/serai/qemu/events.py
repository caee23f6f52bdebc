"""What a QEMU tells of its guest: its own events, typed, reduced to those that matter.

Reference: QEMU's QMP Reference Manual, "Events". An event that is not in the list, or is not
as the manual says, is nobody's: a broken QEMU tells nothing rather than something wrong.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import msgspec

AGENT_PORT_ID = "agent-port"
BIRTH_PORT_ID = "birth-port"
EVENTS_LIMIT = 64
STREAM_DONE = "completed"
STREAM_ENDS = (STREAM_DONE, "failed", "cancelled")
RESET_REASON = "guest-reset"


class InstanceEventKind(StrEnum):
    """What may happen to a QEMU and its guest."""

    POWERED_OFF = "powered-off"  # the guest shut itself down; QEMU waits
    RESTART_WANTED = (
        "restart-wanted"  # the guest reset itself, but this QEMU can't boot it; it waits
    )
    RESET = "reset"
    PANICKED = "panicked"
    STOPPED = "stopped"
    RESUMED = "resumed"
    DISK_FULL = "disk-full"  # a write found no room; the guest is held
    AGENT_OPENED = "agent-opened"
    AGENT_CLOSED = "agent-closed"
    BIRTH_OPENED = "birth-opened"  # something waits to be told who it is
    BIRTH_CLOSED = "birth-closed"
    LOST = "lost"  # the monitor is gone, the process is not
    EXITED = "exited"


@dataclass(frozen=True, slots=True)
class InstanceEvent:
    """One thing that a QEMU told, or that was seen of its process; ``detail`` is for people."""

    kind: InstanceEventKind
    detail: str = ""


class EventQueue:
    """Events that wait to be read: bounded, and the state that they lead to stays right.

    An event that is waiting already is not kept twice; it moves to the end. So a guest that
    resets all day costs one entry, and what came last is read last.
    """

    def __init__(self) -> None:
        self._waiting: dict[InstanceEvent, None] = {}

    def put(self, event: InstanceEvent) -> None:
        """Add an event; the oldest goes if ``EVENTS_LIMIT`` different ones wait."""
        self._waiting.pop(event, None)
        self._waiting[event] = None
        if len(self._waiting) > EVENTS_LIMIT:
            del self._waiting[next(iter(self._waiting))]

    def take(self) -> InstanceEvent | None:
        """Return the oldest event and remove it; None if none waits."""
        for event in self._waiting:
            del self._waiting[event]
            return event
        return None


# -- the wire's words ----------------------------------------------------------------------------


class _MigrationData(msgspec.Struct):
    status: str


class _Migration(msgspec.Struct, tag_field="event", tag="MIGRATION"):
    data: _MigrationData


class _ShutdownData(msgspec.Struct):
    guest: bool
    reason: str


class _Shutdown(msgspec.Struct, tag_field="event", tag="SHUTDOWN"):
    data: _ShutdownData


class _ResetData(msgspec.Struct):
    guest: bool


class _Reset(msgspec.Struct, tag_field="event", tag="RESET"):
    data: _ResetData


class _PanicData(msgspec.Struct):
    action: str


class _Panicked(msgspec.Struct, tag_field="event", tag="GUEST_PANICKED"):
    data: _PanicData


class _Stop(msgspec.Struct, tag_field="event", tag="STOP"):
    pass


class _Resume(msgspec.Struct, tag_field="event", tag="RESUME"):
    pass


class _BlockErrorData(msgspec.Struct, rename="kebab"):
    action: str
    nospace: bool = False
    node_name: str = ""


class _BlockError(msgspec.Struct, tag_field="event", tag="BLOCK_IO_ERROR"):
    data: _BlockErrorData


class _PortData(msgspec.Struct):
    id: str
    open: bool


class _Port(msgspec.Struct, tag_field="event", tag="VSERPORT_CHANGE"):
    data: _PortData


_Told = _Shutdown | _Reset | _Panicked | _Stop | _Resume | _BlockError | _Port


def decode_event(untrusted: Mapping[str, object]) -> InstanceEvent | None:
    """Return what an event of QEMU's means for us; None if nothing."""
    try:
        told: _Told = msgspec.convert(untrusted, _Told)
    except (msgspec.ValidationError, RecursionError):
        return None
    return _meaning(told)


def decode_stream_end(untrusted: Mapping[str, object]) -> str | None:
    """Return how writing or reading a machine's state ended, if this event tells it."""
    if untrusted.get("event") != "MIGRATION":
        return None
    try:
        status = msgspec.convert(untrusted, _Migration).data.status
    except (msgspec.ValidationError, RecursionError):
        return None
    return status if status in STREAM_ENDS else None


class _DeviceData(msgspec.Struct):
    device: str = ""


class _Deleted(msgspec.Struct, tag_field="event", tag="DEVICE_DELETED"):
    data: _DeviceData


class _Refused(msgspec.Struct, tag_field="event", tag="DEVICE_UNPLUG_GUEST_ERROR"):
    data: _DeviceData


def decode_unplugged(untrusted: Mapping[str, object]) -> tuple[str, bool] | None:
    """Return which device the guest has let go (True) or will not (False), if this event tells."""
    try:
        told: _Deleted | _Refused = msgspec.convert(untrusted, _Deleted | _Refused)
    except (msgspec.ValidationError, RecursionError):
        return None
    return (told.data.device, isinstance(told, _Deleted)) if told.data.device else None


def _meaning(told: _Told) -> InstanceEvent | None:
    match told:
        case _Shutdown(data=data) if data.guest and data.reason == RESET_REASON:
            return InstanceEvent(InstanceEventKind.RESTART_WANTED, data.reason)
        case _Shutdown(data=data) if data.guest and data.reason != "guest-panic":
            return InstanceEvent(InstanceEventKind.POWERED_OFF, data.reason)
        case _Reset(data=data):
            return InstanceEvent(InstanceEventKind.RESET, "guest" if data.guest else "host")
        case _Panicked(data=data):
            return InstanceEvent(InstanceEventKind.PANICKED, data.action)
        case _Stop():
            return InstanceEvent(InstanceEventKind.STOPPED)
        case _Resume():
            return InstanceEvent(InstanceEventKind.RESUMED)
        case _BlockError(data=data) if data.nospace and data.action == "stop":
            return InstanceEvent(InstanceEventKind.DISK_FULL, data.node_name)
        case _Port(data=data) if data.id == AGENT_PORT_ID:
            opened = InstanceEventKind.AGENT_OPENED, InstanceEventKind.AGENT_CLOSED
            return InstanceEvent(opened[0] if data.open else opened[1])
        case _Port(data=data) if data.id == BIRTH_PORT_ID:
            opened = InstanceEventKind.BIRTH_OPENED, InstanceEventKind.BIRTH_CLOSED
            return InstanceEvent(opened[0] if data.open else opened[1])
        case _:
            return None
