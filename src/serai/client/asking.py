# Made of asking_async.py by scripts/make_blocking.py: change that file, then `make blocking`.
"""What is done by asking a daemon again and again: jobs awaited to their ends, lists of many pages."""

import contextlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import TypeVar

from serai.client.calls import Call, Page
from serai.client.faults import lost_job
from serai.client.job_calls import (
    AT_ONCE,
    CANCEL_LIMIT,
    LONG_POLL,
    PROGRESS_EVERY,
    OnProgress,
    cancel_job,
    keyed,
    outcome,
    show_job,
    undoing,
    waiting,
)
from serai.errors import Code, NotFound, SeraiError
from serai.model.job import Job

T = TypeVar("T")


class Asking(ABC):
    """What every connection can do that can ``ask``."""

    @abstractmethod
    def ask(self, call: Call[T]) -> T:
        """Send a call and return its answer; raises the problem that it was answered with."""

    def all_of(self, pages: Callable[[str], Call[Page[T]]]) -> list[T]:
        """Return all items of a list, however many pages it has."""
        found, cursor = list[T](), ""
        while True:
            page = self.ask(pages(cursor))
            found += page.items
            cursor = page.next
            if not cursor:
                return found

    def finish(self, call: Call[Job], on_progress: OnProgress | None = None) -> Job:
        """Send a call that makes a job and wait for its end; raises the problem that ended it.

        ``on_progress`` is called with the job at once and then at least four times a second.
        """
        seconds = LONG_POLL if on_progress is None else PROGRESS_EVERY
        job = self.ask(call if on_progress else waiting(call, seconds))
        while not job.is_final:
            if on_progress is not None:
                on_progress(job)
            job = self._ask_again(job, seconds)
        return outcome(job)

    def make(self, call: Call[Job], on_progress: OnProgress | None = None) -> Job:
        """As ``finish``; interrupted (ctrl-C, cancelled), nothing of what it makes is left."""
        call = keyed(call, os.urandom(16).hex())
        try:
            return self.finish(call, on_progress)
        except SeraiError:
            raise
        except BaseException:
            with contextlib.suppress(SeraiError):
                self._give_up(call)
            raise

    def _give_up(self, call: Call[Job]) -> None:
        job = self.ask(call)  # the same job: it has a key
        with contextlib.suppress(SeraiError):
            if not job.is_final:
                self.ask(cancel_job(job.id))
        for undo in undoing(self.ask(waiting(show_job(job.id), CANCEL_LIMIT))):
            self.ask(undo)

    def finish_all(self, begun: Iterable[Call[Job]]) -> list[SeraiError]:
        """Send calls that make jobs, a few at a time, and wait for the ends; return what went wrong.

        What is not there (NotFound) is not wrong: these calls remove things.
        """
        errors: list[SeraiError] = []
        waited = list(begun)
        for first in range(0, len(waited), AT_ONCE):
            jobs = [self._begin(call, errors) for call in waited[first : first + AT_ONCE]]
            for job in jobs:
                if job is not None:
                    self._begin(show_job(job.id), errors, end=True)
        return errors

    def _begin(self, call: Call[Job], errors: list[SeraiError], *, end: bool = False) -> Job | None:
        try:
            if end:
                return self.finish(call)
            return self.ask(call)
        except NotFound as error:
            if error.code is Code.DAEMON_UNREACHABLE:
                errors.append(error)
        except SeraiError as error:
            errors.append(error)
        return None

    def _ask_again(self, job: Job, seconds: float) -> Job:
        try:
            return self.ask(waiting(show_job(job.id), seconds))
        except SeraiError as error:
            if error.code is Code.DAEMON_UNREACHABLE:
                raise lost_job(job) from error
            raise
