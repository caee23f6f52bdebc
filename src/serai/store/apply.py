"""Carrying out changes within a transaction that somebody else has begun.

Statements here are plain SQL that every database speaks. ``prepare`` is done by the caller, so that
what can't be encoded fails only there; ``apply_change`` runs in the writer's thread.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import msgspec
import sqlalchemy as sa

from serai.errors import Bug, Code, Conflict, SeraiError
from serai.model.event import Event
from serai.model.job import FINAL_STATES
from serai.model.schedule import ScheduleRecord
from serai.model.snapshot import SnapshotRecord
from serai.store.changes import (
    AddEvent,
    Change,
    DropGuest,
    DropImage,
    DropLayer,
    DropSchedule,
    DropSnapshot,
    Prune,
    PutGuest,
    PutImage,
    PutJob,
    PutLayer,
    PutSchedule,
    PutSnapshot,
)
from serai.store.records import encode
from serai.store.schema import EVENTS, GUESTS, IMAGES, JOBS, LAYERS, SCHEDULES, SNAPSHOTS


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


def apply_steps(connection: sa.Connection, steps: Iterable[Step]) -> list[Event]:
    """Write ``steps`` in order; return the events among them with the numbers that they got."""
    events = []
    for step in steps:
        event = _apply(connection, step)
        if event is not None:
            events.append(event)
    return events


def _apply(connection: sa.Connection, step: Step) -> Event | None:
    match step.change:
        case PutGuest():
            _put(connection, GUESTS, GUESTS.c.id, step.row)
        case DropGuest(guest_id=guest_id):
            connection.execute(_DROP_GUEST, {"key": guest_id})
        case PutImage(replace=True):
            _put(connection, IMAGES, IMAGES.c.name, step.row)
        case PutImage():
            connection.execute(IMAGES.insert(), step.row)
        case DropImage(name=name):
            connection.execute(_DROP_IMAGE, {"key": name})
        case PutSnapshot(if_there=True):
            _change(connection, SNAPSHOTS, SNAPSHOTS.c.id, step.row)
        case PutSnapshot():
            _put(connection, SNAPSHOTS, SNAPSHOTS.c.id, step.row)
        case DropSnapshot(snapshot_id=snapshot_id):
            connection.execute(_DROP_SNAPSHOT, {"key": snapshot_id})
        case PutLayer(if_there=True):
            _change(connection, LAYERS, LAYERS.c.id, step.row)
        case PutSchedule():
            _put(connection, SCHEDULES, SCHEDULES.c.id, step.row)
        case DropSchedule(schedule_id=schedule_id):
            connection.execute(_DROP_SCHEDULE, {"key": schedule_id})
        case PutLayer():
            _put(connection, LAYERS, LAYERS.c.id, step.row)
        case DropLayer(layer_id=layer_id):
            connection.execute(_DROP_LAYER, {"key": layer_id})
        case PutJob():
            _put(connection, JOBS, JOBS.c.id, step.row)
        case AddEvent(event=event):
            return msgspec.structs.replace(event, seq=_add_event(connection, step.row))
        case Prune(events_kept=events_kept, jobs_kept=jobs_kept):
            connection.execute(_PRUNE_EVENTS, {"kept": events_kept})
            connection.execute(_PRUNE_JOBS, {"kept": jobs_kept})
    return None


def _put(
    connection: sa.Connection, table: sa.Table, key: sa.Column[str], row: Mapping[str, object]
) -> None:
    """Update the row with this key, or insert it: two statements that every database has."""
    if not _change(connection, table, key, row):
        connection.execute(table.insert(), row)


def _change(
    connection: sa.Connection, table: sa.Table, key: sa.Column[str], row: Mapping[str, object]
) -> bool:
    """Update the row with this key; False when there is none."""
    update = table.update().where(key == sa.bindparam("key_"))
    return connection.execute(update, {**row, "key_": row[key.name]}).rowcount > 0


def _add_event(connection: sa.Connection, row: Mapping[str, object]) -> int:
    key = connection.execute(EVENTS.insert(), row).inserted_primary_key
    assert key is not None
    return int(key[0])


_DROP_GUEST = GUESTS.delete().where(GUESTS.c.id == sa.bindparam("key"))
_DROP_IMAGE = IMAGES.delete().where(IMAGES.c.name == sa.bindparam("key"))
_DROP_SNAPSHOT = SNAPSHOTS.delete().where(SNAPSHOTS.c.id == sa.bindparam("key"))
_DROP_SCHEDULE = SCHEDULES.delete().where(SCHEDULES.c.id == sa.bindparam("key"))
_DROP_LAYER = LAYERS.delete().where(LAYERS.c.id == sa.bindparam("key"))


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


def find_conflict(connection: sa.Connection, steps: Iterable[Step]) -> SeraiError:
    """Return why the database refused ``steps`` as not unique, by looking at what is there now.

    Databases name a violated constraint each in their own way, so none of them is asked.
    """
    for step in steps:
        conflict = _conflict_of(connection, step)
        if conflict is not None:
            return conflict
    return Bug(Code.BUG, "the changes of one commit contradict each other")


def _conflict_of(connection: sa.Connection, step: Step) -> Conflict | None:
    match step.change:
        case PutGuest(record=record):
            others = sa.select(GUESTS.c.name, GUESTS.c.number).where(GUESTS.c.id != record.id)
            name, number = record.spec.name, record.number
            if connection.execute(others.where(GUESTS.c.name == name)).first():
                return _exists("guest", name, Code.GUEST_EXISTS)
            if other := connection.execute(others.where(GUESTS.c.number == number)).first():
                message = f"the number {number} belongs to the guest {other.name}"
                return Conflict(Code.GUEST_EXISTS, message)
        case PutImage(image=image, replace=False):
            if connection.execute(
                sa.select(IMAGES.c.name).where(IMAGES.c.name == image.name)
            ).first():
                return _exists("image", image.name, Code.IMAGE_EXISTS)
        case PutSnapshot(record=snapshot):
            if _has_other(connection, SNAPSHOTS, snapshot):
                return Conflict(
                    Code.SNAPSHOT_EXISTS,
                    f"the guest has a snapshot {snapshot.name} already",
                    hint="Choose another name; see which there are: serai snapshot list",
                )
        case PutSchedule(record=schedule):
            if _has_other(connection, SCHEDULES, schedule):
                return Conflict(
                    Code.SCHEDULE_EXISTS,
                    f"the guest has a schedule {schedule.name} already",
                    hint="Choose another name; see which there are: serai schedule list",
                )
        case PutJob(job=job) if job.key:
            others = sa.select(JOBS.c.id).where(JOBS.c.id != job.id, JOBS.c.key == job.key)
            if connection.execute(others).first():
                return Conflict(
                    Code.IDEMPOTENCY_REUSED,
                    "this idempotency key was used for another request",
                    hint="Make a new key for each new request.",
                )
    return None


def _has_other(
    connection: sa.Connection, table: sa.Table, record: SnapshotRecord | ScheduleRecord
) -> bool:
    """Tell whether the guest of ``record`` has another row with its name."""
    others = sa.select(table.c.id).where(
        table.c.guest_id == record.guest_id,
        table.c.name == record.name,
        table.c.id != record.id,
    )
    return connection.execute(others).first() is not None


def _exists(what: str, name: str, code: Code) -> Conflict:
    hint = (
        f"Choose another name; see which there are: serai {'image ' if what == 'image' else ''}list"
    )
    return Conflict(code, f"there is a {what} {name} already", hint=hint)
