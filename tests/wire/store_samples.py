"""Things to store, for the tests of the store."""

from uuid import NAMESPACE_OID, uuid5

from serai.model.event import Event, EventKind
from serai.model.guest import GuestRecord, GuestSpec
from serai.model.image import Image, ImageKind
from serai.model.job import Job, JobState
from serai.model.schedule import Every, Keep, ScheduleRecord, When
from serai.model.snapshot import FrozenVolume, Layer, SnapshotRecord


def an_id(what: object) -> str:
    """Return the same id for the same thing."""
    return str(uuid5(NAMESPACE_OID, str(what)))


def a_guest(number: int, name: str = "", **changes: object) -> GuestRecord:
    """Return a guest with this number; its id follows from it."""
    fields: dict[str, object] = {
        "id": an_id(f"guest {number}"),
        "number": number,
        "version": 1,
        "created_at": 1.5,
        "spec": GuestSpec(image="tiny", name=name or f"g{number}", labels={"a": "b\0ü"}),
        "image_digest": "sha256:ab",
        "machine_type": "pc-q35-7.2",
        "mac": "52:54:00:00:00:01",
        "genid": an_id(number),
        **changes,
    }
    return GuestRecord(**fields)  # type: ignore[arg-type]


def an_image(name: str, digest: str = "sha256:ab") -> Image:
    """Return an image."""
    return Image(name=name, digest=digest, kind=ImageKind.KERNEL, created_at=1.0, size=3)


def a_snapshot(number: int, name: str = "", guest: int = 1, **changes: object) -> SnapshotRecord:
    """Return a snapshot of the guest with the number ``guest``."""
    fields: dict[str, object] = {
        "id": an_id(f"snapshot {number}"),
        "name": name or f"s{number}",
        "guest_id": a_guest(guest).id,
        "guest": a_guest(guest),
        "created_at": float(number),
        "volumes": (FrozenVolume(name="root", layer=an_id("layer 1"), size=1 << 20),),
        **changes,
    }
    return SnapshotRecord(**fields)  # type: ignore[arg-type]


def a_schedule(number: int, name: str = "", guest: int = 1, **changes: object) -> ScheduleRecord:
    """Return a schedule of the guest with the number ``guest``."""
    fields: dict[str, object] = {
        "id": an_id(f"schedule {number}"),
        "name": name or f"s{number}",
        "guest_id": a_guest(guest).id,
        "created_at": 1.0,
        "since": 1.0,
        "when": When(every=Every.DAILY, at=12600.0),
        "keep": Keep(daily=7),
        **changes,
    }
    return ScheduleRecord(**fields)  # type: ignore[arg-type]


def a_layer(number: int, parent: int = 0) -> Layer:
    """Return a layer; ``parent`` 0: it stands on an image."""
    below = an_id(f"layer {parent}") if parent else ""
    return Layer(
        id=an_id(f"layer {number}"), parent=below, virtual_size=1 << 20, created_at=float(number)
    )


def a_job(number: int, state: JobState = JobState.QUEUED, key: str = "", **changes: object) -> Job:
    """Return a job; its id follows from ``number``."""
    fields: dict[str, object] = {
        "id": an_id(f"job {number}"),
        "kind": "start",
        "subject": f"g{number}",
        "state": state,
        "created_at": 1.0,
        "updated_at": 1.0,
        "phases": ("start",),
        "key": key,
        **changes,
    }
    return Job(**fields)  # type: ignore[arg-type]


def an_event(subject: object = "") -> Event:
    """Return an event that has no number yet."""
    return Event(seq=0, at=1.0, kind=EventKind.GUEST_STATE, subject=str(subject), data={"a": "b"})
