"""The keeper of schedules: the task that makes and deletes snapshots when it is time.

    run ── sleeps until the next due time, or until the timetable changes
     └─ a turn for each schedule that is due, a few at once, one schedule never twice at once:
        CreateSnapshot (unless a stopped guest has not changed) → DeleteSnapshot for what no rule keeps

A turn makes the same actions as everybody, so its snapshots are jobs like others. It ends with a
sentence: the log line, the event ``schedule-ran``, and what is shown of the schedule. A snapshot that
fails becomes the schedule's problem, and is tried again when it is due again; nothing is deleted in
that turn. When a schedule is due is ``plan.schedule``, what stays ``plan.retention``.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from weakref import WeakValueDictionary

import msgspec

from serai.disk.volumes import is_empty_head
from serai.engine.driver import GuestDriver
from serai.engine.house import House
from serai.engine.jobs import LiveJob, error_of, interrupted
from serai.engine.snapshots import SnapshotKeeper
from serai.errors import Code, Conflict, HostFailure, Problem, SeraiError, error_from_problem
from serai.model.actions import (
    AnyAction,
    CreateSchedule,
    CreateSnapshot,
    DeleteSchedule,
    DeleteSnapshot,
    RunSchedule,
    SetSchedule,
)
from serai.model.event import Event, EventKind
from serai.model.guest import Volume
from serai.model.job import Job, JobState
from serai.model.lifecycle import GuestState
from serai.model.schedule import Judgement, Keep, Schedule, ScheduleRecord
from serai.model.snapshot import SnapshotRecord
from serai.plan.retention import judge, made_by
from serai.plan.schedule import (
    changed,
    check_name_as,
    check_when,
    pick_schedule_name,
    settled,
    snapshot_name,
    taken_up,
    view_schedule,
)
from serai.store.changes import DropSchedule, PutSchedule
from serai.units import check_schedule_name

log = logging.getLogger(__name__)

CREATE_PHASES = ("create",)
SET_PHASES = ("set",)
DELETE_PHASES = ("delete",)
RUN_PHASES = ("snapshot", "delete")
LOOK_EVERY = 30.0
"""The longest sleep while something is on the timetable: a clock that was set is noticed after it."""
AT_REST = (GuestState.STOPPED, GuestState.CRASHED)
TURNS_AT_ONCE = 4
JOB_LIMIT = 6 * 3600.0
"""How long one snapshot may take, in seconds."""

Submit = Callable[[AnyAction], Awaitable[Job]]
OfSchedule = CreateSchedule | SetSchedule | RunSchedule | DeleteSchedule


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What became of a turn: a sentence, the id of the snapshot ("": none), what went wrong."""

    said: str
    made: str = ""
    problem: Problem | None = None


class ScheduleKeeper:
    """All that is done with schedules. ``find`` gives a guest by id, ``submit`` takes an action."""

    def __init__(
        self,
        house: House,
        find: Callable[[str], GuestDriver | None],
        snapshots: SnapshotKeeper,
        submit: Submit,
    ) -> None:
        self._house = house
        self._find = find
        self._snapshots = snapshots
        self._submit = submit
        self._busy: set[str] = set()
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._places = asyncio.Semaphore(TURNS_AT_ONCE)
        self._writing = asyncio.Lock()
        self._looked_at = 0.0

    # -- showing -----------------------------------------------------------------------------------

    def all(self, driver: GuestDriver) -> list[Schedule]:
        """Return the schedules of a guest by name."""
        return [self._view(driver, each) for each in self._house.timetable.of(driver.record.id)]

    def one(self, driver: GuestDriver, name_or_id: str) -> Schedule:
        """Return one; NotFound (``schedule-not-found``)."""
        return self._view(driver, self._house.timetable.find(driver.record, name_or_id))

    def judge(self, driver: GuestDriver, name_or_id: str, keep: Keep | None) -> list[Judgement]:
        """Return which of its snapshots would stay now, by its own rules or by ``keep``."""
        schedule = self._house.timetable.find(driver.record, name_or_id)
        return judge(self._made_by(schedule), keep or schedule.keep, self._house.journal.now())

    def _view(self, driver: GuestDriver, schedule: ScheduleRecord) -> Schedule:
        return view_schedule(schedule, driver.name, self._made_by(schedule))

    def _made_by(self, schedule: ScheduleRecord) -> list[SnapshotRecord]:
        return made_by(self._house.shelf.of(schedule.guest_id), schedule.id)

    # -- doing -------------------------------------------------------------------------------------

    async def take(self, driver: GuestDriver, action: OfSchedule, key: str) -> Job:
        """Do what is asked of a schedule, as a job."""
        match action:
            case CreateSchedule():
                return await self._create(driver, action, key)
            case SetSchedule():
                return await self._set(driver, action, key)
            case RunSchedule():
                return await self._run_now(driver, action, key)
            case DeleteSchedule():
                return await self._delete(driver, action, key)

    async def _create(self, driver: GuestDriver, action: CreateSchedule, key: str) -> Job:
        house, now = self._house, self._house.journal.now()
        taken = house.timetable.names(driver.record.id)
        name = check_schedule_name(action.name or pick_schedule_name(action.when, taken))
        check_when(action.when, house.settings.schedule_interval)
        check_name_as(action.name_as, name, now)
        if name in taken:
            raise _exists(driver, name)
        schedule = ScheduleRecord(
            id=house.new_id(),
            name=name,
            guest_id=driver.record.id,
            created_at=now,
            since=now,
            when=action.when,
            keep=action.keep,
            memory=action.memory,
            quiesce=action.quiesce,
            name_as=action.name_as,
        )

        async def work(job: LiveJob) -> None:
            async with self._writing:
                _check_stays(driver)
                if name in house.timetable.names(driver.record.id):
                    raise _exists(driver, name)
                await job.finish(
                    PutSchedule(schedule),
                    events=(self._event(EventKind.SCHEDULE_CREATED, driver, schedule),),
                    results=(schedule.id,),
                    then=lambda: house.timetable.put(schedule),
                )

        return await self._snapshots.begin(action, driver.name, CREATE_PHASES, work, key)

    async def _set(self, driver: GuestDriver, action: SetSchedule, key: str) -> Job:
        timetable, change = self._house.timetable, action.change
        found = timetable.find(driver.record, action.schedule)
        if change.when is not msgspec.UNSET:
            check_when(change.when, self._house.settings.schedule_interval)
        if change.name_as is not msgspec.UNSET:
            check_name_as(change.name_as, found.name, self._house.journal.now())

        async def work(job: LiveJob) -> None:
            async with self._writing:
                _check_stays(driver)
                before = timetable.find(driver.record, found.id)
                after = changed(before, change, self._house.journal.now())
                await job.finish(
                    PutSchedule(after),
                    events=(self._event(EventKind.SCHEDULE_CHANGED, driver, after),),
                    then=lambda: timetable.put(after),
                )

        return await self._snapshots.begin(action, driver.name, SET_PHASES, work, key)

    async def _delete(self, driver: GuestDriver, action: DeleteSchedule, key: str) -> Job:
        timetable = self._house.timetable
        found = timetable.find(driver.record, action.schedule)

        async def work(job: LiveJob) -> None:
            async with self._writing:
                await job.finish(
                    DropSchedule(found.id),
                    events=(self._event(EventKind.SCHEDULE_DELETED, driver, found),),
                    then=lambda: timetable.drop(found),
                )

        return await self._snapshots.begin(action, driver.name, DELETE_PHASES, work, key)

    async def _run_now(self, driver: GuestDriver, action: RunSchedule, key: str) -> Job:
        found = self._house.timetable.find(driver.record, action.schedule)

        async def work(job: LiveJob) -> None:
            async with self._lock(found.id):
                schedule = self._house.timetable.find(driver.record, found.id)
                turn = await self._turn(driver, schedule, job)
            if turn.problem is not None:
                await job.fail(error_from_problem(turn.problem))
            else:
                await job.finish(message=turn.said, results=(turn.made,) if turn.made else ())

        return await self._snapshots.begin(action, driver.name, RUN_PHASES, work, key)

    def _event(
        self, kind: EventKind, driver: GuestDriver, schedule: ScheduleRecord, **more: str
    ) -> Event:
        return self._house.journal.event(
            kind, driver.name, driver.record.id, schedule=schedule.name, **more
        )

    # -- the task ----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Make snapshots when they are due, until cancelled; sleeps for ever while none can be."""
        timetable = self._house.timetable
        while True:
            timetable.changed.clear()
            try:
                async with asyncio.timeout(self._begin_due()):
                    await timetable.changed.wait()
            except TimeoutError:
                continue  # something is due, or it is time to look at the clock

    def _begin_due(self) -> float | None:
        """Begin a turn for each schedule that is due; return how long to sleep then, None: for ever."""
        timetable, now = self._house.timetable, self._house.journal.now()
        if now < self._looked_at:
            self._settle(now)
        self._looked_at = now
        waiting = {id_: due for id_, due in timetable.due.items() if id_ not in self._busy}
        due_now = [id_ for id_, due in waiting.items() if due <= now]
        for schedule_id in due_now:
            self._busy.add(schedule_id)
            work = self._due_turn(timetable.schedules[schedule_id])
            self._house.supervisor.start(work, name=f"schedule {schedule_id}")
            del waiting[schedule_id]
        return min(LOOK_EVERY, min(waiting.values()) - now) if waiting else None

    def _settle(self, now: float) -> None:
        """Believe a clock that was set back."""
        for before in list(self._house.timetable.schedules.values()):
            if (after := settled(before, now)) is not before:
                log.warning("the clock was set back; the schedule %s counts from now", before.name)
                self._house.timetable.put(after)

    async def _due_turn(self, begun: ScheduleRecord) -> None:
        timetable = self._house.timetable
        try:
            async with self._places, self._lock(begun.id):
                schedule = timetable.schedules.get(begun.id)
                driver = self._find(begun.guest_id)
                now = self._house.journal.now()
                if schedule is not None and driver is None:
                    timetable.drop(schedule)  # its guest is gone
                elif schedule and driver and timetable.due.get(schedule.id, now + 1) <= now:
                    await self._turn(driver, schedule, None)
        finally:
            self._busy.discard(begun.id)
            timetable.changed.set()

    def _lock(self, schedule_id: str) -> asyncio.Lock:
        return self._turns.setdefault(schedule_id, asyncio.Lock())

    # -- one turn ----------------------------------------------------------------------------------

    async def _turn(
        self, driver: GuestDriver, schedule: ScheduleRecord, job: LiveJob | None
    ) -> Turn:
        """Do what is to be done and store what became of it; only being cancelled ends it otherwise."""
        try:
            turn = await self._snapshot(driver, schedule, job)
        except Exception as error:  # the one place where a failed turn becomes a problem
            problem = error_of(error).problem()
            said = f"{schedule.name} of {driver.name} failed: {problem.message}"
            turn = Turn(said=said, problem=problem)
        log.log(logging.WARNING if turn.problem else logging.INFO, "%s", turn.said)
        await self._store(driver, schedule.id, turn)
        return turn

    async def _snapshot(
        self, driver: GuestDriver, schedule: ScheduleRecord, job: LiveJob | None
    ) -> Turn:
        what = f"{schedule.name} of {driver.name}"
        if job is not None:
            await job.enter("snapshot")
        unchanged = self._unchanged_since(driver, schedule)
        made = ""
        if unchanged is None:
            made = await self._make(driver, schedule)
            name = self._house.shelf.find(driver.record, made).name
            said = f"{what} made the snapshot {name}"
        else:
            said = f"{what} made no snapshot: nothing has changed since {unchanged.name}"
        if job is not None:
            await job.enter("delete")
        return await self._let_go(driver, schedule, made, said)

    async def _make(self, driver: GuestDriver, schedule: ScheduleRecord) -> str:
        shelf, now = self._house.shelf, self._house.journal.now()
        taken = shelf.names(driver.record.id)
        action = CreateSnapshot(
            guest=driver.record.id,
            name=snapshot_name(schedule.name_as, schedule.name, now, taken),
            memory=schedule.memory,
            quiesce=schedule.quiesce,
            schedule=schedule.name,
            schedule_id=schedule.id,
        )
        return (await self._do(action)).results[0]

    async def _let_go(
        self, driver: GuestDriver, schedule: ScheduleRecord, made: str, said: str
    ) -> Turn:
        """Delete what no rule keeps, the oldest first; the first that can't be is the problem."""
        told = judge(self._made_by(schedule), schedule.keep, self._house.journal.now())
        gone = []
        for each in reversed([each for each in told if not each.stays]):
            try:
                await self._do(DeleteSnapshot(guest=driver.record.id, snapshot=each.id))
            except SeraiError as error:
                said = f"{said}, but {each.snapshot} was not deleted: {error.message}"
                return Turn(said=said, made=made, problem=error.problem())
            gone.append(each.snapshot)
        if gone:
            said = f"{said}, and deleted {', '.join(gone)}"
        kept = len(told) - len(gone)
        return Turn(said=f"{said}; {kept} {'is' if kept == 1 else 'are'} kept", made=made)

    async def _do(self, action: AnyAction) -> Job:
        """Have it done and return its job; raises what ended it."""
        job = await self._submit(action)
        try:
            job = await self._house.jobs.wait(job.id, JOB_LIMIT)
        except asyncio.CancelledError:
            if not self._house.closing.is_set():
                self._snapshots.cancel(job.id)
            raise
        if job.state is JobState.DONE:
            return job
        if job.problem is not None:
            raise error_from_problem(job.problem)
        raise HostFailure(Code.TIMEOUT, f"{job.kind} did not end within {JOB_LIMIT:g} s")

    async def _store(self, driver: GuestDriver, schedule_id: str, turn: Turn) -> None:
        """Keep what became of a turn: in memory in any case, so that it is not begun again at once."""
        timetable, now = self._house.timetable, self._house.journal.now()
        async with self._writing:
            before = timetable.schedules.get(schedule_id)
            if before is None:
                return
            ended = msgspec.structs.replace(
                before, since=now, ran_at=now, said=turn.said, problem=turn.problem
            )
            timetable.put(ended)
            if driver.state is GuestState.DELETING:
                return
            code = turn.problem.code if turn.problem else ""
            event = self._event(EventKind.SCHEDULE_RAN, driver, ended, said=turn.said, problem=code)
            try:
                await self._house.journal.commit(PutSchedule(ended), events=(event,))
            except SeraiError as error:
                log.warning("what %s did was not stored: %s", ended.name, error.message)

    # -- has anything changed? ---------------------------------------------------------------------

    def _unchanged_since(
        self, driver: GuestDriver, schedule: ScheduleRecord
    ) -> SnapshotRecord | None:
        """Return the schedule's last snapshot if the guest does not run and is still as that says."""
        own = self._made_by(schedule)
        if not own or driver.instance is not None or driver.state not in AT_REST:
            return None
        last = own[-1]
        layers = {volume.name: volume.layer for volume in last.volumes}
        if last.guest.spec != driver.record.spec or layers.keys() != {
            volume.name for volume in driver.record.volumes
        }:
            return None
        same = all(
            self._is_still(driver, each, layers[each.name]) for each in driver.record.volumes
        )
        return last if same else None

    def _is_still(self, driver: GuestDriver, volume: Volume, layer: str) -> bool:
        """Tell whether a volume has nothing over ``layer`` but empty layers and an empty head."""
        folder, known = self._house.places.guests / driver.record.id, self._house.shelf.layers
        if not is_empty_head(folder, volume):
            return False
        above = volume.layer
        while above != layer:
            if above not in known or not self._house.layers.is_empty(above):
                return False
            above = known[above].parent
        return True

    # -- at the daemon's start ---------------------------------------------------------------------

    async def take_up_all(self, known: Collection[str]) -> list[str]:
        """Put all schedules on the timetable; those whose guest is not ``known`` any more are dropped."""
        now, orphans = self._house.journal.now(), list[ScheduleRecord]()
        for schedule in await self._house.journal.store.schedules():
            if schedule.guest_id not in known:
                orphans.append(schedule)
            elif self._find(schedule.guest_id) is not None:
                made = [each.created_at for each in self._made_by(schedule)]
                self._house.timetable.put(taken_up(schedule, made, now))
        if orphans:
            await self._house.journal.commit(*(DropSchedule(each.id) for each in orphans))
        return [f"the schedule {each.name} was of a guest that is gone" for each in orphans]

    async def take_up(self, job: Job) -> str:
        """End a job that an earlier daemon left; return a sentence that says how."""
        live = self._house.jobs.resume(job)
        if live is None:
            return f"{job.subject}: {job.kind} can't be read, and was given up"
        await live.fail(interrupted(live))
        return f"{job.subject}: {job.kind} was undone"


def _check_stays(driver: GuestDriver) -> None:
    """Raise Conflict (``guest-state``) for a guest that is being deleted, or is gone."""
    if driver.state is GuestState.DELETING:
        raise Conflict(Code.GUEST_STATE, f"{driver.name} is being deleted")


def _exists(driver: GuestDriver, name: str) -> Conflict:
    return Conflict(
        Code.SCHEDULE_EXISTS,
        f"{driver.name} has a schedule {name} already",
        hint=f"Choose another name, or: serai schedule set {driver.name} {name}",
    )
