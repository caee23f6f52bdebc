"""Forking: one frozen guest, any number of new ones; a launch of a published image is one too.

A fork's job is its own; the source's task is asked only for the moment. Forks of a snapshot come out
of the pool where it has them (``spares``); the others are made a few at a time, each in its own task.
If one fails, all that this job made are gone.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

import msgspec

from serai.engine.births import bring_to_life, new_record
from serai.engine.driver import GuestDriver
from serai.engine.freezing import Frozen, freeze
from serai.engine.house import House
from serai.engine.jobs import LiveJob, error_of, interrupted
from serai.engine.procedures import remove_guest, wait_agent
from serai.engine.snapshots import SnapshotKeeper, check_admitted
from serai.engine.spares import Adopt, Spare, SparePool, name_spare
from serai.errors import SeraiError
from serai.host.tools import available_memory
from serai.model.actions import Action, ForkGuest, LaunchGuest
from serai.model.event import EventKind
from serai.model.guest import GuestSpec
from serai.model.image import Expect, Image
from serai.model.job import Job
from serai.model.lifecycle import Verb
from serai.plan.snapshot import check_fork_room, fork_names
from serai.store.changes import PutGuest

log = logging.getLogger(__name__)

PHASES = ("freeze", "start")
BIRTHS_AT_ONCE = 4
TOLD_NAMES = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What is to be made: a guest for each name, from what ``find`` gives.

    ``origin`` is the snapshot's id, "" for a guest as it is now.
    """

    names: list[str]
    source: str
    subject: str
    origin: str
    find: Callable[[], Awaitable[Frozen]]
    spec: Callable[[GuestSpec], GuestSpec]
    ttl: float
    keep_identity: bool
    wait: bool


def _same(spec: GuestSpec) -> GuestSpec:
    return spec


class Forker:
    """Makes forks. ``adopt`` takes a stored record into the house and returns its driver.

    ``pool`` has the spares.
    """

    def __init__(self, house: House, snapshots: SnapshotKeeper, adopt: Adopt) -> None:
        self._house = house
        self._snapshots = snapshots
        self._adopt = adopt
        self.pool = SparePool(house, snapshots, adopt, lambda: bool(self._under_way))
        self._slots = asyncio.Semaphore(BIRTHS_AT_ONCE)
        self._under_way: dict[str, LiveJob] = {}

    async def fork(self, source: GuestDriver, action: ForkGuest, key: str) -> Job:
        """Take a fork on; raises what refuses it, with nothing changed."""
        names = fork_names(action.name or self._pick(), action.count)
        origin = ""
        if action.snapshot:
            origin = self._snapshots.check_usable(source, action.snapshot).id
        else:
            check_admitted(source, Verb.SNAPSHOT)

        async def find() -> Frozen:
            if origin:
                return await self._snapshots.load(self._snapshots.check_usable(source, origin))
            return await source.do(
                Verb.SNAPSHOT, lambda: freeze(source, memory=True, quiesce=False)
            )

        wish = Wish(
            names=names,
            source=source.name,
            subject=source.name,
            origin=origin,
            find=find,
            spec=_same,
            ttl=action.ttl,
            keep_identity=action.keep_identity,
            wait=action.wait,
        )
        return await self._begin(action, wish, key)

    async def launch(self, image: Image, action: LaunchGuest, key: str) -> Job:
        """Take the launch of a published image on: it is a fork of its snapshot."""
        snapshot = self._snapshots.published(image)
        asked = action.spec

        async def find() -> Frozen:
            return await self._snapshots.load(snapshot)

        def spec(frozen: GuestSpec) -> GuestSpec:
            return msgspec.structs.replace(
                frozen, image=image.name, labels=asked.labels, restart=asked.restart
            )

        names = fork_names(asked.name or self._pick(), 1)
        wish = Wish(
            names=names,
            source=image.name,
            subject=names[0],
            origin=snapshot.id,
            find=find,
            spec=spec,
            ttl=action.ttl,
            keep_identity=False,
            wait=action.wait,
        )
        return await self._begin(action, wish, key)

    def cancel(self, job_id: str) -> bool:
        """Cancel a fork; False when it is not one that is on its way."""
        job = self._under_way.get(job_id)
        if job is not None:
            job.break_off()
        return job is not None

    def _pick(self) -> str:
        return self._house.names.pick(int(self._house.new_id()[:8], 16))

    async def _begin(self, action: Action, wish: Wish, key: str) -> Job:
        house = self._house
        spares = self._spares_for(wish)
        try:
            check_fork_room(len(wish.names) - len(spares), available_memory())
            ids = self._claim(wish.names, [each.driver.record.id for each in spares])
            try:
                job = await house.jobs.open(action, wish.subject, PHASES, key=key)
            except BaseException:
                self._release(ids)
                raise
        except BaseException:
            self.pool.give_back(spares)
            raise
        run = self._carry_out(job, wish, ids, spares)
        self._under_way[job.id] = job
        job.belongs_to(house.supervisor.start(run, name=f"fork of {wish.source}"))
        return job.job

    def _spares_for(self, wish: Wish) -> list[Spare]:
        """Take what the pool has; who is to keep what it knows of itself can't be made ahead."""
        if not wish.origin or wish.keep_identity:
            return []
        return self.pool.take(wish.origin, len(wish.names))

    def _claim(self, names: list[str], ready: list[str]) -> dict[str, str]:
        """Claim the names, the first of them for the ids that are there already."""
        ids: dict[str, str] = {}
        try:
            for index, name in enumerate(names):
                guest_id = ready[index] if index < len(ready) else self._house.new_id()
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
        self, job: LiveJob, wish: Wish, ids: dict[str, str], spares: list[Spare]
    ) -> None:
        made: list[GuestDriver] = []
        try:
            made += await self._name_all(job, wish, ids, spares)
            if ids:
                await job.enter("freeze")
                found = await wish.find()
                try:
                    await job.enter("start")
                    cold = await self._make(job, found, wish, ids)
                    made += cold
                    await self._let_live(job, found, wish, cold)
                finally:
                    found.close()
            await self._finish(job, wish, made)
        except asyncio.CancelledError as error:
            if not self._house.closing.is_set():
                await self._undo(job, made, ids, error)
        except Exception as error:  # the one place where a failed fork becomes an answer
            await self._undo(job, made, ids, error)
        finally:
            self._under_way.pop(job.id, None)
            self.pool.ring()

    async def _name_all(
        self, job: LiveJob, wish: Wish, ids: dict[str, str], spares: list[Spare]
    ) -> list[GuestDriver]:
        """Make the spares what is wished for; return those that are, out of ``ids``.

        One that can't be named is removed, and its name has an id for another guest from then on.
        """
        pairs = list(zip(wish.names, spares, strict=False))
        problems = await asyncio.gather(
            *(self._name(job, wish, spare, name) for name, spare in pairs), return_exceptions=True
        )
        made = []
        for (name, spare), problem in zip(pairs, problems, strict=True):
            if problem is None:
                made.append(spare.driver)
                del ids[name]
                continue
            log.warning("a spare could not become %s: %s", name, problem)
            self._house.names.release(name, ids[name])
            await remove_guest(spare.driver)
            ids |= self._claim([name], [])
        return made

    async def _name(self, job: LiveJob, wish: Wish, spare: Spare, name: str) -> None:
        """Turn a spare into the guest that is wished for. What is stored of it still says POOL."""
        driver, now = spare.driver, self._house.journal.now()

        async def work() -> None:
            await name_spare(spare, name)
            frozen = self._house.shelf.snapshots[wish.origin].guest.spec
            driver.revise(
                spec=msgspec.structs.replace(wish.spec(frozen), name=name),
                created_at=now,
                expires_at=now + wish.ttl if wish.ttl else 0.0,
                coming=job.id,
            )
            driver.tell(EventKind.GUEST_FORKED, source=wish.source)
            driver.tell(EventKind.GUEST_STATE, state=str(driver.state), before="")

        await driver.do(Verb.TALK, work)

    async def _finish(self, job: LiveJob, wish: Wish, made: list[GuestDriver]) -> None:
        """End the job: the guests stay from here on, also one whose agent stays silent."""
        problem = None
        if wish.wait:
            waits = (wait_agent(child) for child in made if child.image.agent is not Expect.NO)
            results = await asyncio.gather(*waits, return_exceptions=True)
            problem = next((each for each in results if isinstance(each, SeraiError)), None)
        job.hold()
        made = sorted(made, key=lambda each: wish.names.index(each.name))
        stay = [each.revise(coming="") for each in made]
        if problem is not None:
            await job.fail(problem, *stay)
            return
        await job.finish(
            *stay,
            message=", ".join(each.name for each in made[:TOLD_NAMES]),
            results=tuple(each.record.id for each in made),
        )

    async def _make(
        self, job: LiveJob, found: Frozen, wish: Wish, ids: dict[str, str]
    ) -> list[GuestDriver]:
        """Store the new guests, all together; they are in the house from then on."""
        house, spec = self._house, wish.spec(found.record.spec)
        records = [
            new_record(
                house,
                found,
                msgspec.structs.replace(spec, name=name),
                guest_id=guest_id,
                origin=wish.origin,
                coming=job.id,
                ttl=wish.ttl,
            )
            for name, guest_id in ids.items()
        ]
        events = tuple(
            house.journal.event(EventKind.GUEST_FORKED, each.spec.name, each.id, source=wish.source)
            for each in records
        )
        try:
            await house.journal.commit(*map(PutGuest, records), events=events)
        except BaseException:
            for record in records:
                house.names.release_number(record.number)
            raise
        return [self._adopt(record) for record in records]

    async def _let_live(
        self, job: LiveJob, frozen: Frozen, wish: Wish, made: list[GuestDriver]
    ) -> None:
        """Bring all to life, a few at a time; the first failure ends the others."""
        done = 0

        async def one(child: GuestDriver) -> None:
            nonlocal done
            async with self._slots:
                await child.do_first(
                    lambda: bring_to_life(child, frozen, keep_identity=wish.keep_identity)
                )
            done += 1
            job.progress(done, len(made), f"{done} of {len(made)} run")

        async with asyncio.TaskGroup() as group:
            for child in made:
                group.create_task(one(child))

    async def _undo(
        self, job: LiveJob, made: list[GuestDriver], ids: dict[str, str], error: BaseException
    ) -> None:
        for child in made:
            await remove_guest(child)
        self._release(ids)
        if isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        await job.fail(error_of(error))

    async def take_up(self, job: Job) -> str:
        """End a fork that an earlier daemon left; its guests are removed by ``remove_unfinished``."""
        live = self._house.jobs.resume(job)
        if live is not None:
            await live.fail(interrupted(live))
        return f"{job.subject}: {job.kind} was undone"


async def remove_unfinished(drivers: Iterable[GuestDriver]) -> list[str]:
    """Remove the guests of forks that an earlier daemon did not finish; a sentence for each."""
    sentences = []
    for driver in [each for each in drivers if each.record.coming]:
        try:
            await remove_guest(driver)
        except SeraiError as error:
            sentences.append(f"{driver.name}: an unfinished fork stays: {error.message}")
        else:
            sentences.append(f"{driver.name}: the fork was undone")
    return sentences
