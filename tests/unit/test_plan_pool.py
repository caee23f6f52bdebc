"""The pool: kept for a habit, within a budget, gone when nobody asks any more."""

from hypothesis import given
from hypothesis import strategies as st

from serai.plan.pool import BURST, MOST_OF_ONE, WINDOW, Budget, Demand, plan_turn

EACH = 48


def budget(places: int = 10, available: int = 10_000, reserve: int = 1000) -> Budget:
    return Budget(limit=places * EACH, each=EACH, available=available, reserve=reserve)


def asked(*times: float) -> Demand:
    return Demand(times=times)


def test_one_fork_is_no_habit():
    assert asked(100.0).wanted(100.0) == 0
    assert asked(100.0, 130.0).wanted(130.0) == 1


def test_as_many_as_were_asked_at_one_time():
    now = 100.0
    assert Demand().with_one_more(5, now).wanted(now) == 5
    assert asked(90.0, 95.0, 95.5, 96.0).wanted(now) == 3
    assert Demand().with_one_more(50, now).wanted(now) == MOST_OF_ONE


def test_a_minute_later_none():
    demand = Demand().with_one_more(5, 100.0)
    assert demand.wanted(100.0 + WINDOW - 1) == 5
    assert demand.wanted(100.0 + WINDOW) == 0
    turn = plan_turn({"a": demand}, {"a": 5}, budget(), 100.0 + WINDOW)
    assert turn.drop == {"a": 5} and turn.make == ""


def test_what_nobody_asked_for_goes():
    assert plan_turn({}, {"gone": 2}, budget(), 0.0).drop == {"gone": 2}


def test_a_host_with_little_memory_gets_all_of_it_back():
    demand = Demand().with_one_more(3, 100.0)
    turn = plan_turn({"a": demand}, {"a": 3, "b": 1}, budget(available=999), 100.0)
    assert turn.drop == {"a": 3, "b": 1} and turn.make == ""
    assert plan_turn({"a": demand}, {}, budget(available=1000 + EACH - 1), 100.0).make == ""
    assert plan_turn({"a": demand}, {}, budget(available=1000 + EACH), 100.0).make == "a"


def test_who_was_asked_for_last_comes_first():
    demands = {"old": Demand().with_one_more(4, 100.0), "new": Demand().with_one_more(4, 101.0)}
    turn = plan_turn(demands, {"old": 4}, budget(places=5), 102.0)
    assert turn.drop == {"old": 3} and turn.make == "new"


SNAPSHOTS = st.sampled_from("abc")
DEMANDS = st.dictionaries(
    SNAPSHOTS,
    st.lists(st.floats(0, 200), max_size=20).map(lambda each: Demand(times=tuple(sorted(each)))),
)


@given(DEMANDS, st.integers(0, 12), st.floats(0, 300), st.integers(0, 3000))
def test_it_settles_within_its_budget(demands, places, now, available):
    ready: dict[str, int] = {}
    means = budget(places=places, available=available)
    for _ in range(3 * MOST_OF_ONE + 1):
        turn = plan_turn(demands, ready, means, now)
        for snapshot, count in turn.drop.items():
            assert 0 < count <= ready[snapshot]
            ready[snapshot] -= count
        if turn.make:
            assert demands[turn.make].wanted(now) > ready.get(turn.make, 0)
            ready[turn.make] = ready.get(turn.make, 0) + 1
        assert sum(ready.values()) <= places
    last = plan_turn(demands, ready, means, now)
    assert last.make == "" and not last.drop
    if available < means.reserve:
        assert not any(ready.values())


@given(st.lists(st.floats(0, 100), min_size=2, max_size=40))
def test_never_more_than_were_asked_for(times):
    demand = Demand(times=tuple(sorted(times)))
    now = max(times)
    assert demand.wanted(now) <= min(len(times), MOST_OF_ONE)
    assert demand.wanted(now + WINDOW + BURST) == 0
