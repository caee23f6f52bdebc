"""Why the database refused changes as not unique, found by looking at what is there now.

Databases name a violated constraint each in their own way, so none of them is asked.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import sqlalchemy as sa

from serai.errors import Bug, Code, Conflict, SeraiError
from serai.model.guest import GuestRecord
from serai.model.network import ForwardRecord
from serai.model.schedule import ScheduleRecord
from serai.model.snapshot import SnapshotRecord
from serai.store.changes import (
    Change,
    PutForward,
    PutGroup,
    PutGuest,
    PutImage,
    PutJob,
    PutNetwork,
    PutPool,
    PutSchedule,
    PutSnapshot,
    PutVolume,
)
from serai.store.rows import Step, link_of, outside
from serai.store.schema import (
    FORWARDS,
    GROUPS,
    GUESTS,
    IMAGES,
    JOBS,
    NETWORKS,
    POOLS,
    PORTS,
    SCHEDULES,
    SNAPSHOTS,
    VOLUMES,
)

Claim = tuple[sa.Select[Any], Conflict]
"""Finds the others that have what must be one's own, and what is said if there is one."""


def find_conflict(connection: sa.Connection, steps: Iterable[Step]) -> SeraiError:
    """Return why the database refused ``steps`` as not unique."""
    for step in steps:
        for others, conflict in _claims(connection, step.change):
            if connection.execute(others).first():
                return conflict
    return Bug(Code.BUG, "the changes of one commit contradict each other")


def _claims(connection: sa.Connection, change: Change) -> Iterator[Claim]:
    """Give what a change claims for itself alone."""
    match change:
        case PutGuest(record=guest):
            yield _name(GUESTS, "guest", guest.spec.name, guest.id, Code.GUEST_EXISTS)
            yield from _number(connection, guest)
            yield from _addresses(guest)
        case PutNetwork(record=network):
            yield _name(NETWORKS, "network", network.spec.name, network.id, Code.NETWORK_EXISTS)
        case PutGroup(record=group):
            yield _name(GROUPS, "security group", group.spec.name, group.id, Code.GROUP_EXISTS)
        case PutVolume(record=volume):
            yield _name(VOLUMES, "volume", volume.name, volume.id, Code.VOLUME_EXISTS)
        case PutImage(image=image, replace=False):
            yield _key(IMAGES, "image", image.name, Code.IMAGE_EXISTS)
        case PutPool(record=pool):
            yield _key(POOLS, "pool", pool.name, Code.POOL_EXISTS)
        case PutSnapshot(record=snapshot):
            yield _name_in_guest(SNAPSHOTS, "snapshot", snapshot, Code.SNAPSHOT_EXISTS)
        case PutSchedule(record=schedule):
            yield _name_in_guest(SCHEDULES, "schedule", schedule, Code.SCHEDULE_EXISTS)
        case PutForward(record=forward):
            yield _place_outside(forward)
        case PutJob(job=job) if job.key:
            yield (
                sa.select(JOBS.c.id).where(JOBS.c.id != job.id, JOBS.c.key == job.key),
                Conflict(
                    Code.IDEMPOTENCY_REUSED,
                    "this idempotency key was used for another request",
                    hint="Make a new key for each new request.",
                ),
            )


def _name(table: sa.Table, what: str, name: str, own_id: str, code: Code) -> Claim:
    others = sa.select(table.c.id).where(table.c.name == name, table.c.id != own_id)
    return others, _exists(what, name, code)


def _key(table: sa.Table, what: str, name: str, code: Code) -> Claim:
    return sa.select(table.c.name).where(table.c.name == name), _exists(what, name, code)


LISTS = {
    "guest": "list",
    "image": "image list",
    "network": "network list",
    "security group": "rules list",
    "volume": "volume list",
    "pool": "pool list",
}


def _exists(what: str, name: str, code: Code) -> Conflict:
    hint = f"Choose another name; see which there are: serai {LISTS[what]}"
    return Conflict(code, f"there is a {what} {name} already", hint=hint)


def _number(connection: sa.Connection, guest: GuestRecord) -> Iterator[Claim]:
    """Give the guest's number if another has it, for what is said then: whose it is."""
    others = sa.select(GUESTS.c.name).where(
        GUESTS.c.number == guest.number, GUESTS.c.id != guest.id
    )
    if other := connection.execute(others).first():
        message = f"the number {guest.number} belongs to the guest {other.name}"
        yield others, Conflict(Code.GUEST_EXISTS, message)


def _addresses(guest: GuestRecord) -> Iterator[Claim]:
    """Give the addresses of a guest's ports, each of which is unique in its network."""
    for port in guest.ports:
        for column, value in (
            (PORTS.c.address, port.address),
            (PORTS.c.address6, port.address6),
            (PORTS.c.mac, port.mac),
        ):
            if value:
                others = sa.select(PORTS.c.id).where(
                    PORTS.c.network_id == link_of(port),
                    PORTS.c.guest_id != guest.id,
                    column == value,
                )
                yield (
                    others,
                    Conflict(
                        Code.ADDRESS_TAKEN,
                        f"another guest has the address {value} already",
                        hint="Choose another, or leave it out: then a free one is picked.",
                    ),
                )


def _name_in_guest(
    table: sa.Table, what: str, record: SnapshotRecord | ScheduleRecord, code: Code
) -> Claim:
    others = sa.select(table.c.id).where(
        table.c.guest_id == record.guest_id,
        table.c.name == record.name,
        table.c.id != record.id,
    )
    return others, Conflict(
        code,
        f"the guest has a {what} {record.name} already",
        hint=f"Choose another name; see which there are: serai {what} list",
    )


def _place_outside(forward: ForwardRecord) -> Claim:
    others = sa.select(FORWARDS.c.id).where(
        FORWARDS.c.outside == outside(forward), FORWARDS.c.id != forward.id
    )
    return others, Conflict(
        Code.FORWARD_EXISTS,
        f"the host's {forward.protocol} port {forward.host_port} is forwarded already",
        hint="See where to: serai forward list",
    )
