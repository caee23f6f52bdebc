"""Progress as it is drawn on a terminal: a spinner, the phase, a bar where the total is known.

Imported only when a job takes a moment: ``rich`` takes longer to import than most jobs last.
"""

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from serai.cli.layout import size
from serai.cli.output import plain
from serai.model.job import Job

LARGE = 1 << 20
"""A total from here on counts bytes and is shown as a size."""
MESSAGE_LIMIT = 50


class Bars:
    """One job on its way; removed from the terminal at its end."""

    def __init__(self) -> None:
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[amount]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("{task.fields[message]}", markup=False),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._progress.add_task("", total=None, amount="", message="")
        self._progress.start()

    def show(self, job: Job) -> None:
        """Draw how far the job is."""
        self._progress.update(
            self._task,
            description=title(job),
            total=job.total or None,
            completed=job.done,
            amount=amount(job),
            message=plain(job.message).replace("\n", " ")[:MESSAGE_LIMIT],
        )

    def close(self) -> None:
        """Remove what is drawn."""
        self._progress.stop()


def title(job: Job) -> str:
    """Return what is done, and in which of its phases it is."""
    if job.phase not in job.phases:
        return plain(f"{job.subject}: {job.phase or 'waiting'}")
    return plain(
        f"{job.subject}: {job.phase} ({job.phases.index(job.phase) + 1}/{len(job.phases)})"
    )


def amount(job: Job) -> str:
    """Return how much of how much is done, in bytes if it is that much."""
    if not job.total:
        return ""
    if job.total >= LARGE:
        return f"{size(job.done)} of {size(job.total)}"
    return f"{job.done} of {job.total}"
