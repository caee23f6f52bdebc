"""What a change writes: one row each, ready for the database.

Done by the caller of ``Store.commit``, so that what can't be encoded fails only there.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from serai.model.network import ForwardRecord, Port
from serai.store.changes import (
    AddEvent,
    Change,
    PutForward,
    PutGroup,
    PutGuest,
    PutImage,
    PutJob,
    PutLayer,
    PutNetwork,
    PutPool,
    PutSchedule,
    PutSnapshot,
    PutUsage,
    PutVolume,
)
from serai.store.records import encode


@dataclass(frozen=True, slots=True)
class Step:
    """A change, and the columns that it writes."""

    change: Change
    row: Mapping[str, object]


def prepare(change: Change) -> Step:
    """Make ``change`` ready to be written; Bug if it can't be encoded."""
    match change:
        case PutGuest(record=record):
            row = {
                "id": record.id,
                "name": record.spec.name,
                "number": record.number,
                "body": encode(record),
            }
        case PutImage(image=image):
            row = {"name": image.name, "body": encode(image)}
        case PutSnapshot(record=snapshot):
            row = {
                "id": snapshot.id,
                "guest_id": snapshot.guest_id,
                "name": snapshot.name,
                "body": encode(snapshot),
            }
        case PutSchedule(record=schedule):
            row = {
                "id": schedule.id,
                "guest_id": schedule.guest_id,
                "name": schedule.name,
                "body": encode(schedule),
            }
        case PutLayer(layer=layer):
            row = {"id": layer.id, "body": encode(layer)}
        case PutVolume(record=volume):
            row = {"id": volume.id, "name": volume.name, "body": encode(volume)}
        case PutPool(record=pool):
            row = {"name": pool.name, "body": encode(pool)}
        case PutNetwork(record=network):
            row = {"id": network.id, "name": network.spec.name, "body": encode(network)}
        case PutUsage(usage=usage):
            row = {"id": usage.port, "guest_id": usage.guest_id, "body": encode(usage)}
        case PutGroup(record=group):
            row = {"id": group.id, "name": group.spec.name, "body": encode(group)}
        case PutForward(record=forward):
            row = {
                "id": forward.id,
                "guest_id": forward.guest_id,
                "outside": outside(forward),
                "body": encode(forward),
            }
        case PutJob(job=job):
            row = {
                "id": job.id,
                "state": str(job.state),
                "key": job.key or None,
                "body": encode(job),
            }
        case AddEvent(event=event):
            row = {"body": encode(event)}
        case _:
            row = {}
    return Step(change, row)


def port_row(guest_id: str, port: Port) -> dict[str, object]:
    """Return the row of a port of a guest."""
    return {
        "id": port.id,
        "guest_id": guest_id,
        "network_id": link_of(port),
        "mac": port.mac,
        "tap": port.tap,
        "address": port.address or None,
        "address6": port.address6 or None,
    }


def link_of(port: Port) -> str:
    """Return what a port's addresses are unique in: its network, or its network in a bubble."""
    return f"{port.network} {port.site[:24]}" if port.site else port.network


def outside(forward: ForwardRecord) -> str:
    """Return what of the host a forward takes, as one text."""
    return f"{forward.protocol} {forward.host_address} {forward.host_port}"
