"""When schedules are due, and what their snapshots are called: pure, and all in UTC.

A due time is a function of the schedule and of a moment; nothing counts how often something should
have been done. So what was missed while no daemon ran is caught up once, whatever was missed, and a
slow snapshot delays the next one but never makes two of them.
"""

import re
from collections.abc import Collection, Iterable
from datetime import UTC, datetime, timedelta

import msgspec

from serai.errors import Code, Invalid
from serai.model.schedule import Every, Schedule, ScheduleChange, ScheduleRecord, When
from serai.model.snapshot import SnapshotRecord
from serai.units import NAME_LENGTH, check_snapshot_name, format_duration, shorten

HOUR, DAY, WEEK = 3600.0, 86400.0, 604800.0
LONGEST_INTERVAL = 366 * DAY
LENGTHS = {Every.HOURLY: HOUR, Every.DAILY: DAY, Every.WEEKLY: WEEK, Every.MONTHLY: 28 * DAY}
"""What ``at`` must be below; a moment that only long months have would be left out in others."""

FIELDS = ("schedule", "date", "time")
ROOM_FOR_NUMBER = len("-999")
_FIELD = re.compile(r"\{([^{}]*)\}")


# -- when ------------------------------------------------------------------------------------------


def period_begin(every: Every, moment: float) -> float:
    """Return when the hour, day, week (from Monday) or month of ``moment`` began, in UTC."""
    day = datetime.fromtimestamp(moment, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    match every:
        case Every.HOURLY:
            return moment // HOUR * HOUR
        case Every.DAILY:
            return day.timestamp()
        case Every.WEEKLY:
            return (day - timedelta(days=day.weekday())).timestamp()
        case Every.MONTHLY:
            return day.replace(day=1).timestamp()
        case Every.INTERVAL:
            raise AssertionError("an interval has a length of its own")


def _period_after(every: Every, begin: float) -> float:
    """Return when the period after the one that began at ``begin`` begins."""
    longest = 32 * DAY if every is Every.MONTHLY else LENGTHS[every]
    return period_begin(every, begin + longest)


def next_due(when: When, after: float) -> float:
    """Return the first due time later than ``after``."""
    if when.every is Every.INTERVAL:
        due = (after // when.interval + 1) * when.interval
        return due if due > after else due + when.interval
    begin = period_begin(when.every, after)
    due = begin + when.at
    return due if due > after else _period_after(when.every, begin) + when.at


def due_time(schedule: ScheduleRecord) -> float:
    """Return when the schedule is due; a time that has come means now, and once."""
    return next_due(schedule.when, schedule.since)


def taken_up(schedule: ScheduleRecord, made: Iterable[float], now: float) -> ScheduleRecord:
    """Return the schedule as a new daemon goes on with it.

    ``made`` are the moments of its snapshots: one that was stored just before the last daemon was
    killed counts, though the schedule does not know it.
    """
    schedule = settled(schedule, now)
    limit = _believable(schedule.when, now)
    last = max((schedule.since, *(at for at in made if at <= limit)))
    return msgspec.structs.replace(schedule, since=last)


def settled(schedule: ScheduleRecord, now: float) -> ScheduleRecord:
    """Return the schedule counting from now if it counts from a time that can't be believed.

    A clock that was set back by less than a period makes no second snapshot of it. One that was set
    back further is believed: a schedule that ran in a wrong year must not wait for that year.
    """
    if schedule.since <= _believable(schedule.when, now):
        return schedule
    return msgspec.structs.replace(schedule, since=now)


def _believable(when: When, now: float) -> float:
    return next_due(when, next_due(when, now))


def check_when(when: When, least: float) -> None:
    """Raise Invalid (``value-invalid``) for what never comes, or comes too often (``least`` seconds)."""
    if when.every is Every.INTERVAL:
        if not least <= when.interval <= LONGEST_INTERVAL:
            raise Invalid(
                Code.VALUE_INVALID,
                f"an interval of {when.interval:g} s is not between "
                f"{format_duration(least)} and {format_duration(LONGEST_INTERVAL)}",
                hint="The least is the daemon's setting schedule_interval.",
            )
        if when.at:
            raise Invalid(Code.VALUE_INVALID, "an interval has no time of day")
        return
    if when.interval:
        raise Invalid(Code.VALUE_INVALID, f"{when.every} has no interval of its own")
    if not 0 <= when.at < LENGTHS[when.every]:
        raise Invalid(
            Code.VALUE_INVALID,
            f"{when.at:g} s after its beginning is not in every period of {when.every}",
            hint="A month has 28 days for sure.",
        )


# -- names -----------------------------------------------------------------------------------------


def pick_schedule_name(when: When, taken: Collection[str]) -> str:
    """Return a free name for a schedule whose owner gave none: ``daily``, ``interval-2``."""
    name, number = str(when.every), 1
    while name in taken:
        number += 1
        name = f"{when.every}-{number}"
    return name


def snapshot_name(name_as: str, schedule: str, now: float, taken: Collection[str]) -> str:
    """Return what a snapshot made now is called; one that is taken gets a number.

    Raises Invalid (``name-invalid``, ``value-invalid``) as ``check_name_as`` does.
    """
    name = check_name_as(name_as, schedule, now)
    number = 1
    while (found := name if number == 1 else f"{name}-{number}") in taken:
        number += 1
    return found


def check_name_as(name_as: str, schedule: str, now: float) -> str:
    """Return the name that the template gives; it is as long at any other time.

    Raises Invalid: ``value-invalid`` for a field that there is not, ``name-invalid`` for what is no
    name, or leaves no room for a number.
    """
    moment = datetime.fromtimestamp(now, UTC)
    values = {
        "schedule": schedule,
        "date": f"{moment:%Y%m%d}",
        "time": f"{moment:%Y%m%d-%H%M%S}",
    }
    for field in _FIELD.findall(name_as):
        if field not in values:
            raise Invalid(
                Code.VALUE_INVALID,
                f"{shorten(name_as)} has a field {shorten(field)}, which there is not",
                hint=f"There are {', '.join(f'{{{each}}}' for each in FIELDS)}.",
            )
    name = check_snapshot_name(_FIELD.sub(lambda field: values[field[1]], name_as))
    if len(name) + ROOM_FOR_NUMBER > NAME_LENGTH:
        raise Invalid(
            Code.NAME_INVALID,
            f"snapshots called {shorten(name)} would have names that are too long",
            hint=f"Use {NAME_LENGTH - ROOM_FOR_NUMBER} characters at most.",
        )
    return name


# -- changing and showing --------------------------------------------------------------------------


def changed(schedule: ScheduleRecord, change: ScheduleChange, now: float) -> ScheduleRecord:
    """Return the schedule with the change; what it was due for before is not caught up.

    The problem of its last turn goes, since what caused it may have been changed.
    """
    named = {
        name: value
        for name in change.__struct_fields__
        if (value := getattr(change, name)) is not msgspec.UNSET
    }
    new = msgspec.structs.replace(schedule, **named)
    if new == schedule:
        return schedule
    if new.when != schedule.when or new.paused != schedule.paused:
        new = msgspec.structs.replace(new, since=now)
    return msgspec.structs.replace(new, problem=None)


def view_schedule(
    schedule: ScheduleRecord, guest: str, made: Collection[SnapshotRecord]
) -> Schedule:
    """Join the record with what is known around it: its guest's name now, the snapshots it made."""
    return Schedule(
        name=schedule.name,
        id=schedule.id,
        guest=guest,
        guest_id=schedule.guest_id,
        when=schedule.when,
        keep=schedule.keep,
        memory=schedule.memory,
        quiesce=schedule.quiesce,
        name_as=schedule.name_as,
        paused=schedule.paused,
        created_at=schedule.created_at,
        next_at=0.0 if schedule.paused else due_time(schedule),
        ran_at=schedule.ran_at,
        said=schedule.said,
        snapshots=len(made),
        problem=schedule.problem,
    )
