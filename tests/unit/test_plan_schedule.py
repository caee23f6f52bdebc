"""When schedules are due, whatever daemon and clock do, and what their snapshots are called."""

from datetime import UTC, datetime

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serai.errors import Code, Invalid
from serai.model.schedule import Every, Keep, ScheduleChange, ScheduleRecord, When
from serai.plan.schedule import (
    DAY,
    HOUR,
    LENGTHS,
    WEEK,
    changed,
    check_name_as,
    check_when,
    due_time,
    next_due,
    pick_schedule_name,
    settled,
    snapshot_name,
    taken_up,
)
from serai.units import format_at, parse_at

NOW = 1_700_000_000.0  # 2023-11-14 22:13:20, a Tuesday
PERIODIC = [each for each in Every if each is not Every.INTERVAL]

moments = st.floats(0, 4e9)
whens = st.one_of(
    st.sampled_from(PERIODIC).flatmap(
        lambda every: st.builds(
            When, every=st.just(every), at=st.integers(0, int(LENGTHS[every]) - 1).map(float)
        )
    ),
    st.builds(When, every=st.just(Every.INTERVAL), interval=st.integers(1, 10**7).map(float)),
)


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def said(moment: float) -> str:
    return f"{datetime.fromtimestamp(moment, UTC):%Y-%m-%d %H:%M:%S}"


def a_schedule(when: When, since: float = NOW, **changes: object) -> ScheduleRecord:
    made = ScheduleRecord(id="s", name="x", guest_id="g", created_at=NOW, since=since, when=when)
    return msgspec.structs.replace(made, **changes)


# -- when ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("when", "after", "due"),
    [
        (When(every="hourly"), "2026-02-28 22:59:59", "2026-02-28 23:00:00"),
        (When(every="hourly", at=900), "2026-02-28 23:15:00", "2026-03-01 00:15:00"),
        (When(every="daily", at=12600), "2026-02-28 03:29:59", "2026-02-28 03:30:00"),
        (When(every="daily", at=12600), "2026-02-28 03:30:00", "2026-03-01 03:30:00"),
        (When(every="daily", at=12600), "2024-02-28 03:30:00", "2024-02-29 03:30:00"),
        (When(every="weekly"), "2026-11-27 00:00:00", "2026-11-30 00:00:00"),
        (When(every="weekly", at=6 * DAY), "2026-11-27 00:00:00", "2026-11-29 00:00:00"),
        (When(every="monthly"), "2026-12-31 23:59:59", "2027-01-01 00:00:00"),
        (When(every="monthly", at=27 * DAY), "2026-01-31 00:00:00", "2026-02-28 00:00:00"),
        (When(every="monthly", at=27 * DAY), "2026-02-28 00:00:00", "2026-03-28 00:00:00"),
        (When(every="interval", interval=900), "2026-11-27 18:31:00", "2026-11-27 18:45:00"),
        (When(every="interval", interval=900), "2026-11-27 18:45:00", "2026-11-27 19:00:00"),
        (When(every="daily", at=9000), "2026-03-29 01:59:00", "2026-03-29 02:30:00"),  # no summer time
    ],
)  # fmt: skip
def test_next_due(when: When, after: str, due: str) -> None:
    when = msgspec.structs.replace(when, every=Every(when.every))
    assert said(next_due(when, at(after))) == due


@given(whens, moments)
def test_the_next_due_time_is_later_and_there_is_none_between(when: When, after: float):
    due = next_due(when, after)
    assert (
        after
        < due
        <= after + (31 * DAY if when.every is Every.MONTHLY else max(WEEK, when.interval))
    )
    assert next_due(when, (after + due) / 2) in (due, next_due(when, due))
    assert next_due(when, max(after, due - 1)) == due
    assert next_due(when, due) > due


@given(whens, st.lists(st.floats(0, 40 * DAY), max_size=30))
def test_what_was_missed_is_caught_up_once(when: When, pauses: list[float]):
    """A daemon that looks now and then runs at most once a look, and never twice for one time."""
    schedule, now, ran = a_schedule(when), NOW, []
    for pause in pauses:
        now += pause
        before = schedule.since
        if due_time(schedule) <= now:
            ran.append(now)
            schedule = msgspec.structs.replace(schedule, since=now)
            assert due_time(schedule) > now
        elif next_due(when, before) <= now:
            raise AssertionError("a due time has passed and nothing was done")
    assert len(ran) == len(set(ran))


@given(whens, st.floats(-20 * 365 * DAY, 20 * 365 * DAY), st.floats(0, 0.9))
def test_a_clock_that_jumps_keeps_nobody_waiting(when: When, jump: float, little: float):
    """However far it jumps, at most two more due times pass before the schedule is due again."""
    schedule, now = a_schedule(when), NOW + jump
    schedule = taken_up(schedule, [NOW, NOW + 1], now)
    due = due_time(schedule)
    assert due <= next_due(when, next_due(when, next_due(when, now)))
    assert settled(schedule, due - 0.001) == schedule  # or it would be put off for ever
    back = NOW - little * min(LENGTHS.get(when.every, when.interval), 365 * DAY)
    assert settled(a_schedule(when), back) == a_schedule(when)
    assert due_time(a_schedule(when)) == next_due(when, NOW)


def test_a_snapshot_that_the_schedule_does_not_know_of_counts() -> None:
    schedule = a_schedule(When(every=Every.HOURLY), since=at("2026-11-27 03:10:00"))
    now = at("2026-11-27 04:01:00")
    assert due_time(schedule) <= now
    known = taken_up(schedule, [at("2026-11-27 04:00:05"), at("2026-11-27 02:00:00")], now)
    assert said(due_time(known)) == "2026-11-27 05:00:00"
    wrong_year = taken_up(schedule, [at("2030-01-01 00:00:00")], now)
    assert due_time(wrong_year) <= now


@pytest.mark.parametrize(
    "when",
    [
        When(every=Every.INTERVAL),
        When(every=Every.INTERVAL, interval=59),
        When(every=Every.INTERVAL, interval=-60),
        When(every=Every.INTERVAL, interval=400 * DAY),
        When(every=Every.INTERVAL, interval=float("nan")),
        When(every=Every.INTERVAL, interval=60, at=1),
        When(every=Every.DAILY, interval=60),
        When(every=Every.DAILY, at=-1),
        When(every=Every.DAILY, at=DAY),
        When(every=Every.HOURLY, at=HOUR),
        When(every=Every.MONTHLY, at=28 * DAY),
        When(every=Every.WEEKLY, at=float("inf")),
        When(every=Every.WEEKLY, at=float("nan")),
    ],
)
def test_what_never_comes_or_too_often_is_refused(when: When) -> None:
    with pytest.raises(Invalid) as caught:
        check_when(when, 60.0)
    assert caught.value.code is Code.VALUE_INVALID


@given(whens)
def test_all_that_is_accepted_comes(when: When):
    check_when(when, 1.0)
    assert next_due(when, NOW) > NOW


# -- times as people write them --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("every", "text", "seconds", "printed"),
    [
        ("hourly", ":15", 900, ":15"),
        ("hourly", "05", 300, ":05"),
        ("daily", "03:30", 12600, "03:30 UTC"),
        ("daily", "3:30", 12600, "03:30 UTC"),
        ("weekly", "03:30", 12600, "mon 03:30 UTC"),
        ("weekly", "Sun 23:59", 604740, "sun 23:59 UTC"),
        ("monthly", "00:00", 0, "1 00:00 UTC"),
        ("monthly", "28 12:00", 27 * 86400 + 43200, "28 12:00 UTC"),
    ],
)
def test_times_are_read_and_printed(every: str, text: str, seconds: int, printed: str) -> None:
    assert parse_at(every, text) == seconds
    assert format_at(every, seconds) == printed


@pytest.mark.parametrize(
    ("every", "text"),
    [
        ("hourly", "03:30"), ("hourly", ":60"), ("hourly", "5"), ("daily", ":30"), ("daily", "24:00"),
        ("daily", "sun 03:30"), ("weekly", "15 03:30"), ("weekly", "son 03:30"), ("monthly", "29 00:00"),
        ("monthly", "0 00:00"), ("monthly", "mon 00:00"), ("interval", "03:30"), ("daily", ""),
        ("daily", "3.30"), ("daily", "03:30" * 20), ("daily", "०३:३०"),
    ],
)  # fmt: skip
def test_times_that_are_none(every: str, text: str) -> None:
    with pytest.raises(Invalid) as caught:
        parse_at(every, text)
    assert caught.value.hint


# -- names -----------------------------------------------------------------------------------------


def test_names() -> None:
    assert snapshot_name("{schedule}-{time}", "nightly", NOW, ()) == "nightly-20231114-221320"
    assert snapshot_name("{date}", "nightly", NOW, ()) == "20231114"
    assert snapshot_name("fixed", "nightly", NOW, {"fixed", "fixed-2"}) == "fixed-3"
    assert pick_schedule_name(When(every=Every.DAILY), {"daily", "daily-2"}) == "daily-3"


@pytest.mark.parametrize(
    ("name_as", "code"),
    [
        ("{guest}", Code.VALUE_INVALID),
        ("{schedule.__class__}", Code.VALUE_INVALID),
        ("{}", Code.VALUE_INVALID),
        ("{time", Code.NAME_INVALID),
        ("{{time}}", Code.NAME_INVALID),
        ("", Code.NAME_INVALID),
        ("A b", Code.NAME_INVALID),
        ("a" * 60, Code.NAME_INVALID),
        ("{time}" * 5, Code.NAME_INVALID),
    ],
)
def test_templates_that_give_no_name(name_as: str, code: Code) -> None:
    with pytest.raises(Invalid) as caught:
        check_name_as(name_as, "nightly", NOW)
    assert (caught.value.code, bool(caught.value.hint)) == (code, True)


# -- changing --------------------------------------------------------------------------------------


def test_a_change_is_only_of_what_is_named_and_does_not_catch_up() -> None:
    schedule = a_schedule(When(every=Every.DAILY), since=NOW - 30 * DAY)
    kept = changed(schedule, ScheduleChange(keep=Keep(daily=7)), NOW)
    assert (kept.keep, kept.when, kept.since) == (Keep(daily=7), schedule.when, schedule.since)
    assert changed(schedule, ScheduleChange(paused=True), NOW).paused
    resumed = changed(
        a_schedule(schedule.when, since=0, paused=True), ScheduleChange(paused=False), NOW
    )
    assert due_time(resumed) > NOW
    hourly = changed(schedule, ScheduleChange(when=When(every=Every.HOURLY)), NOW)
    assert due_time(hourly) == next_due(hourly.when, NOW)
    assert changed(schedule, ScheduleChange(), NOW) is schedule
