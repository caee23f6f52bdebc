"""Jobs: an action on its way, durable, with phases and progress."""

from enum import StrEnum

import msgspec

from serai.errors import Problem
from serai.model.check import CheckReport


class JobState(StrEnum):
    """``queued`` and ``running`` are on their way; the other three are final."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


FINAL_STATES = frozenset({JobState.DONE, JobState.FAILED, JobState.CANCELLED})


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """An action on its way, as it is stored and shown.

    ``phases`` names all steps in order and ``phase`` the one under way (written before it begins).
    ``done`` of ``total`` counts bytes or steps within the phase; total 0 means that it can't be told.
    ``results`` are the ids of what it made (forks, a snapshot), in order, once it is done.
    ``report`` is what a check found, once it is done; no other job has one.
    ``action`` is the action's JSON, from which an interrupted job goes on after a restart.
    """

    id: str
    kind: str
    subject: str
    state: JobState
    created_at: float
    updated_at: float
    phases: tuple[str, ...] = ()
    phase: str = ""
    done: int = 0
    total: int = 0
    message: str = ""
    problem: Problem | None = None
    action: str = ""
    key: str = ""
    results: tuple[str, ...] = ()
    report: CheckReport | None = None

    @property
    def is_final(self) -> bool:
        """True when nothing more will happen."""
        return self.state in FINAL_STATES
