"""The restart policy: who is started again, and when."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serai.model.guest import ExitReason, RestartPolicy
from serai.plan.restart import (
    FAILURES,
    FIRST_WAIT,
    LONGEST_WAIT,
    STABLE_AFTER,
    Leave,
    Restart,
    decide_restart,
)


@pytest.mark.parametrize("policy", RestartPolicy)
@pytest.mark.parametrize("reason", ExitReason)
def test_every_pair(policy, reason):
    asked = reason in (ExitReason.REQUESTED, ExitReason.NEVER_STARTED, ExitReason.START_FAILED)
    always = policy is RestartPolicy.ALWAYS
    failed = policy is RestartPolicy.ON_FAILURE and reason in FAILURES
    decision = decide_restart(policy, reason, (), 0.0)
    assert isinstance(decision, Restart) == (not asked and (always or failed))


def test_the_wait_doubles_up_to_a_limit():
    restarts: tuple[float, ...] = ()
    now, waits = 0.0, []
    for _ in range(12):
        decision = decide_restart(RestartPolicy.ALWAYS, ExitReason.CRASHED, restarts, now)
        assert isinstance(decision, Restart)
        waits.append(decision.after)
        restarts = (*restarts, now)
        now += decision.after
    assert waits[:4] == [1.0, 2.0, 4.0, 8.0]
    assert waits[-1] == LONGEST_WAIT


def test_a_stable_run_forgives():
    restarts = (0.0, 1.0, 3.0)
    later = 3.0 + STABLE_AFTER + LONGEST_WAIT
    decision = decide_restart(RestartPolicy.ALWAYS, ExitReason.CRASHED, restarts, later)
    assert decision == Restart(FIRST_WAIT)


def test_a_wait_is_no_run():
    """After five minutes of waiting, five minutes of running are no stable run."""
    restarts, now = falls(12, lasting=0.0)
    assert restarts[-1] - restarts[-2] == LONGEST_WAIT
    for ran, expected in ((STABLE_AFTER - 1, LONGEST_WAIT), (STABLE_AFTER, FIRST_WAIT)):
        decision = decide_restart(RestartPolicy.ALWAYS, ExitReason.CRASHED, restarts, now + ran)
        assert decision == Restart(expected)


def falls(count: int, lasting: float) -> tuple[tuple[float, ...], float]:
    """Restart a guest ``count`` times that runs ``lasting`` seconds; return when, and its start."""
    restarts: tuple[float, ...] = ()
    begun = 0.0
    for _ in range(count):
        now = begun + lasting
        decision = decide_restart(RestartPolicy.ALWAYS, ExitReason.CRASHED, restarts, now)
        assert isinstance(decision, Restart)
        restarts, begun = (*restarts, now), now + decision.after
    return restarts, begun


@given(st.integers(1, 60), st.floats(0, STABLE_AFTER - 1))
def test_whoever_keeps_falling_waits_longer_and_longer(count, lasting):
    restarts, begun = falls(count, lasting)
    waits = [later - at - lasting for at, later in pairwise((*restarts, begun + lasting))]
    expected = [min(FIRST_WAIT * 2.0**n, LONGEST_WAIT) for n in range(count)]
    assert waits == pytest.approx(expected)


@given(st.integers(1, 20), st.floats(STABLE_AFTER, 1e6))
def test_whoever_runs_stably_is_started_again_soon(count, lasting):
    restarts, begun = falls(count, lasting)
    assert begun - restarts[-1] == pytest.approx(FIRST_WAIT)


@given(st.lists(st.floats(-1e9, 1e9), max_size=20), st.floats(-1e9, 1e9))
def test_a_clock_that_jumps_breaks_nothing(times, now):
    decision = decide_restart(RestartPolicy.ALWAYS, ExitReason.CRASHED, tuple(times), now)
    assert isinstance(decision, Restart)
    assert FIRST_WAIT <= decision.after <= LONGEST_WAIT


def test_a_host_that_comes_back_starts_its_guests_at_once():
    decision = decide_restart(
        RestartPolicy.ON_FAILURE, ExitReason.HOST_RESTARTED, (0.0, 0.1, 0.2), 0.3
    )
    assert decision == Restart(0.0)


def test_leaving_says_why():
    decision = decide_restart(RestartPolicy.ON_FAILURE, ExitReason.POWERED_OFF, (), 0.0)
    assert isinstance(decision, Leave)
    assert "powered-off" in decision.reason


@given(st.lists(st.floats(0, 1e6), max_size=50), st.floats(0, 2e6))
def test_the_wait_is_always_within_bounds(times, now):
    restarts = tuple(sorted(times))
    decision = decide_restart(
        RestartPolicy.ALWAYS, ExitReason.CRASHED, restarts, max(now, *restarts, 0.0)
    )
    assert isinstance(decision, Restart)
    assert FIRST_WAIT <= decision.after <= LONGEST_WAIT
