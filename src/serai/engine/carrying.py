"""Jobs that no guest's task carries out: each is a task of its own, with one failure path.

For keepers whose work is quick, or asks a guest's task for its part (``GuestDriver.do``).
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from serai.engine.house import House
from serai.engine.jobs import LiveJob, error_of, interrupted
from serai.errors import Busy, Code, SeraiError
from serai.model.actions import Action
from serai.model.job import Job

WAITING_LIMIT = 1024

Work = Callable[[LiveJob], Coroutine[Any, Any, None]]
Undo = Callable[[], Coroutine[Any, Any, None]]


class Carrier:
    """Carries jobs out. One for all keepers that share it."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._under_way: dict[str, LiveJob] = {}

    async def begin(
        self, action: Action, subject: str, phase: str, work: Work, undo: Undo, key: str
    ) -> Job:
        """Do ``work`` as a job; what it raises ends the job, after ``undo``.

        ``undo`` also follows when the job can't be opened; that is raised.
        """
        try:
            if len(self._under_way) >= WAITING_LIMIT:
                raise Busy(
                    Code.QUEUE_FULL, "too many jobs are on their way", hint="Try again later."
                )
            job = await self._house.jobs.open(action, subject, (phase,), key=key)
        except BaseException:
            await undo()
            raise
        self._under_way[job.id] = job
        run = self._carry_out(job, work, undo)
        job.belongs_to(self._house.supervisor.start(run, name=f"{subject}: {job.job.kind}"))
        return job.job

    async def _carry_out(self, job: LiveJob, work: Work, undo: Undo) -> None:
        try:
            await work(job)
        except asyncio.CancelledError as error:
            if not self._house.closing.is_set():
                await self._fail(job, undo, error)
        except Exception as error:  # the one place where a failed job becomes an answer
            await self._fail(job, undo, error)
        finally:
            self._under_way.pop(job.id, None)

    async def _fail(self, job: LiveJob, undo: Undo, error: BaseException) -> None:
        job.hold()
        reported = error_of(error)
        try:
            await undo()
        except SeraiError as worse:
            reported.details["undo"] = worse.message
        await job.fail(reported)

    def cancel(self, job_id: str) -> bool:
        """Cancel a job; False when it is none of these that is on its way."""
        job = self._under_way.get(job_id)
        if job is not None:
            job.break_off()
        return job is not None

    async def take_up(self, job: Job) -> str:
        """End a job that an earlier daemon left: it was undone, or is by the reconciler."""
        live = self._house.jobs.resume(job)
        if live is not None:
            await live.fail(interrupted(live))
        return f"{job.subject}: {job.kind} was undone"


async def nothing() -> None:
    """Undo nothing."""
