"""Forking: one frozen guest, any number of new ones.

The fork's job is its own; the source's task is asked only for the moment. New guests are made in
turn, a few at a time, and each in its own task. If one fails, all that this job made are gone.
"""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from serai.engine.births import be_born, make_heads
from serai.engine.driver import GuestDriver
from serai.engine.freezing import Frozen, Moment, freeze
from serai.engine.house import House
from serai.engine.jobs import LiveJob, decode_action, error_of, interrupted
from serai.engine.procedures import remove_guest, start_cold
from serai.engine.snapshots import SnapshotKeeper
from serai.host.tools import available_memory
from serai.model.actions import ForkGuest
from serai.model.event import EventKind
from serai.model.guest import GuestRecord
from serai.model.job import Job
from serai.model.lifecycle import GuestState, Happening, Verb
from serai.plan.snapshot import check_fork_room, fork_names, fork_record, volumes_over
from serai.store.changes import PutGuest

PHASES = ("freeze", "start")
BIRTHS_AT_ONCE = 4

Adopt = Callable[[GuestRecord], GuestDriver]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What forks are made from: ``origin`` is the snapshot's id, "" for a guest as it is now."""

    frozen: Frozen
    origin: str


class Forker:
    """Makes forks. ``adopt`` takes a stored record into the house and returns its driver."""

    def __init__(self, house: House, snapshots: SnapshotKeeper, adopt: Adopt) -> None:
        self._house = house
        self._snapshots = snapshots
        self._adopt = adopt
        self._slots = asyncio.Semaphore(BIRTHS_AT_ONCE)
        self._under_way: dict[str, asyncio.Task[None]] = {}

    async def fork(self, source: GuestDriver, action: ForkGuest, key: str) -> Job:
        """Take a fork on; raises what refuses it, with nothing changed."""
        house = self._house
        names = fork_names(action.name or house.names.pick(len(source.name)), action.count)
        check_fork_room(action.count, available_memory())
        if action.snapshot:
            self._snapshots.check_usable(source, action.snapshot)
        ids = self._claim(names)
        try:
            job = await house.jobs.open(action, source.name, PHASES, key=key)
        except BaseException:
            self._release(ids)
            raise
        run = self._carry_out(job, source, action, ids)
        self._under_way[job.id] = house.supervisor.start(run, name=f"fork of {source.name}")
        return job.job

    def cancel(self, job_id: str) -> bool:
        """Cancel a fork; False when it is not one that is on its way."""
        task = self._under_way.get(job_id)
        return task is not None and task.cancel()

    def _claim(self, names: list[str]) -> dict[str, str]:
        ids: dict[str, str] = {}
        try:
            for name in names:
                guest_id = self._house.new_id()
                self._house.names.claim(name, guest_id)
                ids[name] = guest_id
        except BaseException:
            self._release(ids)
            raise
        return ids

    def _release(self, ids: dict[str, str]) -> None:
        for name, guest_id in ids.items():
            self._house.names.release(name, guest_id)

    async def _carry_out(
        self, job: LiveJob, source: GuestDriver, action: ForkGuest, ids: dict[str, str]
    ) -> None:
        made: list[GuestDriver] = []
        try:
            found = await self._source(job, source, action)
            try:
                await job.enter("start")
                made += await self._make(job, found, source, action, ids)
                await self._let_live(job, found, source, action, made)
            finally:
                found.frozen.close()
            results = tuple(each.record.id for each in made)
            message = ", ".join(each.name for each in made[:20])
            changes = [each.revise(coming="") for each in made]
            await job.finish(*changes, message=message, results=results)
        except asyncio.CancelledError as error:
            if not self._house.closing.is_set():
                await self._undo(job, made, ids, error)
        except Exception as error:  # the one place where a failed fork becomes an answer
            await self._undo(job, made, ids, error)
        finally:
            self._under_way.pop(job.id, None)

    async def _source(self, job: LiveJob, source: GuestDriver, action: ForkGuest) -> Source:
        await job.enter("freeze")
        if action.snapshot:
            snapshot = self._snapshots.check_usable(source, action.snapshot)
            return Source(frozen=await self._snapshots.load(snapshot), origin=snapshot.id)
        frozen = await source.do(Verb.SNAPSHOT, lambda: freeze(source, memory=True, quiesce=False))
        return Source(frozen=frozen, origin="")

    async def _make(
        self,
        job: LiveJob,
        found: Source,
        source: GuestDriver,
        action: ForkGuest,
        ids: dict[str, str],
    ) -> list[GuestDriver]:
        """Store the new guests, all together; they are in the house from then on."""
        house, now = self._house, self._house.journal.now()
        records = [
            self._record(job, found, guest_id, name, action, now) for name, guest_id in ids.items()
        ]
        events = tuple(
            house.journal.event(EventKind.GUEST_FORKED, each.spec.name, each.id, source=source.name)
            for each in records
        )
        try:
            await house.journal.commit(*map(PutGuest, records), events=events)
        except BaseException:
            for record in records:
                house.names.release_number(record.number)
            raise
        return [self._adopt(record) for record in records]

    def _record(
        self,
        job: LiveJob,
        found: Source,
        guest_id: str,
        name: str,
        action: ForkGuest,
        now: float,
    ) -> GuestRecord:
        house = self._house
        random = house.new_id()
        heads = {each.name: f"{each.name}.qcow2" for each in found.frozen.volumes}
        return fork_record(
            found.frozen.record,
            guest_id=guest_id,
            number=house.names.claim_number(),
            name=name,
            mac="52:54:00:" + ":".join(random[i : i + 2] for i in (0, 2, 4)),
            genid=house.new_id(),
            now=now,
            volumes=volumes_over(found.frozen.volumes, heads),
            origin=found.origin,
            expires_at=now + action.ttl if action.ttl else 0.0,
            coming=job.id,
        )

    async def _let_live(
        self,
        job: LiveJob,
        found: Source,
        source: GuestDriver,
        action: ForkGuest,
        made: list[GuestDriver],
    ) -> None:
        done = 0

        async def one(child: GuestDriver) -> None:
            nonlocal done
            async with self._slots:
                await self._let_one_live(child, found, action)
            done += 1
            job.progress(done, len(made), f"{done} of {len(made)} forks of {source.name}")

        async with asyncio.TaskGroup() as group:
            for child in made:
                group.create_task(one(child))

    async def _let_one_live(self, child: GuestDriver, found: Source, action: ForkGuest) -> None:
        moment, frozen = found.frozen.moment, found.frozen

        async def live() -> None:
            await make_heads(child)
            child.happen(Happening.CREATED)
            child.enter(GuestState.STARTING)
            if moment is None:
                await start_cold(child)
            else:
                await _be_born(child, moment, frozen, keep_identity=action.keep_identity)

        await child.do_first(live)

    async def _undo(
        self, job: LiveJob, made: list[GuestDriver], ids: dict[str, str], error: BaseException
    ) -> None:
        for child in made:
            await remove_guest(child)
        if not made:
            self._release(ids)
        if isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        await job.fail(error_of(error))

    async def take_up(self, job: Job) -> str:
        """End a fork that an earlier daemon left; its guests are removed by ``remove_unfinished``."""
        live = self._house.jobs.resume(job, decode_action(job))
        await live.fail(interrupted(live))
        return f"{job.subject}: {job.kind} was undone"


async def remove_unfinished(drivers: Iterable[GuestDriver]) -> list[str]:
    """Remove the guests of forks that an earlier daemon did not finish; a sentence for each."""
    unfinished = [each for each in drivers if each.record.coming]
    for driver in unfinished:
        await remove_guest(driver)
    return [f"{each.name}: the fork was undone" for each in unfinished]


async def _be_born(
    child: GuestDriver, moment: Moment, frozen: Frozen, *, keep_identity: bool
) -> None:
    try:
        await be_born(child, moment, old_mac=frozen.record.mac, keep_identity=keep_identity)
    except BaseException:
        child.happen(Happening.START_FAILED)
        raise
