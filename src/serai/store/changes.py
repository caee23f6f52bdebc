"""What can be written: changes as data. ``Store.commit`` takes any number of them as one."""

from collections.abc import Collection
from dataclasses import dataclass

from serai.model.event import Event
from serai.model.guest import GuestRecord
from serai.model.image import Image
from serai.model.job import Job
from serai.model.schedule import ScheduleRecord
from serai.model.snapshot import Layer, SnapshotRecord


@dataclass(frozen=True, slots=True)
class PutGuest:
    """Store a guest, new or changed; its name and number are unique (``guest-exists``)."""

    record: GuestRecord


@dataclass(frozen=True, slots=True)
class DropGuest:
    """Forget a guest; one that is not there is forgotten already."""

    guest_id: str


@dataclass(frozen=True, slots=True)
class PutImage:
    """Store an image under its name; without ``replace`` the name must be free (``image-exists``)."""

    image: Image
    replace: bool = True


@dataclass(frozen=True, slots=True)
class DropImage:
    """Forget an image; one that is not there is forgotten already."""

    name: str


@dataclass(frozen=True, slots=True)
class PutSnapshot:
    """Store a snapshot, new or changed; its name is unique in its guest (``snapshot-exists``).

    ``if_there``: only a change; one that was dropped meanwhile does not come back.
    """

    record: SnapshotRecord
    if_there: bool = False


@dataclass(frozen=True, slots=True)
class DropSnapshot:
    """Forget a snapshot; one that is not there is forgotten already."""

    snapshot_id: str


@dataclass(frozen=True, slots=True)
class PutSchedule:
    """Store a schedule, new or changed; its name is unique in its guest (``schedule-exists``)."""

    record: ScheduleRecord


@dataclass(frozen=True, slots=True)
class DropSchedule:
    """Forget a schedule; one that is not there is forgotten already."""

    schedule_id: str


@dataclass(frozen=True, slots=True)
class PutLayer:
    """Store a layer, new or changed; ``if_there`` as of a snapshot."""

    layer: Layer
    if_there: bool = False


@dataclass(frozen=True, slots=True)
class DropLayer:
    """Forget a layer; one that is not there is forgotten already."""

    layer_id: str


@dataclass(frozen=True, slots=True)
class PutJob:
    """Store a job, new or changed; its key, if any, is unique (``idempotency-reused``)."""

    job: Job


@dataclass(frozen=True, slots=True)
class AddEvent:
    """Store an event; its ``seq`` is given by the store and returned by ``commit``."""

    event: Event


@dataclass(frozen=True, slots=True)
class Prune:
    """Keep the newest events and the newest finished jobs; unfinished jobs always stay."""

    events_kept: int
    jobs_kept: int


Change = (
    PutGuest
    | DropGuest
    | PutImage
    | DropImage
    | PutSnapshot
    | DropSnapshot
    | PutSchedule
    | DropSchedule
    | PutLayer
    | DropLayer
    | PutJob
    | AddEvent
    | Prune
)


def free_number(taken: Collection[int]) -> int:
    """Return the smallest number from 1 that is not ``taken``."""
    numbers = set(taken)
    return next(number for number in range(1, len(numbers) + 2) if number not in numbers)
