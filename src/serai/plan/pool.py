"""How many machines are made ahead of what, and which of them go: pure.

There are two kinds. A ready one runs and waits for a name; only a snapshot can have these, since it
is known what they will have been. Of a started one there is only QEMU, which waits for a moment to
take up: the guests that run have these, and a snapshot that is forked faster than its ready ones
last.

What was forked only once gets none. What is forked again and again gets as many as were asked of it
at one time lately, so that the next burst finds them there, and loses them a minute after the last
fork. All of them together stay within a budget of memory, and go first when the host has little left:
a machine that waits is worth less than any that runs.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum

from serai.plan.snapshot import ROOM_PER_FORK

WINDOW = 60.0
"""For how long a fork counts as a sign of more to come, in seconds."""
BURST = 2.0
"""What is asked within so many seconds counts as asked at one time."""
HABIT = 2
"""How many forks within the window make a habit."""
MOST_OF_ONE = 8
"""How many there are of one kind for one source."""
TIMES_KEPT = 64


class Kind(Enum):
    """How far a machine is that was made ahead."""

    READY = "ready"
    STARTED = "started"


COSTS: Mapping[Kind, int] = {Kind.READY: ROOM_PER_FORK, Kind.STARTED: ROOM_PER_FORK // 2}
"""What one takes, in bytes."""


@dataclass(frozen=True, slots=True)
class Stock:
    """Machines of one kind that are made ahead of one source: a snapshot's id, or a guest's."""

    source: str
    kind: Kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """When a source was forked: the newest times last, ``TIMES_KEPT`` of them at most.

    ``is_settled``: it is known what a fork of it is going to be, as with a snapshot.
    """

    times: tuple[float, ...] = ()
    is_settled: bool = True

    def with_one_more(self, count: int, now: float) -> "Demand":
        """Return the demand after ``count`` more forks."""
        times = (*self.times, *([now] * min(count, TIMES_KEPT)))[-TIMES_KEPT:]
        return Demand(times=times, is_settled=self.is_settled)

    def is_fresh(self, now: float) -> bool:
        """Tell whether any of it still counts."""
        return any(now - WINDOW < each <= now for each in self.times)

    def wanted(self, now: float) -> dict[Kind, int]:
        """Return how many of each kind should be there; the more urgent kind first."""
        recent = [each for each in self.times if now - WINDOW < each <= now]
        if len(recent) < HABIT:
            return {}
        burst = max(sum(last - BURST < each <= last for each in recent) for last in recent)
        ready = min(burst, MOST_OF_ONE) if self.is_settled else 0
        return {Kind.READY: ready, Kind.STARTED: min(burst - ready, MOST_OF_ONE)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What the pool may take, in bytes: ``limit`` in all.

    ``available`` is what the host has left now, ``reserve`` what it is to keep.
    """

    limit: int
    available: int
    reserve: int

    @property
    def is_short(self) -> bool:
        """True when even what is there is too much."""
        return self.available < self.reserve

    def allows(self, kind: Kind) -> bool:
        """Tell whether the host has memory left for one more."""
        return self.available - COSTS[kind] >= self.reserve


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What to do next: how many to drop of which stock, and of which to make one (None: of none)."""

    drop: Mapping[Stock, int]
    make: Stock | None = None


def plan_turn(
    demands: Mapping[str, Demand], there: Mapping[Stock, int], budget: Budget, now: float
) -> Turn:
    """Decide what the pool does next. ``there`` counts what is there, or being made."""
    if budget.is_short:
        return Turn(drop={stock: count for stock, count in there.items() if count})
    wanted = _within(demands, budget.limit, now)
    over = {stock: count - wanted.get(stock, 0) for stock, count in there.items()}
    drop = {stock: count for stock, count in over.items() if count > 0}
    short = {stock: count - there.get(stock, 0) for stock, count in wanted.items()}
    lacking = [stock for stock in wanted if short[stock] > 0 and budget.allows(stock.kind)]
    return Turn(drop=drop, make=_most_urgent(lacking, short))


def _within(demands: Mapping[str, Demand], limit: int, now: float) -> dict[Stock, int]:
    """Return what is wanted, as far as there is place; what was asked for last comes first."""
    found = {}
    for source in _latest_first(demands):
        for kind, count in demands[source].wanted(now).items():
            found[Stock(source, kind)] = min(count, limit // COSTS[kind])
            limit -= found[Stock(source, kind)] * COSTS[kind]
    return found


def _latest_first(demands: Mapping[str, Demand]) -> list[str]:
    return sorted(demands, key=lambda each: (-max(demands[each].times, default=0.0), each))


def _most_urgent(lacking: Iterable[Stock], short: Mapping[Stock, int]) -> Stock | None:
    """Return what lacks most of what saves most."""
    return max(lacking, key=lambda each: (each.kind is Kind.READY, short[each]), default=None)
