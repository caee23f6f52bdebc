"""Which snapshots of a schedule stay: promises for any moments and any rules, and known cases."""

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from serai.model.guest import GuestRecord, GuestSpec
from serai.model.schedule import Keep, Rule
from serai.model.snapshot import SnapshotRecord, SnapshotState
from serai.plan.retention import TIERS, judge, made_by, to_keep
from serai.plan.schedule import DAY, HOUR, period_begin

NOW = 1_700_000_000.0
COUNTS = ("last", "hourly", "daily", "weekly", "monthly")

moments = st.dictionaries(
    st.uuids().map(str),
    st.one_of(
        st.floats(NOW - 400 * DAY, NOW),
        st.integers(0, 200).map(lambda hours: NOW - hours * HOUR),  # several in one period
    ),
    max_size=60,
)
keeps = st.builds(Keep, **dict.fromkeys(COUNTS, st.integers(0, 8)))


def total(keep: Keep) -> int:
    return sum(getattr(keep, name) for name in COUNTS)


@given(moments, keeps)
def test_the_newest_stays_and_never_more_than_the_counts(found: dict[str, float], keep: Keep):
    kept = to_keep(found, keep, NOW)
    assert set(kept) <= set(found)
    if not total(keep):
        assert kept == dict.fromkeys(found, Rule.ALL)
        return
    assert len(kept) <= total(keep)
    if found:
        assert max(found, key=lambda each: (found[each], each)) in kept
    for name in COUNTS:
        assert sum(rule == name for rule in kept.values()) <= getattr(keep, name)


@given(moments, keeps)
def test_what_a_rule_keeps_is_the_newest_of_its_period(found: dict[str, float], keep: Keep):
    kept = to_keep(found, keep, NOW)
    for rule, every in TIERS:
        for each in (each for each, by in kept.items() if by is rule):
            of_period = [
                at for at in found.values()
                if period_begin(every, at) == period_begin(every, found[each])
            ]  # fmt: skip
            assert found[each] == max(of_period)


@given(moments, keeps)
def test_nothing_goes_while_a_rule_has_a_place_for_it(found: dict[str, float], keep: Keep):
    """What goes is not the newest of a period, or the rule has given all its places to newer ones."""
    kept = to_keep(found, keep, NOW)
    for gone in set(found) - set(kept):
        for rule, every in TIERS:
            period = period_begin(every, found[gone])
            newest = max(at for at in found.values() if period_begin(every, at) == period)
            places = sum(by is rule for by in kept.values())
            assert newest > found[gone] or places == getattr(keep, rule) or (
                any(at == found[gone] for each, at in found.items() if each != gone)
            )  # fmt: skip


@given(moments, keeps, keeps)
def test_larger_counts_never_let_go_of_what_smaller_ones_kept(
    found: dict[str, float], keep: Keep, more: Keep
):
    if not total(keep):
        return
    larger = Keep(**{name: getattr(keep, name) + getattr(more, name) for name in COUNTS})
    assert set(to_keep(found, keep, NOW)) <= set(to_keep(found, larger, NOW))


@given(moments, keeps)
def test_it_does_not_matter_how_often_it_is_asked(found: dict[str, float], keep: Keep):
    """Deleting after each snapshot leaves what deleting once at the end would."""
    there: dict[str, float] = {}
    for each, at in sorted(found.items(), key=lambda item: (item[1], item[0])):
        there[each] = at
        kept = to_keep(there, keep, at)
        there = {each: at for each, at in there.items() if each in kept}
    assert set(there) == set(to_keep(found, keep, NOW))


@given(moments, moments, keeps)
def test_a_clock_that_was_ahead_pushes_nothing_out(
    found: dict[str, float], wrong: dict[str, float], keep: Keep
):
    ahead = {each: at + 1000 * DAY for each, at in wrong.items()}
    kept = to_keep({**found, **ahead}, keep, NOW)
    assert {each for each, rule in kept.items() if rule is Rule.AHEAD} == set(ahead)
    found = {each: at for each, at in found.items() if each not in ahead}
    assert set(kept) - set(ahead) == set(to_keep(found, keep, NOW))


def test_a_year_of_hourly_snapshots() -> None:
    found = {f"{hour:05}": NOW - hour * HOUR for hour in range(24 * 365)}
    kept = to_keep(found, Keep(last=2, hourly=24, daily=7, weekly=4, monthly=6), NOW)
    by_rule = {name: sum(rule == name for rule in kept.values()) for name in COUNTS}
    assert by_rule == {"last": 2, "hourly": 24, "daily": 7, "weekly": 4, "monthly": 6}
    assert list(kept)[:26] == [f"{hour:05}" for hour in range(26)]
    oldest = max(NOW - found[each] for each in kept)
    assert 150 * DAY < oldest < 230 * DAY


# -- whose they are --------------------------------------------------------------------------------


def a_snapshot(number: int, schedule_id: str = "s", **changes: object) -> SnapshotRecord:
    guest = GuestRecord(
        id="g", number=1, version=1, created_at=0.0, spec=GuestSpec(image="tiny", name="web1"),
        image_digest="", machine_type="", mac="", genid="",
    )  # fmt: skip
    made = SnapshotRecord(
        id=f"{number:04}", name=f"n{number}", guest_id="g", guest=guest, schedule="daily",
        created_at=NOW - number * DAY, state=SnapshotState.READY, schedule_id=schedule_id,
    )  # fmt: skip
    return msgspec.structs.replace(made, **changes)


@given(st.lists(st.sampled_from(["s", "", "t"]), max_size=30), keeps)
def test_only_what_the_schedule_made_is_judged(owners: list[str], keep: Keep):
    """A user's own and those of another schedule, also one of the same name, are not looked at."""
    all_of = [a_snapshot(number, owner) for number, owner in enumerate(owners)]
    own = {each.id for each in all_of if each.schedule_id == "s"}
    assert {each.id for each in judge(made_by(all_of, "s"), keep, NOW)} == own
    assert made_by(all_of, "") == []


def test_what_is_broken_or_coming_takes_no_place_and_is_left_alone() -> None:
    found = [
        a_snapshot(0, state=SnapshotState.CREATING),
        a_snapshot(1, state=SnapshotState.BROKEN),
        a_snapshot(2),
        a_snapshot(3),
    ]
    told = judge(made_by(found, "s"), Keep(last=1), NOW)
    assert [(each.snapshot, each.stays, each.rule) for each in told] == [
        ("n2", True, Rule.LAST),
        ("n3", False, Rule.NONE),
    ]
