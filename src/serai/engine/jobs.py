"""Jobs on their way: phases written before they begin, one end, everybody who waits is told.

A job is opened when an action was accepted, and belongs to whoever carries the action out (the
guest's driver, the image keeper). ``finish`` and ``fail`` take the changes that belong to the end,
so that a job is never done without its effect being stored, nor the other way round.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import msgspec

from serai.engine.journal import Journal
from serai.errors import Bug, Busy, Code, Conflict, HostFailure, Interrupted, NotFound, SeraiError
from serai.model.actions import Action, AnyAction, kind_of
from serai.model.check import CheckReport
from serai.model.event import Event, EventKind
from serai.model.job import Job, JobState
from serai.store.changes import Change, PutJob

log = logging.getLogger(__name__)

LIVE_LIMIT = 4096


def _nothing() -> None:
    """Do nothing after a job's end."""


class LiveJob:
    """One job on its way. Only its owner calls the methods that change it."""

    def __init__(self, job: Job, action: Action, journal: Journal, forget: Callable[[str], None]):
        self.job = job
        self.action = action
        self.ended = asyncio.Event()
        self._journal = journal
        self._forget = forget
        self._task: asyncio.Task[None] | None = None
        self._is_held = False
        self._is_broken = False

    @property
    def id(self) -> str:
        """The job's id."""
        return self.job.id

    # -- breaking it off ---------------------------------------------------------------------------

    def belongs_to(self, task: asyncio.Task[None]) -> None:
        """Say which task carries the job out."""
        self._task = task

    def break_off(self) -> None:
        """Cancel whoever carries the job out: once, and not while it must not be disturbed."""
        self._is_broken = True
        if self._task is not None and not self._is_held and not self._task.cancelling():
            self._task.cancel()

    def hold(self) -> None:
        """From now on go on to the end, whoever wants to break the job off."""
        self._is_held = True

    @contextmanager
    def held(self) -> Iterator[None]:
        """Do something whole. If the job was broken off meanwhile, CancelledError follows it."""
        self._is_held = True
        yield
        self._is_held = False
        if self._is_broken:
            raise asyncio.CancelledError

    # -- changing it -------------------------------------------------------------------------------

    def _change(self, **changes: object) -> None:
        self.job = self._changed(**changes)

    def _changed(self, **changes: object) -> Job:
        return msgspec.structs.replace(self.job, updated_at=self._journal.now(), **changes)

    def _event(self, job: Job) -> Event:
        data = {"action": job.kind, "state": str(job.state), "phase": job.phase}
        return self._journal.event(EventKind.JOB_CHANGED, job.subject, job.id, **data)

    async def enter(self, phase: str, *changes: Change, events: tuple[Event, ...] = ()) -> None:
        """Write that ``phase`` begins, together with ``changes``; returns when that is durable."""
        if not changes and self.job.phase == phase and self.job.state is JobState.RUNNING:
            return
        self._change(state=JobState.RUNNING, phase=phase, done=0, total=0, message="")
        await self._journal.commit(
            PutJob(self.job), *changes, events=(self._event(self.job), *events)
        )

    def progress(self, done: int, total: int, message: str = "", phase: str = "") -> None:
        """Note how far the phase is; shown at once, kept in memory only."""
        self._change(done=done, total=total, message=message, phase=phase or self.job.phase)

    async def finish(
        self,
        *changes: Change,
        events: tuple[Event, ...] = (),
        message: str = "",
        results: tuple[str, ...] = (),
        report: CheckReport | None = None,
        then: Callable[[], None] = _nothing,
    ) -> None:
        """End the job well: its end and ``changes`` become durable together.

        ``then`` is called after that, before anybody who waits for the job is told.
        """
        ended = self._changed(
            state=JobState.DONE,
            message=message or self.job.message,
            results=results or self.job.results,
            report=report,
        )
        await self._end(ended, changes, events, then)

    async def fail(
        self,
        error: SeraiError,
        *changes: Change,
        events: tuple[Event, ...] = (),
        then: Callable[[], None] = _nothing,
    ) -> None:
        """End the job with the problem of ``error``; ``job-cancelled`` makes it CANCELLED."""
        cancelled = error.code is Code.JOB_CANCELLED
        state = JobState.CANCELLED if cancelled else JobState.FAILED
        ended = self._changed(state=state, problem=error.problem())
        await self._end(ended, changes, events, then)

    async def _end(
        self,
        ended: Job,
        changes: tuple[Change, ...],
        events: tuple[Event, ...],
        then: Callable[[], None],
    ) -> None:
        """Store the end. A store that fails is reported, but waiters are released in any case.

        The job is shown as ended only once that is durable: whoever looks must not see it before.

        What could not be stored is owed: it is written with the next thing that can be, so that no
        later daemon takes an ended job for one that is still to be done.
        """
        self.hold()
        try:
            await self._journal.commit(
                PutJob(ended), *changes, events=(*events, self._event(ended))
            )
            then()
        except SeraiError as error:
            ended = self._changed(state=JobState.FAILED, problem=error.problem())
            self._journal.owe(PutJob(ended))
            raise
        finally:
            self.job = ended
            self.ended.set()
            self._forget(self.id)


class Jobs:
    """All jobs: the live ones in memory, the ended ones in the store."""

    def __init__(self, journal: Journal, new_id: Callable[[], str]) -> None:
        self._journal = journal
        self._new_id = new_id
        self._live: dict[str, LiveJob] = {}

    async def open(
        self,
        action: Action,
        subject: str,
        phases: tuple[str, ...],
        *,
        key: str = "",
        changes: tuple[Change, ...] = (),
        events: tuple[Event, ...] = (),
        is_begun: bool = False,
    ) -> LiveJob:
        """Accept ``action``: when this returns, the job and ``changes`` are durable.

        ``is_begun``: its first phase begins at once, and need not be entered.
        Raises Busy (``queue-full``) with too many live jobs, Conflict if ``key`` was used before.
        """
        if len(self._live) >= LIVE_LIMIT:
            raise Busy(
                Code.QUEUE_FULL, f"{LIVE_LIMIT} jobs are on their way", hint="Try again later."
            )
        now = self._journal.now()
        job = Job(
            id=self._new_id(),
            kind=kind_of(action),
            subject=subject,
            state=JobState.RUNNING if is_begun else JobState.QUEUED,
            created_at=now,
            updated_at=now,
            phases=phases,
            phase=phases[0] if phases else "",
            action=msgspec.json.encode(action).decode(),
            key=key,
        )
        live = LiveJob(job, action, self._journal, self._drop)
        self._live[job.id] = live
        try:
            await self._journal.commit(PutJob(job), *changes, events=events)
        except BaseException:
            self._drop(job.id)
            raise
        return live

    def resume(self, job: Job) -> LiveJob | None:
        """Take up a job that an earlier daemon left unfinished; None if it can't be read."""
        try:
            action: AnyAction = msgspec.json.decode(job.action, type=AnyAction)
        except (msgspec.DecodeError, RecursionError) as error:
            log.error("job %s can't be read: %s", job.id, error)
            return None
        live = LiveJob(job, action, self._journal, self._drop)
        self._live[job.id] = live
        return live

    async def give_up(self, job: Job) -> None:
        """End a job that an earlier daemon left and that nobody carries on; never raises."""
        live = LiveJob(job, Action(), self._journal, self._drop)
        with suppress(SeraiError):  # it is owed then, and stored once that is possible
            await live.fail(interrupted(live))

    def _drop(self, job_id: str) -> None:
        self._live.pop(job_id, None)

    def live(self, job_id: str) -> LiveJob | None:
        """Return the job if it is on its way."""
        return self._live.get(job_id)

    def live_ids(self) -> frozenset[str]:
        """Return the ids of all jobs that are on their way."""
        return frozenset(self._live)

    async def find(self, job_id: str) -> Job:
        """Return a job as it is now; NotFound (``job-not-found``)."""
        live = self._live.get(job_id)
        job = live.job if live else self._journal.owed_job(job_id)
        job = job or await self._journal.store.job(job_id)
        if job is None:
            raise NotFound(Code.JOB_NOT_FOUND, f"there is no job {job_id[:64]!r}")
        return job

    async def find_by_key(self, key: str, action: Action) -> Job | None:
        """Return the job that was opened with this idempotency key.

        Raises Conflict (``idempotency-reused``) when it was opened for something else.
        """
        job = await self._journal.store.job_by_key(key)
        if job is None:
            return None
        if job.action != msgspec.json.encode(action).decode():
            raise Conflict(
                Code.IDEMPOTENCY_REUSED,
                "this idempotency key was used for another request",
                hint="Make a new key for each new request.",
            )
        return await self.find(job.id)

    async def wait(self, job_id: str, timeout: float) -> Job:
        """Return the job when it has ended, or as it is after ``timeout`` seconds."""
        live = self._live.get(job_id)
        if live is None:
            return await self.find(job_id)
        try:
            async with asyncio.timeout(timeout):
                await live.ended.wait()
        except TimeoutError:
            pass
        return live.job

    async def list(self, *, state: JobState | None, limit: int, before: str) -> list[Job]:
        """Return jobs, the newest first; ``before`` is the id after which to go on."""
        stored = await self._journal.store.jobs(state=state, limit=limit, before=before)
        found = [self._live[job.id].job if job.id in self._live else job for job in stored]
        return [job for job in found if state in (None, job.state)]


def error_of(error: BaseException) -> SeraiError:
    """Return what a failed step is reported as; what is no SeraiError is a bug of ours."""
    if isinstance(error, SeraiError):
        return error
    if isinstance(error, asyncio.CancelledError):
        return Conflict(Code.JOB_CANCELLED, "cancelled")
    if isinstance(error, OSError) and error.errno == 28:
        return disk_full(str(error.filename or ""))
    log.error("a step failed in a way that we did not foresee", exc_info=error)
    return Bug(Code.BUG, f"{type(error).__name__}: {error}", hint="See the daemon's log.")


def disk_full(where: str) -> SeraiError:
    """Return the problem of a full disk."""
    return HostFailure(
        Code.DISK_FULL,
        f"no space is left on the disk{f' ({where})' if where else ''}",
        hint="Free some space; guests that wait for it go on by themselves.",
    )


def interrupted(job: LiveJob) -> SeraiError:
    """Return what a job is told that an earlier daemon left and that was undone."""
    return Interrupted(
        Code.JOB_INTERRUPTED,
        f"the daemon ended during the {job.job.kind} of {job.job.subject}; it was undone",
        hint="Ask for it again.",
    )
