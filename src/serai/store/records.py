"""Between structs and rows: encoding what is written, decoding what is read.

A body that can't be decoded is *damaged*: somebody changed it by hand, or the disk did. It is told
by table and key, and never takes the other rows down with it.
"""

import logging
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
import sqlalchemy as sa

from serai.errors import Bug, Code, HostFailure, Problem
from serai.model.event import Event, EventKind
from serai.model.guest import GuestRecord
from serai.model.image import Image
from serai.model.job import Job, JobState
from serai.model.schedule import ScheduleRecord
from serai.model.snapshot import Layer, SnapshotRecord

log = logging.getLogger(__name__)

T = TypeVar("T")

GUEST_BODY = msgspec.json.Decoder(GuestRecord)
IMAGE_BODY = msgspec.json.Decoder(Image)
SNAPSHOT_BODY = msgspec.json.Decoder(SnapshotRecord)
SCHEDULE_BODY = msgspec.json.Decoder(ScheduleRecord)
LAYER_BODY = msgspec.json.Decoder(Layer)
JOB_BODY = msgspec.json.Decoder(Job)
EVENT_BODY = msgspec.json.Decoder(Event)

REPAIR_HINT = "Restore the database from a copy, or delete this entry."


@dataclass(frozen=True, slots=True, kw_only=True)
class Damaged:
    """A row that can't be read.

    ``name`` and ``number`` are what a guest's row still holds, ``name`` and ``guest_id`` a snapshot's
    or a schedule's.
    """

    table: str
    key: str
    reason: str
    name: str = ""
    number: int = 0
    guest_id: str = ""


def encode(thing: msgspec.Struct) -> str:
    """Return the body of ``thing``; half surrogates, which no JSON can hold, become U+FFFD."""
    try:
        return msgspec.json.encode(thing).decode()
    except UnicodeEncodeError:
        return msgspec.json.encode(_scrub(msgspec.to_builtins(thing))).decode()
    except (TypeError, ValueError) as error:
        raise Bug(Code.BUG, f"{type(thing).__name__} can't be stored: {error}") from error


def _scrub(value: Any) -> Any:
    match value:
        case str():
            return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        case dict():
            return {_scrub(key): _scrub(item) for key, item in value.items()}
        case list() | tuple():
            return [_scrub(item) for item in value]
        case _:
            return value


def decode(
    table: sa.Table, key: str, body: object, decoder: msgspec.json.Decoder[T]
) -> T | Damaged:
    """Decode one body; what is damaged is logged and returned as such."""
    try:
        if not isinstance(body, str):
            raise msgspec.DecodeError(f"it is {type(body).__name__}, no text")
        return decoder.decode(body)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        log.error("%s %s in the database can't be read: %s", table.name, key, error)
        return Damaged(table=table.name, key=key, reason=str(error))


def stand_in_job(damaged: Damaged) -> Job:
    """Return what is shown of a job that can't be read: it failed, and why."""
    problem = Problem(
        family=HostFailure.family,
        code=Code.DATABASE_FAILED,
        message=f"job {damaged.key} can't be read: {damaged.reason}",
        hint=REPAIR_HINT,
    )
    return Job(
        id=damaged.key,
        kind="damaged",
        subject="",
        state=JobState.FAILED,
        created_at=0.0,
        updated_at=0.0,
        problem=problem,
    )


def stand_in_event(seq: int) -> Event:
    """Return what is shown of an event that can't be read: one was missed."""
    return Event(seq=seq, at=0.0, kind=EventKind.MISSED)
