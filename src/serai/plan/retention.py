"""Which snapshots of a schedule stay: pure.

As borg prunes: the rules are asked from the finest to the coarsest. Each keeps the newest snapshot of
each of its periods, so many periods as it says, beginning with the newest that has one; what an
earlier rule keeps already it does not count. Therefore

* the newest snapshot always stays,
* at most the sum of the counts stays,
* a larger count never lets go of what a smaller one kept,
* what goes would not be kept later either, so it does not matter how often this is asked.
"""

from collections.abc import Iterable, Mapping
from operator import attrgetter

from serai.model.schedule import Every, Judgement, Keep, Rule
from serai.model.snapshot import SnapshotRecord, SnapshotState
from serai.plan.schedule import period_begin

Moments = Mapping[str, float]
"""When each snapshot was made, by its id."""

TIERS: tuple[tuple[Rule, Every], ...] = (
    (Rule.HOURLY, Every.HOURLY),
    (Rule.DAILY, Every.DAILY),
    (Rule.WEEKLY, Every.WEEKLY),
    (Rule.MONTHLY, Every.MONTHLY),
)


def to_keep(moments: Moments, keep: Keep, now: float) -> dict[str, Rule]:
    """Return the ids of those that stay, each with the first rule that keeps it; all others go.

    One that was made later than ``now``, while the clock was ahead, stays and takes no place: else
    it would push out, as the newest, all that is made until its time has come.
    """
    kept = {each: Rule.AHEAD for each, at in moments.items() if at > now}
    counted = [each for each in moments if each not in kept]
    counted.sort(key=lambda each: (moments[each], each), reverse=True)
    if keep == Keep():
        return kept | dict.fromkeys(counted, Rule.ALL)
    kept |= dict.fromkeys(counted[: keep.last], Rule.LAST)
    for rule, every in TIERS:
        newest = _newest_of_each(counted, moments, every)
        waiting = [each for each in newest if each not in kept]
        kept |= dict.fromkeys(waiting[: getattr(keep, rule)], rule)
    return kept


def _newest_of_each(counted: Iterable[str], moments: Moments, every: Every) -> list[str]:
    """Return the first, which is the newest, of each period."""
    newest: dict[float, str] = {}
    for each in counted:
        newest.setdefault(period_begin(every, moments[each]), each)
    return list(newest.values())


def made_by(snapshots: Iterable[SnapshotRecord], schedule_id: str) -> list[SnapshotRecord]:
    """Return those that this schedule made and that can be used, the oldest first.

    Nobody else's are looked at: not a user's own, not those of another schedule, also if it had the
    same name. One that is broken is no snapshot to rely on, and so takes no place of one that is.
    """
    own = [
        each
        for each in snapshots
        if schedule_id and each.schedule_id == schedule_id and each.state is SnapshotState.READY
    ]
    return sorted(own, key=lambda each: (each.created_at, each.id))


def judge(own: Iterable[SnapshotRecord], keep: Keep, now: float) -> list[Judgement]:
    """Return what the rules say of each of a schedule's snapshots, the newest first."""
    own = list(own)
    kept = to_keep({each.id: each.created_at for each in own}, keep, now)
    found = [
        Judgement(
            snapshot=each.name,
            id=each.id,
            created_at=each.created_at,
            stays=each.id in kept,
            rule=kept.get(each.id, Rule.NONE),
        )
        for each in own
    ]
    return sorted(found, key=attrgetter("created_at", "id"), reverse=True)
