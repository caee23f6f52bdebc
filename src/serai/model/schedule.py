"""Schedules: when snapshots of a guest are made by themselves, how they are called, which stay.

    When            how often, and at which moment of the period
    Keep            how many of the snapshots that it made stay, by tier
    ScheduleRecord  what the database keeps of a schedule
    Schedule        what everybody is shown of it
    Judgement       what its rules say of one snapshot

All times are UTC: there is no summer time to be doubled or left out. When one is due is
``plan.schedule``, which snapshots stay ``plan.retention``.
"""

from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

from serai.errors import Problem

NAME_AS = "{schedule}-{time}"
MOST_KEPT = 10_000


class Every(StrEnum):
    """How often."""

    HOURLY = "hourly"
    DAILY = "daily"
    WEEKLY = "weekly"
    MONTHLY = "monthly"
    INTERVAL = (
        "interval"  # every so many seconds, counted from the epoch: 15m is :00, :15, :30, :45
    )


class Rule(StrEnum):
    """Why a snapshot of a schedule stays, or goes."""

    LAST = "last"
    HOURLY = "hourly"
    DAILY = "daily"
    WEEKLY = "weekly"
    MONTHLY = "monthly"
    ALL = "all"  # the schedule says nothing of what is kept, so all is
    AHEAD = "ahead"  # it was made while the clock was ahead: not counted until its time has come
    NONE = "none"  # no rule keeps it: it goes


class When(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When a snapshot is made: ``every`` hour, day, week or month (UTC), ``at`` seconds after it began.

    A week begins on Monday, a month on the 1st. Only for ``interval``: ``interval`` seconds.
    """

    every: Every
    at: float = 0.0
    interval: float = 0.0


Count = Annotated[int, Meta(ge=0, le=MOST_KEPT)]


class Keep(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many snapshots stay: the ``last`` ones, and the newest of so many hours, days, weeks, months.

    The rules are asked in this order; what one keeps, the next ones don't count. Only hours, days, …
    that have a snapshot count. With 0 everywhere all of them stay.
    """

    last: Count = 0
    hourly: Count = 0
    daily: Count = 0
    weekly: Count = 0
    monthly: Count = 0


class ScheduleChange(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to change of a schedule; what is not named stays as it is."""

    when: When | msgspec.UnsetType = msgspec.UNSET
    keep: Keep | msgspec.UnsetType = msgspec.UNSET
    memory: bool | msgspec.UnsetType = msgspec.UNSET
    quiesce: bool | msgspec.UnsetType = msgspec.UNSET
    name_as: str | msgspec.UnsetType = msgspec.UNSET
    paused: bool | msgspec.UnsetType = msgspec.UNSET


class ScheduleRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What the database keeps. ``name`` is unique in its guest.

    ``since`` is from when the next due time is counted: when it was made, resumed, or given another
    ``when``, and after that the end of its last turn. ``ran_at`` is that end too (0: never), ``said``
    what the turn said, ``problem`` why it made no snapshot, if it should have.
    """

    id: str
    name: str
    guest_id: str
    created_at: float
    since: float
    when: When
    keep: Keep = Keep()
    memory: bool = True
    quiesce: bool = False
    name_as: str = NAME_AS
    paused: bool = False
    ran_at: float = 0.0
    said: str = ""
    problem: Problem | None = None


class Schedule(msgspec.Struct, frozen=True, kw_only=True):
    """What is shown of a schedule: REST, CLI and SDK all give this.

    ``next_at`` is when it is due (0: it is paused), ``snapshots`` how many of those that it made are
    there. ``said`` is what its last turn, which ended at ``ran_at`` (0: never), said.
    """

    name: str
    id: str
    guest: str
    guest_id: str
    when: When
    keep: Keep
    memory: bool
    quiesce: bool
    name_as: str
    paused: bool
    created_at: float
    next_at: float
    ran_at: float
    said: str
    snapshots: int
    problem: Problem | None = None


class Judgement(msgspec.Struct, frozen=True, kw_only=True):
    """What the rules of a schedule say of a snapshot that it made: whether it stays, and by which."""

    snapshot: str
    id: str
    created_at: float
    stays: bool
    rule: Rule
