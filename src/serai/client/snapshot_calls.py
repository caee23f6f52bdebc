"""The requests about snapshots of guests, and their schedules, as values."""

import msgspec

from serai.client.calls import Call, Page, get, guest_path, page, post, segment
from serai.model.job import Job
from serai.model.schedule import NAME_AS, Judgement, Keep, Schedule, ScheduleChange, When
from serai.model.snapshot import Snapshot


def _snapshot(guest: str, name: str) -> str:
    return f"{guest_path(guest)}/snapshots/{segment(name)}"


def _schedule(guest: str, name: str) -> str:
    return f"{guest_path(guest)}/schedules/{segment(name)}"


def list_snapshots(guest: str, cursor: str = "") -> Call[Page[Snapshot]]:
    """The snapshots of a guest, each after its parent."""
    return page(f"{guest_path(guest)}/snapshots", Page[Snapshot], cursor)


def show_snapshot(guest: str, name: str) -> Call[Snapshot]:
    """One snapshot of a guest."""
    return get(_snapshot(guest, name), Snapshot)


def create_snapshot(
    guest: str, *, name: str = "", memory: bool = True, quiesce: bool = False, note: str = ""
) -> Call[Job]:
    """Freeze a guest; it goes on."""
    body = {"name": name, "memory": memory, "quiesce": quiesce, "note": note}
    return post(f"{guest_path(guest)}/snapshots", Job, body)


def change_snapshot(
    guest: str, snapshot: str, *, name: str | None = None, note: str | None = None
) -> Call[Job]:
    """Give a snapshot another name or note."""
    given = {key: text for key, text in (("name", name), ("note", note)) if text is not None}
    path, body = _snapshot(guest, snapshot), msgspec.json.encode(given)
    return Call(method="PATCH", path=path, kind=Job, body=body)


def delete_snapshot(guest: str, name: str) -> Call[Job]:
    """Delete a snapshot; what others stand on stays."""
    return Call(method="DELETE", path=_snapshot(guest, name), kind=Job)


def restore_snapshot(guest: str, name: str, *, force: bool = False) -> Call[Job]:
    """Put a guest back to a snapshot."""
    return post(f"{_snapshot(guest, name)}/restore", Job, {"force": force})


def list_schedules(guest: str = "", cursor: str = "") -> Call[Page[Schedule]]:
    """The schedules of a guest, or of all, by guest and name."""
    path = f"{guest_path(guest)}/schedules" if guest else "/v1/schedules"
    return page(path, Page[Schedule], cursor)


def show_schedule(guest: str, name: str) -> Call[Schedule]:
    """One schedule of a guest."""
    return get(_schedule(guest, name), Schedule)


def judge_schedule(guest: str, name: str, **counts: int | None) -> Call[Page[Judgement]]:
    """What its rules, or those of ``counts`` if one is given, say of each of its snapshots."""
    given = {rule: str(count) for rule, count in counts.items() if count is not None}
    return get(f"{_schedule(guest, name)}/preview", Page[Judgement], **given)


def create_schedule(
    guest: str,
    when: When,
    *,
    name: str = "",
    keep: Keep = Keep(),  # noqa: B008 - it is frozen
    memory: bool = True,
    quiesce: bool = False,
    name_as: str = NAME_AS,
) -> Call[Job]:
    """Have snapshots made by themselves."""
    body = {
        "when": when, "name": name, "keep": keep,
        "memory": memory, "quiesce": quiesce, "name_as": name_as,
    }  # fmt: skip
    return post(f"{guest_path(guest)}/schedules", Job, body)


def set_schedule(guest: str, name: str, change: ScheduleChange) -> Call[Job]:
    """Change a schedule."""
    body = msgspec.json.encode(change)
    return Call(method="PATCH", path=_schedule(guest, name), kind=Job, body=body)


def run_schedule(guest: str, name: str) -> Call[Job]:
    """Do now what it does when it is due."""
    return post(f"{_schedule(guest, name)}/run", Job)


def delete_schedule(guest: str, name: str) -> Call[Job]:
    """Delete a schedule; its snapshots stay."""
    return Call(method="DELETE", path=_schedule(guest, name), kind=Job)
