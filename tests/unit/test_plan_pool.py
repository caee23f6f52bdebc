"""The pool: kept for a habit, within a budget, gone when nobody asks any more."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from serai.plan.pool import (
    BURST,
    COSTS,
    MOST_OF_ONE,
    WINDOW,
    Budget,
    Demand,
    Kind,
    Stock,
    plan_turn,
)

EACH = COSTS[Kind.READY]


def budget(places: int = 10, available: int = 10_000 * EACH, reserve: int = EACH) -> Budget:
    return Budget(limit=places * EACH, available=available, reserve=reserve)


def asked(*times: float) -> Demand:
    return Demand(times=times)


def ready(source: str) -> Stock:
    return Stock(source, Kind.READY)


def started(source: str) -> Stock:
    return Stock(source, Kind.STARTED)


def test_one_fork_is_no_habit():
    assert asked(100.0).wanted(100.0) == {}
    assert asked(100.0, 130.0).wanted(130.0) == {Kind.READY: 1, Kind.STARTED: 0}


def test_as_many_as_were_asked_at_one_time():
    now = 100.0
    assert Demand().with_one_more(5, now).wanted(now) == {Kind.READY: 5, Kind.STARTED: 0}
    assert asked(90.0, 95.0, 95.5, 96.0).wanted(now)[Kind.READY] == 3


def test_what_the_ready_ones_do_not_last_for_is_started():
    now = 100.0
    wanted = Demand().with_one_more(MOST_OF_ONE + 3, now).wanted(now)
    assert wanted == {Kind.READY: MOST_OF_ONE, Kind.STARTED: 3}
    wanted = Demand().with_one_more(50, now).wanted(now)
    assert wanted == {Kind.READY: MOST_OF_ONE, Kind.STARTED: MOST_OF_ONE}


def test_of_a_guest_whose_moment_is_to_come_they_are_started_only():
    demand = Demand(is_settled=False).with_one_more(3, 100.0)
    assert demand.wanted(100.0) == {Kind.READY: 0, Kind.STARTED: 3}
    assert plan_turn({"a": demand}, {}, budget(), 100.0).make == started("a")
    assert plan_turn({"a": demand}, {ready("a"): 1}, budget(), 100.0).drop == {ready("a"): 1}


def test_a_minute_later_none():
    demand = Demand().with_one_more(5, 100.0)
    assert demand.wanted(100.0 + WINDOW - 1)[Kind.READY] == 5
    assert demand.wanted(100.0 + WINDOW) == {}
    turn = plan_turn({"a": demand}, {ready("a"): 5}, budget(), 100.0 + WINDOW)
    assert turn.drop == {ready("a"): 5} and turn.make is None


def test_what_nobody_asked_for_goes():
    there = {ready("gone"): 2, started("gone"): 1}
    assert plan_turn({}, there, budget(), 0.0).drop == there


def test_a_host_with_little_memory_gets_all_of_it_back():
    demand = Demand().with_one_more(3, 100.0)
    there = {ready("a"): 3, started("b"): 1}
    turn = plan_turn({"a": demand}, there, budget(available=EACH - 1), 100.0)
    assert turn.drop == there and turn.make is None
    assert plan_turn({"a": demand}, {}, budget(available=2 * EACH - 1), 100.0).make is None
    assert plan_turn({"a": demand}, {}, budget(available=2 * EACH), 100.0).make == ready("a")


def test_who_was_asked_for_last_comes_first():
    demands = {"old": Demand().with_one_more(4, 100.0), "new": Demand().with_one_more(4, 101.0)}
    turn = plan_turn(demands, {ready("old"): 4}, budget(places=5), 102.0)
    assert turn.drop == {ready("old"): 3} and turn.make == ready("new")


def test_ready_ones_are_made_before_any_is_started():
    demands = {
        "guest": Demand(is_settled=False).with_one_more(8, 101.0),
        "snapshot": Demand().with_one_more(2, 100.0),
    }
    assert plan_turn(demands, {}, budget(), 102.0).make == ready("snapshot")
    assert plan_turn(demands, {ready("snapshot"): 2}, budget(), 102.0).make == started("guest")


SOURCES = st.sampled_from("abc")
DEMANDS = st.dictionaries(
    SOURCES,
    st.builds(
        lambda times, is_settled: Demand(times=tuple(sorted(times)), is_settled=is_settled),
        st.lists(st.floats(0, 200), max_size=20),
        st.booleans(),
    ),
)


@given(DEMANDS, st.integers(0, 24), st.floats(0, 300), st.integers(0, 3))
def test_it_settles_within_its_budget(demands, places, now, available):
    there: Counter[Stock] = Counter()
    means = budget(places=places, available=available * EACH)
    for _ in range(6 * MOST_OF_ONE + 1):
        turn = plan_turn(demands, there, means, now)
        for stock, count in turn.drop.items():
            assert 0 < count <= there[stock]
            there[stock] -= count
        if turn.make:
            assert demands[turn.make.source].wanted(now)[turn.make.kind] > there[turn.make]
            there[turn.make] += 1
        assert sum(COSTS[stock.kind] * count for stock, count in there.items()) <= means.limit
    last = plan_turn(demands, there, means, now)
    assert last.make is None and not last.drop
    if available < 1:
        assert not any(there.values())


@given(st.lists(st.floats(0, 100), min_size=2, max_size=40), st.booleans())
def test_never_more_than_were_asked_for(times, is_settled):
    demand = Demand(times=tuple(sorted(times)), is_settled=is_settled)
    now = max(times)
    wanted = demand.wanted(now)
    assert sum(wanted.values()) <= len(times)
    assert all(count <= MOST_OF_ONE for count in wanted.values())
    assert demand.wanted(now + WINDOW + BURST) == {}
