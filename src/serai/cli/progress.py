"""How far a job is: one line that is redrawn on a terminal, a quiet line a phase elsewhere."""

import contextlib
import sys
from collections.abc import Callable, Iterator

from serai.cli.layout import size
from serai.cli.output import draws, say, say_progress
from serai.client.blocking import Connection
from serai.client.calls import Call, cancel_job
from serai.errors import SeraiError
from serai.model.job import Job

BAR = 24
LARGE = 1 << 20
"""A total from here on counts bytes and is shown as a size."""


def finish(connection: Connection, call: Call[Job], *, cancel: bool = False) -> Job:
    """Send a call that makes a job, show how far it is, wait for its end.

    Interrupted by ctrl-C the job goes on and it is said how to see it; with ``cancel`` it is
    cancelled, which undoes it.
    """
    seen: list[Job] = []
    with _shown(seen) as on_progress:
        try:
            return connection.finish(call, on_progress)
        except KeyboardInterrupt:
            connection.close()
            if seen:
                _interrupted(connection, seen[-1], cancel=cancel)
            raise


def _interrupted(connection: Connection, job: Job, *, cancel: bool) -> None:
    say("")
    if cancel:
        with contextlib.suppress(SeraiError):
            connection.ask(cancel_job(job.id))
            say(f"cancelled: nothing is left of {job.subject}")
            return
    say(f"the job goes on; to wait for it: serai job wait {job.id}")


@contextlib.contextmanager
def _shown(seen: list[Job]) -> Iterator[Callable[[Job], None]]:
    """Give the function that shows a job; the line is gone afterwards."""
    drawn = draws()
    quiet = not sys.stderr.isatty()

    def on_progress(job: Job) -> None:
        new_phase = not seen or seen[-1].phase != job.phase
        seen.append(job)
        del seen[:-1]
        if drawn:
            say_progress(line_of(job))
        elif quiet and new_phase and job.phase:
            say(f"{job.subject}: {job.phase}")

    try:
        yield on_progress
    finally:
        if drawn and seen:
            say_progress("")


def line_of(job: Job) -> str:
    """Return a job as one line: what, which phase, a bar where the total is known."""
    steps = len(job.phases)
    place = job.phases.index(job.phase) + 1 if job.phase in job.phases else 0
    head = f"{job.subject}: {job.phase or 'waiting'} ({place}/{steps})"
    if job.total:
        filled = min(BAR, BAR * job.done // job.total)
        head += f" [{'█' * filled}{'·' * (BAR - filled)}] {_amount(job)}"
    return f"{head} {job.message}"[:118]


def _amount(job: Job) -> str:
    if job.total >= LARGE:
        return f"{size(job.done)} of {size(job.total)}"
    return f"{job.done} of {job.total}"
