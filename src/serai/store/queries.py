"""Reading: one query and its decoding each, over a connection that somebody else opened.

What is damaged is left out of guests, images, snapshots, schedules, layers and unfinished jobs
(``read_damaged`` tells), and shown as such among jobs and events.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import TypeVar

import msgspec
import sqlalchemy as sa

from serai.errors import Code, Invalid
from serai.model.event import Event
from serai.model.guest import GuestRecord
from serai.model.image import Image
from serai.model.job import FINAL_STATES, Job, JobState
from serai.model.schedule import ScheduleRecord
from serai.model.snapshot import Layer, SnapshotRecord
from serai.store.records import (
    EVENT_BODY,
    GUEST_BODY,
    IMAGE_BODY,
    JOB_BODY,
    LAYER_BODY,
    SCHEDULE_BODY,
    SNAPSHOT_BODY,
    Damaged,
    decode,
    stand_in_event,
    stand_in_job,
)
from serai.store.schema import EVENTS, GUESTS, IMAGES, JOBS, LAYERS, SCHEDULES, SNAPSHOTS

T = TypeVar("T")

KEY_LIMIT = 256
LARGEST_SEQ = (1 << 63) - 1


def read_guests(connection: sa.Connection) -> list[GuestRecord]:
    """Return all guests that can be read, by number."""
    found = _decode_all(connection, GUESTS, GUESTS.c.id, GUESTS.c.number, GUEST_BODY)
    return [guest for guest in found if isinstance(guest, GuestRecord)]


def read_images(connection: sa.Connection) -> list[Image]:
    """Return all images that can be read, by name."""
    found = _decode_all(connection, IMAGES, IMAGES.c.name, IMAGES.c.name, IMAGE_BODY)
    return [image for image in found if isinstance(image, Image)]


def read_snapshots(connection: sa.Connection) -> list[SnapshotRecord]:
    """Return all snapshots of all guests that can be read, the oldest first."""
    found = _decode_all(connection, SNAPSHOTS, SNAPSHOTS.c.id, SNAPSHOTS.c.id, SNAPSHOT_BODY)
    snapshots = [snapshot for snapshot in found if isinstance(snapshot, SnapshotRecord)]
    return sorted(snapshots, key=lambda snapshot: (snapshot.created_at, snapshot.id))


def read_schedules(connection: sa.Connection) -> list[ScheduleRecord]:
    """Return all schedules of all guests that can be read, by id."""
    found = _decode_all(connection, SCHEDULES, SCHEDULES.c.id, SCHEDULES.c.id, SCHEDULE_BODY)
    return [schedule for schedule in found if isinstance(schedule, ScheduleRecord)]


def read_layers(connection: sa.Connection) -> list[Layer]:
    """Return all layers that can be read, by id."""
    found = _decode_all(connection, LAYERS, LAYERS.c.id, LAYERS.c.id, LAYER_BODY)
    return [layer for layer in found if isinstance(layer, Layer)]


def read_damaged(connection: sa.Connection) -> list[Damaged]:
    """Return every guest, image, snapshot, schedule, layer and job that can't be read."""
    guests = _decode_all(connection, GUESTS, GUESTS.c.id, GUESTS.c.number, GUEST_BODY)
    images = _decode_all(connection, IMAGES, IMAGES.c.name, IMAGES.c.name, IMAGE_BODY)
    snapshots = _decode_all(connection, SNAPSHOTS, SNAPSHOTS.c.id, SNAPSHOTS.c.id, SNAPSHOT_BODY)
    schedules = _decode_all(connection, SCHEDULES, SCHEDULES.c.id, SCHEDULES.c.id, SCHEDULE_BODY)
    layers = _decode_all(connection, LAYERS, LAYERS.c.id, LAYERS.c.id, LAYER_BODY)
    jobs = _decode_all(connection, JOBS, JOBS.c.id, JOBS.c.seq, JOB_BODY)
    kinds = (guests, images, snapshots, schedules, layers, jobs)
    damaged = [each for found in kinds for each in found]
    return [_complete(connection, each) for each in damaged if isinstance(each, Damaged)]


def _complete(connection: sa.Connection, damaged: Damaged) -> Damaged:
    """Add what the columns of a guest's, a snapshot's or a schedule's row still hold."""
    if damaged.table == GUESTS.name:
        query = sa.select(GUESTS.c.name, GUESTS.c.number).where(GUESTS.c.id == damaged.key)
        guest = connection.execute(query).one()
        return replace(damaged, name=guest.name, number=guest.number)
    for table in (SNAPSHOTS, SCHEDULES):
        if damaged.table == table.name:
            columns = sa.select(table.c.name, table.c.guest_id)
            row = connection.execute(columns.where(table.c.id == damaged.key)).one()
            return replace(damaged, name=row.name, guest_id=row.guest_id)
    return damaged


def _decode_all(
    connection: sa.Connection,
    table: sa.Table,
    key: sa.Column[str],
    order: sa.Column[int] | sa.Column[str],
    decoder: msgspec.json.Decoder[T],
) -> Iterator[T | Damaged]:
    for found, body in connection.execute(sa.select(key, table.c.body).order_by(order)):
        row: T | Damaged = decode(table, found, body, decoder)
        yield row


_JOB_COLUMNS = sa.select(JOBS.c.id, JOBS.c.body)
_UNFINISHED = _JOB_COLUMNS.where(JOBS.c.state.not_in(sorted(FINAL_STATES))).order_by(JOBS.c.seq)


def read_unfinished_jobs(connection: sa.Connection) -> list[Job]:
    """Return the jobs that are on their way and can be read, the oldest first."""
    jobs = []
    for key, body in connection.execute(_UNFINISHED):
        job = decode(JOBS, key, body, JOB_BODY)
        if isinstance(job, Job):
            jobs.append(job)
    return jobs


def read_jobs(
    connection: sa.Connection, state: JobState | None, limit: int, before: str
) -> list[Job]:
    """Return the newest jobs first; ``before`` is the id of the last one that was seen.

    Raises Invalid (``value-invalid``) when that job is gone: nobody can tell where to go on.
    """
    query = _JOB_COLUMNS.order_by(JOBS.c.seq.desc()).limit(max(0, limit))
    if state is not None:
        query = query.where(JOBS.c.state == str(state))
    if before:
        query = query.where(JOBS.c.seq < _seq_of(connection, before))
    return [_show_job(key, body) for key, body in connection.execute(query)]


def _seq_of(connection: sa.Connection, untrusted_id: str) -> int:
    seq: int | None = None
    if _is_plausible(untrusted_id):
        seq = connection.scalar(sa.select(JOBS.c.seq).where(JOBS.c.id == untrusted_id))
    if seq is None:
        raise Invalid(
            Code.VALUE_INVALID,
            "the job where this page ended is gone",
            hint="Begin with the first page again.",
        )
    return seq


def read_job(connection: sa.Connection, untrusted_id: str) -> Job | None:
    """Return one job, None if there is none of this id."""
    return _read_one_job(connection, JOBS.c.id, untrusted_id)


def read_job_by_key(connection: sa.Connection, untrusted_key: str) -> Job | None:
    """Return the job that was opened with this idempotency key, None if there is none."""
    return _read_one_job(connection, JOBS.c.key, untrusted_key)


def _read_one_job(connection: sa.Connection, column: sa.Column[str], untrusted: str) -> Job | None:
    if not _is_plausible(untrusted):
        return None
    row = connection.execute(_JOB_COLUMNS.where(column == untrusted)).first()
    return None if row is None else _show_job(*row)


def _is_plausible(untrusted: str) -> bool:
    """Tell whether a database can be asked for this key at all (no NUL, no half surrogates)."""
    return 0 < len(untrusted) <= KEY_LIMIT and untrusted.isascii() and untrusted.isprintable()


def _show_job(key: str, body: str) -> Job:
    job = decode(JOBS, key, body, JOB_BODY)
    return stand_in_job(job) if isinstance(job, Damaged) else job


def read_events(connection: sa.Connection, after: int, limit: int) -> list[Event]:
    """Return stored events with a number above ``after``, the oldest first."""
    if after >= LARGEST_SEQ:
        return []
    query = (
        sa.select(EVENTS.c.seq, EVENTS.c.body)
        .where(EVENTS.c.seq > max(after, -1))
        .order_by(EVENTS.c.seq)
        .limit(max(0, limit))
    )
    return [_show_event(seq, body) for seq, body in connection.execute(query)]


def _show_event(seq: int, body: str) -> Event:
    event = decode(EVENTS, str(seq), body, EVENT_BODY)
    if isinstance(event, Damaged):
        return stand_in_event(seq)
    return msgspec.structs.replace(event, seq=seq)


def read_last_seq(connection: sa.Connection) -> int:
    """Return the number of the newest event that is kept; 0 if there is none."""
    return connection.scalar(sa.select(sa.func.max(EVENTS.c.seq))) or 0
