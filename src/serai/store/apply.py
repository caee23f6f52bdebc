"""Carrying out changes within a transaction that somebody else has begun, in the writer's thread.

Statements here are plain SQL that every database speaks. Why one was refused as not unique is found out
by ``conflicts``.
"""

from collections.abc import Iterable, Mapping
from typing import Any, assert_never

import msgspec
import sqlalchemy as sa

from serai.model.event import Event
from serai.model.guest import GuestRecord
from serai.model.job import FINAL_STATES
from serai.store.changes import (
    AddEvent,
    Change,
    DropForward,
    DropGroup,
    DropGuest,
    DropImage,
    DropLayer,
    DropNetwork,
    DropPool,
    DropSchedule,
    DropSnapshot,
    DropVolume,
    Prune,
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
from serai.store.kinds import (
    FORWARD,
    GROUP,
    GUEST,
    IMAGE,
    JOB,
    LAYER,
    NETWORK,
    POOL,
    PORT_USAGE,
    SCHEDULE,
    SNAPSHOT,
    VOLUME,
    Kind,
)
from serai.store.rows import Step, port_row
from serai.store.schema import EVENTS, FORWARDS, JOBS, PORTS, USAGE

_PUT: Mapping[type[Change], Kind[Any]] = {
    PutGuest: GUEST,
    PutImage: IMAGE,
    PutSnapshot: SNAPSHOT,
    PutSchedule: SCHEDULE,
    PutLayer: LAYER,
    PutVolume: VOLUME,
    PutPool: POOL,
    PutNetwork: NETWORK,
    PutUsage: PORT_USAGE,
    PutGroup: GROUP,
    PutForward: FORWARD,
    PutJob: JOB,
}
_DROP: Mapping[type[Change], Kind[Any]] = {
    DropGuest: GUEST,
    DropImage: IMAGE,
    DropSnapshot: SNAPSHOT,
    DropSchedule: SCHEDULE,
    DropLayer: LAYER,
    DropVolume: VOLUME,
    DropPool: POOL,
    DropNetwork: NETWORK,
    DropGroup: GROUP,
    DropForward: FORWARD,
}


def apply_steps(connection: sa.Connection, steps: Iterable[Step]) -> list[Event]:
    """Write ``steps`` in order; return the events among them with the numbers that they got."""
    events = []
    for step in steps:
        event = _apply(connection, step)
        if event is not None:
            events.append(event)
    return events


def _apply(connection: sa.Connection, step: Step) -> Event | None:
    change, row = step.change, step.row
    match change:
        case PutImage(replace=False) | PutPool():
            connection.execute(_PUT[type(change)].table.insert(), row)
        case PutSnapshot(if_there=True) | PutLayer(if_there=True):
            _change(connection, _PUT[type(change)], row)
        case PutGuest(record=record):
            _put(connection, GUEST, row)
            _put_ports(connection, record)
        case (
            PutImage() | PutSnapshot() | PutSchedule() | PutLayer() | PutVolume() | PutNetwork()
            | PutUsage() | PutGroup() | PutForward() | PutJob()
        ):  # fmt: skip
            _put(connection, _PUT[type(change)], row)
        case DropGuest(guest_id=guest_id):
            _drop(connection, GUEST, guest_id)
            for statement in (_DROP_PORTS, _DROP_USAGE, _DROP_FORWARDS):
                connection.execute(statement, {"key": guest_id})
        case (
            DropImage(name=key) | DropPool(name=key) | DropSnapshot(snapshot_id=key)
            | DropSchedule(schedule_id=key) | DropLayer(layer_id=key) | DropVolume(volume_id=key)
            | DropNetwork(network_id=key) | DropGroup(group_id=key) | DropForward(forward_id=key)
        ):  # fmt: skip
            _drop(connection, _DROP[type(change)], key)
        case AddEvent(event=event):
            return msgspec.structs.replace(event, seq=_add_event(connection, row))
        case Prune(events_kept=events_kept, jobs_kept=jobs_kept):
            connection.execute(_PRUNE_EVENTS, {"kept": events_kept})
            connection.execute(_PRUNE_JOBS, {"kept": jobs_kept})
        case _:
            assert_never(change)
    return None


def _put(connection: sa.Connection, kind: Kind[Any], row: Mapping[str, object]) -> None:
    """Update the row with this key, or insert it: two statements that every database has."""
    if not _change(connection, kind, row):
        connection.execute(kind.table.insert(), row)


def _change(connection: sa.Connection, kind: Kind[Any], row: Mapping[str, object]) -> bool:
    """Update the row with this key; False when there is none."""
    update = kind.table.update().where(kind.key == sa.bindparam("key_"))
    return connection.execute(update, {**row, "key_": row[kind.key.name]}).rowcount > 0


def _drop(connection: sa.Connection, kind: Kind[Any], key: str) -> None:
    connection.execute(kind.table.delete().where(kind.key == sa.bindparam("key_")), {"key_": key})


def _put_ports(connection: sa.Connection, record: GuestRecord) -> None:
    """Let the ports of a guest be those of its record, and what passed a port that is gone go too."""
    stay = [port.id for port in record.ports]
    connection.execute(_DROP_PORTS, {"key": record.id})
    connection.execute(_DROP_OTHER_USAGE, {"key": record.id, "stay": stay})
    if record.ports:
        connection.execute(PORTS.insert(), [port_row(record.id, port) for port in record.ports])


def _add_event(connection: sa.Connection, row: Mapping[str, object]) -> int:
    key = connection.execute(EVENTS.insert(), row).inserted_primary_key
    assert key is not None
    return int(key[0])


_DROP_PORTS = PORTS.delete().where(PORTS.c.guest_id == sa.bindparam("key"))
_DROP_USAGE = USAGE.delete().where(USAGE.c.guest_id == sa.bindparam("key"))
_DROP_OTHER_USAGE = _DROP_USAGE.where(USAGE.c.id.not_in(sa.bindparam("stay", expanding=True)))
_DROP_FORWARDS = FORWARDS.delete().where(FORWARDS.c.guest_id == sa.bindparam("key"))


def _prune(table: sa.Table, among: sa.ColumnElement[bool]) -> sa.Delete:
    """Delete all rows ``among`` those that count, but the newest ``kept``."""
    newest_to_go = (
        sa.select(table.c.seq)
        .where(among)
        .order_by(table.c.seq.desc())
        .offset(sa.bindparam("kept", type_=sa.Integer))
        .limit(1)
        .scalar_subquery()
    )
    return table.delete().where(among, table.c.seq <= newest_to_go)


_PRUNE_EVENTS = _prune(EVENTS, sa.true())
_PRUNE_JOBS = _prune(JOBS, JOBS.c.state.in_(sorted(FINAL_STATES)))
