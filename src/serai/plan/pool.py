"""How many machines are kept ready beside a snapshot, and which go: pure.

A snapshot that was forked only once gets none. One that is forked again and again gets as many as
were asked of it at one time lately, so that the next burst finds them there, and loses them a minute
after the last fork. All of them together stay within a budget of memory, and go first when the host
has little left: a machine that waits is worth less than any that runs.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

WINDOW = 60.0
"""For how long a fork counts as a sign of more to come, in seconds."""
BURST = 2.0
"""What is asked within so many seconds counts as asked at one time."""
HABIT = 2
"""How many forks within the window make a habit."""
MOST_OF_ONE = 8
TIMES_KEPT = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """When a snapshot was forked: the newest times last, ``TIMES_KEPT`` of them at most."""

    times: tuple[float, ...] = ()

    def with_one_more(self, count: int, now: float) -> "Demand":
        """Return the demand after ``count`` more forks."""
        return Demand(times=(*self.times, *([now] * min(count, TIMES_KEPT)))[-TIMES_KEPT:])

    def is_fresh(self, now: float) -> bool:
        """Tell whether any of it still counts."""
        return any(now - WINDOW < each <= now for each in self.times)

    def wanted(self, now: float) -> int:
        """Return how many should be ready."""
        recent = [each for each in self.times if now - WINDOW < each <= now]
        if len(recent) < HABIT:
            return 0
        burst = max(sum(last - BURST < each <= last for each in recent) for last in recent)
        return min(burst, MOST_OF_ONE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What the pool may take, in bytes: ``limit`` in all, ``each`` for one machine.

    ``available`` is what the host has left now, ``reserve`` what it is to keep.
    """

    limit: int
    each: int
    available: int
    reserve: int

    @property
    def places(self) -> int:
        """How many machines may be there."""
        return self.limit // self.each

    @property
    def is_short(self) -> bool:
        """True when even what is there is too much."""
        return self.available < self.reserve


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What to do next: how many to drop of which snapshot, and of which to make one ("": none)."""

    drop: Mapping[str, int]
    make: str = ""


def plan_turn(
    demands: Mapping[str, Demand], ready: Mapping[str, int], budget: Budget, now: float
) -> Turn:
    """Decide what the pool does next. ``ready`` counts what is there, or being made, by snapshot."""
    if budget.is_short:
        return Turn(drop={snapshot: count for snapshot, count in ready.items() if count})
    wanted = {snapshot: demand.wanted(now) for snapshot, demand in demands.items()}
    wanted = _within(wanted, demands, budget.places)
    over = {snapshot: count - wanted.get(snapshot, 0) for snapshot, count in ready.items()}
    drop = {snapshot: count for snapshot, count in over.items() if count > 0}
    if budget.available - budget.each < budget.reserve:
        return Turn(drop=drop)
    short = {snapshot: count - ready.get(snapshot, 0) for snapshot, count in wanted.items()}
    return Turn(drop=drop, make=_shortest(short, demands))


def _within(
    wanted: Mapping[str, int], demands: Mapping[str, Demand], places: int
) -> dict[str, int]:
    """Cut what is wanted to what there is place for; who was asked for last comes first."""
    found = {}
    for snapshot in _latest_first(wanted, demands):
        found[snapshot] = min(wanted[snapshot], places)
        places -= found[snapshot]
    return found


def _latest_first(snapshots: Iterable[str], demands: Mapping[str, Demand]) -> list[str]:
    return sorted(snapshots, key=lambda each: (-max(demands[each].times, default=0.0), each))


def _shortest(short: Mapping[str, int], demands: Mapping[str, Demand]) -> str:
    lacking = [each for each in _latest_first(short, demands) if short[each] > 0]
    return max(lacking, key=lambda each: short[each], default="")
