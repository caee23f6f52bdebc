"""Blocking work (hashing, copying, parsing) off the event loop, with progress and a way to stop.

``Progress`` is how this room tells whoever asked how far a phase is; it is called on the event
loop only. ``run_in_thread`` gives the work a ``Pulse``: the work beats it between two pieces, and
learns there that nobody waits for it any more. Not for: running programs (``host.process``).
"""

import asyncio
import threading
import time
from collections.abc import Callable
from typing import TypeVar

Progress = Callable[[str, int, int, str], None]
"""``progress(phase, done, total, message)``; total 0 means that it can't be told."""

T = TypeVar("T")

REPORT_EVERY = 0.2


class Stopped(Exception):
    """Ends work that nobody waits for; never leaves this module's ``run_in_thread``."""


class Pulse:
    """What blocking work holds on to. ``beat`` is cheap: call it for every piece."""

    def __init__(self, report: Callable[[int, int], None] | None = None) -> None:
        self._report = report
        self._stop = threading.Event()
        self._reported = 0.0

    def beat(self, done: int = 0, total: int = 0) -> None:
        """Tell how far the work is; raises Stopped when it should end."""
        if self._stop.is_set():
            raise Stopped
        now = time.monotonic()
        if self._report is not None and now - self._reported >= REPORT_EVERY:
            self._reported = now
            self._report(done, total)

    def stop(self) -> None:
        """Let the next ``beat`` raise."""
        self._stop.set()


def no_progress(phase: str, done: int, total: int, message: str) -> None:
    """Tell nobody: a Progress for callers that have no use for it."""


async def run_in_thread(
    work: Callable[[Pulse], T], report: Callable[[int, int], None] | None = None
) -> T:
    """Run ``work`` in a thread and return its result.

    ``report(done, total)`` is called on the event loop, a few times a second at most. When the
    caller is cancelled, the work is told to stop and waited for, so that no thread writes into
    files that the caller is about to remove.
    """
    loop = asyncio.get_running_loop()

    def pass_on(done: int, total: int) -> None:
        if report is not None:
            loop.call_soon_threadsafe(report, done, total)

    pulse = Pulse(pass_on)
    future = loop.run_in_executor(None, work, pulse)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        pulse.stop()
        future.add_done_callback(_forget)
        await asyncio.wait({future})
        raise


def _forget(future: asyncio.Future[T]) -> None:
    """Look at the outcome, so that asyncio does not complain that nobody did."""
    if not future.cancelled():
        future.exception()
