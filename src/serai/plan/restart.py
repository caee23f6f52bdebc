"""Whether a guest that ended by itself is started again, and after how long: pure.

The wait doubles with each restart in a row, from one second to five minutes, so that a guest that
can't start does not keep the host busy. A guest that ran for ten minutes has recovered: its next
failure counts as the first.
"""

from dataclasses import dataclass
from itertools import pairwise

from serai.model.guest import ExitReason, RestartPolicy

FIRST_WAIT = 1.0
LONGEST_WAIT = 300.0
STABLE_AFTER = 600.0

FAILURES = frozenset({ExitReason.CRASHED, ExitReason.PANICKED, ExitReason.HOST_RESTARTED})


@dataclass(frozen=True, slots=True)
class Restart:
    """Start it again ``after`` seconds."""

    after: float


@dataclass(frozen=True, slots=True)
class Leave:
    """Leave it as it is, and why."""

    reason: str


def decide_restart(
    policy: RestartPolicy, reason: ExitReason, restarts: tuple[float, ...], now: float
) -> Restart | Leave:
    """Decide for a guest that ended for ``reason``; ``restarts`` are the times of earlier ones.

    A requested stop and a failed start are never followed by a restart.
    """
    if reason in (ExitReason.REQUESTED, ExitReason.NEVER_STARTED, ExitReason.START_FAILED):
        return Leave(f"the guest is {reason}")
    if policy is RestartPolicy.NO:
        return Leave("its policy is no")
    if policy is RestartPolicy.ON_FAILURE and reason not in FAILURES:
        return Leave(f"{reason} is no failure")
    if reason is ExitReason.HOST_RESTARTED:
        return Restart(0.0)
    return Restart(_wait_after(_in_a_row(restarts, now)))


def _in_a_row(restarts: tuple[float, ...], now: float) -> int:
    """Count the restarts before ``now`` that followed each other without a stable run between.

    A run begins when the wait after its restart is over; so each wait has to be known, and they
    are counted from the oldest on.
    """
    count = 0
    for before, at in pairwise((*restarts, now)):
        ran = at - before - _wait_after(count)
        count = 0 if ran >= STABLE_AFTER else count + 1
    return count


def _wait_after(count: int) -> float:
    return min(FIRST_WAIT * 2.0 ** min(count, 20), LONGEST_WAIT)
