"""Reading what ``Kind.read`` alone does not give, over a connection that somebody else opened.

What is damaged is left out of snapshots and unfinished jobs (``read_damaged`` tells), and shown as
such among jobs and events.
"""

from dataclasses import replace

import msgspec
import sqlalchemy as sa

from serai.errors import Code, Invalid
from serai.model.event import Event
from serai.model.job import FINAL_STATES, Job, JobState
from serai.model.snapshot import SnapshotRecord
from serai.store.kinds import KINDS, SNAPSHOT
from serai.store.records import EVENT_BODY, JOB_BODY, Damaged, decode, stand_in_event, stand_in_job
from serai.store.schema import EVENTS, GUESTS, JOBS, SCHEDULES, SNAPSHOTS, VOLUMES

KEY_LIMIT = 256
LARGEST_SEQ = (1 << 63) - 1


def read_snapshots(connection: sa.Connection) -> list[SnapshotRecord]:
    """Return all snapshots of all guests that can be read, the oldest first."""
    return sorted(SNAPSHOT.read(connection), key=lambda each: (each.created_at, each.id))


def read_damaged(connection: sa.Connection) -> list[Damaged]:
    """Return what is there and can't be read, of all ``KINDS``."""
    damaged = [each for kind in KINDS for each in kind.read_damaged(connection)]
    return [_complete(connection, each) for each in damaged]


def _complete(connection: sa.Connection, damaged: Damaged) -> Damaged:
    """Add what the columns of a guest's, a snapshot's, a schedule's or a volume's row still hold."""
    if damaged.table == GUESTS.name:
        query = sa.select(GUESTS.c.name, GUESTS.c.number).where(GUESTS.c.id == damaged.key)
        guest = connection.execute(query).one()
        return replace(damaged, name=guest.name, number=guest.number)
    for table in (SNAPSHOTS, SCHEDULES):
        if damaged.table == table.name:
            columns = sa.select(table.c.name, table.c.guest_id)
            row = connection.execute(columns.where(table.c.id == damaged.key)).one()
            return replace(damaged, name=row.name, guest_id=row.guest_id)
    if damaged.table == VOLUMES.name:
        names = sa.select(VOLUMES.c.name).where(VOLUMES.c.id == damaged.key)
        return replace(damaged, name=connection.execute(names).one().name)
    return damaged


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
