"""How far a job is: drawn on a terminal once it takes a moment, a quiet line a phase elsewhere."""

import os
import time
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from typing import Protocol

from serai.cli.output import draws, say
from serai.client.blocking import Connection
from serai.client.calls import Call
from serai.client.guest_calls import show_guest
from serai.client.job_calls import cancel_job, show_job, waiting
from serai.errors import Code, SeraiError
from serai.model.job import Job, JobState

PATIENCE = 0.4
"""What takes less is not worth being drawn, in seconds."""
CANCEL_LIMIT = 20.0
LEFT = {
    "fork": "there are no forks of {}",
    "snapshot-create": "there is no snapshot of {}",
    "image-publish": "there is no image of {}",
    "check": "not all of the {} was checked",
}
"""What is said of a cancelled job, by its kind, where its subject is not what it makes."""
TOO_LATE = {
    "fork": "the forks of {} are there; see: serai list",
    "snapshot-create": "the snapshot is there; see: serai snapshot list {}",
    "image-publish": "the image of {} is there; see: serai image list",
    "check": "all of the {} was checked",
}


class Drawing(Protocol):
    """What ``cli.drawing`` has; it is imported only when something is drawn."""

    def show(self, job: Job) -> None:
        """Draw how far the job is."""

    def close(self) -> None:
        """Remove what is drawn."""


class Watcher:
    """Shows one job on its way."""

    def __init__(self, make_drawing: Callable[[], Drawing] | None) -> None:
        self.last: Job | None = None
        self._make_drawing = make_drawing
        self._drawing: Drawing | None = None
        self._began = time.monotonic()

    def on_progress(self, job: Job) -> None:
        """Show how far the job is now."""
        new_phase = self.last is None or self.last.phase != job.phase
        self.last = job
        if self._make_drawing is None:
            if new_phase and job.phase and job.state is JobState.RUNNING:
                say(f"{job.subject}: {job.phase}")
            return
        if self._drawing is None and time.monotonic() - self._began > PATIENCE:
            self._drawing = self._make_drawing()
        if self._drawing is not None:
            self._drawing.show(job)

    def close(self) -> None:
        """Remove what is drawn."""
        if self._drawing is not None:
            self._drawing.close()
            self._drawing = None


def _draw() -> Drawing:
    drawing: Drawing = import_module("serai.cli.drawing").Bars()
    return drawing


def finish(connection: Connection, call: Call[Job], *, cancel: bool = False) -> Job:
    """Send a call that makes a job, show how far it is, wait for its end.

    Interrupted by ctrl-C the job goes on and it is said how to see it; with ``cancel`` the daemon is
    asked to cancel it, and it is said what is left.
    """
    watcher = Watcher(_draw if draws() else None)
    if cancel:
        call = replace(call, headers={**call.headers, "Idempotency-Key": os.urandom(16).hex()})
    try:
        return connection.finish(call, watcher.on_progress)
    except KeyboardInterrupt:
        watcher.close()
        job = watcher.last
        if job is None and cancel:
            job = connection.ask(call)  # the same job: it has a key
        if job is not None:
            _interrupted(connection, job, cancel=cancel)
        raise
    finally:
        watcher.close()


def _interrupted(connection: Connection, job: Job, *, cancel: bool) -> None:
    if not cancel:
        say(f"the job goes on; to wait for it: serai job wait {job.id}")
        return
    say("cancelling …")
    try:
        connection.ask(cancel_job(job.id))
        ended = connection.ask(waiting(show_job(job.id), CANCEL_LIMIT))
        say(_what_is_left(connection, ended))
    except SeraiError as error:
        say(f"it could not be cancelled: {error.message}; see: serai job show {job.id}")


def _what_is_left(connection: Connection, job: Job) -> str:
    if not job.is_final:
        return f"it is not over yet; to wait for it: serai job wait {job.id}"
    if job.state is JobState.DONE:
        return f"too late: {TOO_LATE.get(job.kind, '{} is done').format(job.subject)}"
    if job.kind != "launch":
        left = LEFT.get(job.kind, "nothing is left of {}")
        return f"cancelled: {left.format(job.subject)}"
    try:
        guest = connection.ask(show_guest(job.subject))
    except SeraiError as error:
        if error.code is Code.GUEST_NOT_FOUND:
            return f"cancelled: nothing is left of {job.subject}"
        raise
    return (
        f"cancelled: {guest.name} is {guest.state}; to remove it: serai delete --force {guest.name}"
    )
