"""Forking: one frozen guest, any number of new ones; a launch of a published image is one too.

A fork's job is its own; the source's task is asked only for the moment. Forks of a snapshot come out
of the pool where it has them (``spares``); the others are made a few at a time, each in its own task.
If one fails, all that this job made are gone.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial

import msgspec

from serai.engine.ahead import ReadySpare, StartedSpare
from serai.engine.births import bring_to_life, forget_record, new_record
from serai.engine.driver import GuestDriver
from serai.engine.freezing import freeze
from serai.engine.house import House
from serai.engine.jobs import LiveJob, error_of, interrupted
from serai.engine.meeting import Meeting
from serai.engine.moments import Frozen
from serai.engine.procedures import remove_guest, wait_inside, waits_of
from serai.engine.snapshots import SnapshotKeeper, check_admitted
from serai.engine.spares import Adopt, SparePool
from serai.engine.wishes import Wish, hand_out
from serai.errors import Busy, SeraiError
from serai.host.tools import available_memory
from serai.model.actions import Action, ForkGuest, LaunchGuest
from serai.model.event import EventKind
from serai.model.firstboot import WaitFor
from serai.model.guest import GuestRecord, GuestSpec
from serai.model.image import Image
from serai.model.job import Job
from serai.model.lifecycle import Verb
from serai.model.network import InBubble
from serai.plan.snapshot import check_fork_room, check_group, fork_names, group_names
from serai.store.changes import PutGuest

log = logging.getLogger(__name__)

PHASES = ("freeze", "start")
BIRTHS_AT_ONCE = 4
TOLD_NAMES = 20


Birth = Callable[[], Awaitable[None]]


def _same(spec: GuestSpec) -> GuestSpec:
    return spec


async def _bring_to_life(child: GuestDriver, frozen: Frozen, *, keep_identity: bool) -> None:
    await child.do_first(lambda: bring_to_life(child, frozen, keep_identity=keep_identity))


class Forker:
    """Makes forks. ``adopt`` takes a stored record into the house and returns its driver.

    ``find`` finds a guest by name or id. ``pool`` has the spares.
    """

    def __init__(
        self,
        house: House,
        snapshots: SnapshotKeeper,
        adopt: Adopt,
        find: Callable[[str], GuestDriver],
    ) -> None:
        self._house = house
        self._snapshots = snapshots
        self._adopt = adopt
        self._find = find
        self._meeting = asyncio.Lock()
        self.pool = SparePool(house, snapshots, adopt, find, lambda: bool(self._under_way))
        self._slots = asyncio.Semaphore(BIRTHS_AT_ONCE)
        self._under_way: dict[str, LiveJob] = {}
        self._unborn: dict[str, int] = {}

    async def fork(self, source: GuestDriver, action: ForkGuest, key: str) -> Job:
        """Take a fork on; raises what refuses it, with nothing changed."""
        if action.together:
            return await self._fork_group(source, action, key)
        names = fork_names(action.name or self._pick(), action.count)
        origin = ""
        if action.snapshot:
            origin = self._snapshots.check_usable(source, action.snapshot).id
        else:
            check_admitted(source, Verb.SNAPSHOT)

        async def find() -> list[Frozen]:
            if origin:
                return [await self._snapshots.load(self._snapshots.check_usable(source, origin))]
            return [await self._freeze(source)]

        wish = Wish(
            names=names,
            source=source.name,
            subject=source.name,
            origin=origin,
            guest=source.record.id,
            find=find,
            spec=_same,
            ttl=action.ttl,
            keep_identity=action.keep_identity,
            wait=action.wait,
            groups=[[name] for name in names],
            bubble=_bubble_of(source.record),
        )
        return await self._begin(action, wish, key)

    async def _freeze(self, source: GuestDriver) -> Frozen:
        """Freeze the guest; what is returned may have a moment that is still to come.

        So its forks' QEMUs start while it is being frozen.
        """
        found: asyncio.Future[Frozen] = asyncio.get_running_loop().create_future()

        async def freeze_it() -> None:
            try:
                whole = await source.do(
                    Verb.SNAPSHOT,
                    lambda: freeze(source, memory=True, quiesce=False, early=found.set_result),
                )
            except Exception as error:  # it is the moment's, or our caller's
                if not found.done():
                    found.set_exception(error)
            else:
                if not found.done():
                    found.set_result(whole)

        freezing = self._house.supervisor.start(freeze_it(), name=f"freezing {source.name}")
        freezing.add_done_callback(lambda _: found.cancel())  # where nothing came of it
        try:
            await asyncio.wait({found})
        except asyncio.CancelledError:
            freezing.cancel()
            await asyncio.wait({freezing})
            if found.done() and not found.cancelled() and not found.exception():
                found.result().close()
            raise
        return await found

    async def _fork_group(self, source: GuestDriver, action: ForkGuest, key: str) -> Job:
        """Take the fork of several guests at one moment on."""
        sources = [source, *map(self._find, action.together)]
        told = [each.name for each in sources]
        check_group(told, keep_identity=action.keep_identity, snapshot=action.snapshot)
        groups = group_names(action.name or self._pick(), action.count, told)
        for each in sources:
            check_admitted(each, Verb.SNAPSHOT)
        wish = Wish(
            names=[name for group in groups for name in group],
            source=", ".join(told),
            subject=source.name,
            origin="",
            find=lambda: self._freeze_all(sources),
            spec=_same,
            ttl=action.ttl,
            keep_identity=True,
            wait=action.wait,
            groups=groups,
        )
        return await self._begin(action, wish, key)

    async def _freeze_all(self, sources: Sequence[GuestDriver]) -> list[Frozen]:
        """Freeze all at one moment. Two groups never wait for each other's guests."""
        meeting = Meeting(len(sources))
        found: dict[str, Frozen] = {}

        async def one(source: GuestDriver) -> None:
            try:
                found[source.record.id] = await source.do(
                    Verb.SNAPSHOT,
                    lambda: freeze(source, memory=True, quiesce=False, meeting=meeting),
                )
            except BaseException:
                await meeting.break_off()
                raise

        try:
            async with self._meeting:
                results = await asyncio.gather(*map(one, sources), return_exceptions=True)
            problem = _first_problem(results)
            if problem is not None:
                raise problem
        except BaseException:
            for each in found.values():
                each.close()
            raise
        return [found[each.record.id] for each in sources]

    async def launch(self, image: Image, action: LaunchGuest, key: str) -> Job:
        """Take the launch of a published image on: it is a fork of its snapshot."""
        snapshot = self._snapshots.published(image)
        asked = action.spec
        for port in action.ports:
            self._house.cabling.check()
            self._house.fabric.network(port.network)

        async def find() -> list[Frozen]:
            return [await self._snapshots.load(snapshot)]

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
            ports=action.ports,
            wait_for=action.wait_for,
            seed=action.seed,
            hostname=action.first_boot.hostname or names[0],
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
        spares = []
        if wish.stock:
            self.pool.note(wish.stock, len(wish.names), is_settled=bool(wish.origin))
            spares = self.pool.take_ready(wish.stock, len(wish.names))
        try:
            unborn = len(wish.names) - len(spares)
            check_fork_room(unborn, available_memory(), sum(self._unborn.values()))
            ids = self._claim(wish.names, [each.driver.record.id for each in spares])
            self._unborn[wish.names[0]] = unborn  # before anybody else can ask for the same memory
            try:
                job = await house.jobs.open(action, wish.subject, PHASES, key=key, is_begun=True)
            except BaseException:
                del self._unborn[wish.names[0]]
                self._release(ids)
                raise
        except BaseException:
            self.pool.give_back(spares)
            raise
        run = self._carry_out(job, wish, ids, spares)
        self._under_way[job.id] = job
        job.belongs_to(house.supervisor.start(run, name=f"fork of {wish.source}"))
        return job.job

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
        self, job: LiveJob, wish: Wish, ids: dict[str, str], spares: list[ReadySpare]
    ) -> None:
        with self._house.seeds.held(wish.seed):
            await self._make_all(job, wish, ids, spares)

    async def _make_all(
        self, job: LiveJob, wish: Wish, ids: dict[str, str], spares: list[ReadySpare]
    ) -> None:
        made: list[GuestDriver] = []
        try:
            made += await self._name_all(job, wish, ids, spares)
            if ids:
                found = await wish.find()
                started = self._take_started(wish, found, len(ids))
                try:
                    made += [each.driver for each in started]
                    births = await self._hand_out(job, found[0], wish, ids, started, made)
                    births += await self._make(job, found, wish, ids, made)
                    await self._let_live(job, wish, births)
                finally:
                    for spare in started:
                        await spare.call_off()
                    for each in found:
                        each.close()
            await self._finish(job, wish, made)
        except asyncio.CancelledError as error:
            if not self._house.closing.is_set():
                await self._undo(job, made, ids, error)
        except Exception as error:  # the one place where a failed fork becomes an answer
            await self._undo(job, made, ids, error)
        finally:
            self._under_way.pop(job.id, None)
            self._unborn.pop(wish.names[0], None)
            self.pool.ring()

    async def _name_all(
        self, job: LiveJob, wish: Wish, ids: dict[str, str], spares: list[ReadySpare]
    ) -> list[GuestDriver]:
        """Make the spares what is wished for; return those that are, out of ``ids``.

        One that can't be named is removed, and its name has an id for another guest from then on.
        Cancelled, all are.
        """
        pairs = list(zip(wish.names, spares, strict=False))
        try:
            problems = await asyncio.gather(
                *(self._name(job, wish, spare, name) for name, spare in pairs),
                return_exceptions=True,
            )
        except asyncio.CancelledError:
            for spare in spares:
                await spare.remove()
            raise
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

    async def _name(self, job: LiveJob, wish: Wish, spare: ReadySpare, name: str) -> None:
        """Turn a spare into the guest that is wished for."""

        async def work() -> None:
            await spare.name(name)
            frozen = self._house.shelf.snapshots[wish.origin].guest.spec
            await hand_out(spare, wish, frozen, name=name, job_id=job.id)

        await spare.driver.do(Verb.RESUME, work)

    async def _finish(self, job: LiveJob, wish: Wish, made: list[GuestDriver]) -> None:
        """End the job: the guests stay from here on, also one whose agent stays silent."""
        problem = None
        if wish.wait:
            waits = (self._wait(job, child, wish.wait_for) for child in made)
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

    async def _wait(self, job: LiveJob, child: GuestDriver, wait_for: WaitFor) -> None:
        for each in waits_of(wait_for, child.image):
            await wait_inside(child, job, each)

    def _take_started(self, wish: Wish, found: Sequence[Frozen], count: int) -> list[StartedSpare]:
        return self.pool.take_started(wish.stock, found[0], count) if wish.stock else []

    async def _hand_out(
        self,
        job: LiveJob,
        frozen: Frozen,
        wish: Wish,
        ids: dict[str, str],
        started: Sequence[StartedSpare],
        made: list[GuestDriver],
    ) -> list[Birth]:
        """Make started spares the first of the guests that are wished for, and say how each is born.

        Their names are out of ``ids`` then.
        """
        names, births = self._house.names, list[Birth]()
        for name, spare in zip(list(ids), started, strict=False):
            names.release(name, ids.pop(name))
            names.claim(name, spare.driver.record.id)
            await hand_out(spare, wish, frozen.record.spec, name=name, job_id=job.id)
            births.append(partial(self._be_born, job, frozen, wish, spare, made))
        return births

    async def _be_born(
        self,
        job: LiveJob,
        frozen: Frozen,
        wish: Wish,
        spare: StartedSpare,
        made: list[GuestDriver],
    ) -> None:
        """Let a started spare be born; where that fails, make another guest in its place."""
        try:
            await spare.be_born(frozen)
        except SeraiError as error:
            name = spare.driver.name
            log.warning("the QEMU that waited to be %s is of no use: %s", name, error.message)
            made.remove(spare.driver)
            await remove_guest(spare.driver)
            ids = self._claim([name], [])
            try:
                (birth,) = await self._make(job, [frozen], wish, ids, made)
            except BaseException:
                self._release(ids)
                raise
            await birth()

    async def _make(
        self,
        job: LiveJob,
        found: Sequence[Frozen],
        wish: Wish,
        ids: dict[str, str],
        made: list[GuestDriver],
    ) -> list[Birth]:
        """Store new guests, all together, and say how each is born; they are ``made`` from then on."""
        house, routes = self._house, list[str]()
        if wish.keep_identity and any(each.record.ports for each in found):
            routes = await house.cabling.routes()
        records = self._records(job, found, wish, ids, routes)
        events = tuple(
            house.journal.event(EventKind.GUEST_FORKED, each.spec.name, each.id, source=wish.source)
            for each in records
        )
        births = list[Birth]()
        with job.held():  # what is being stored may be stored, whoever breaks that off
            try:
                await job.enter("start", *map(PutGuest, records), events=events)
            except BaseException:
                for record in records:
                    forget_record(house, record)
                raise
            for record in records:
                frozen, child = found[wish.which(record.spec.name)], self._adopt(record)
                made.append(child)
                birth = partial(_bring_to_life, child, frozen, keep_identity=wish.keep_identity)
                births.append(birth)
        return births

    def _records(
        self,
        job: LiveJob,
        found: Sequence[Frozen],
        wish: Wish,
        ids: dict[str, str],
        routes: Sequence[str],
    ) -> list[GuestRecord]:
        """Return the records of the new guests; their numbers and addresses are taken."""
        records = list[GuestRecord]()
        bubbles = self._bubbles(wish, found, routes)
        try:
            for name, guest_id in ids.items():
                frozen = found[wish.which(name)]
                own = msgspec.structs.replace(wish.spec(frozen.record.spec), name=name)
                records.append(
                    new_record(
                        self._house,
                        frozen,
                        own,
                        guest_id=guest_id,
                        origin=wish.origin,
                        coming=job.id,
                        ttl=wish.ttl,
                        asked=wish.ports,
                        seed=wish.seed,
                        hostname=frozen.record.hostname if wish.keep_identity else wish.hostname,
                        bubble=bubbles.get(name),
                        same=wish.keep_identity,
                    )
                )
        except BaseException:
            for record in records:
                forget_record(self._house, record)
            raise
        return records

    def _bubbles(
        self, wish: Wish, found: Sequence[Frozen], routes: Sequence[str]
    ) -> dict[str, InBubble]:
        """Return the bubble of each guest by name: a new one for each group, or the source's own."""
        if not wish.keep_identity:
            own = wish.bubble
            inside = {} if own is None else dict.fromkeys(wish.names, own)
            for name, each in inside.items():
                self._house.fabric.check_known_as(each, name)
            return {n: msgspec.structs.replace(each, known_as=n) for n, each in inside.items()}
        bubbles: dict[str, InBubble] = {}
        taken: list[str] = []
        for group in wish.groups if any(each.record.ports for each in found) else ():
            bubble_id = self._house.new_id()
            taken.append(self._house.fabric.pick_transfer(taken, routes))
            for name, frozen in zip(group, found, strict=True):
                before = _bubble_of(frozen.record)
                bubbles[name] = InBubble(
                    id=bubble_id,
                    transfer=taken[-1],
                    known_as=before.known_as if before else frozen.record.spec.name,
                )
        return bubbles

    async def _let_live(self, job: LiveJob, wish: Wish, births: Sequence[Birth]) -> None:
        """Let all be born, a few at a time; the first failure ends the others."""
        done = 0

        async def one(birth: Birth) -> None:
            nonlocal done
            async with self._slots:
                await birth()
            done += 1
            self._unborn[wish.names[0]] = len(births) - done
            job.progress(done, len(births), f"{done} of {len(births)} run")

        async with asyncio.TaskGroup() as group:
            for birth in births:
                group.create_task(one(birth))

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


def _bubble_of(record: GuestRecord) -> InBubble | None:
    """Return the bubble in which a guest is."""
    return next((port.bubble for port in record.ports), None)


def _first_problem(results: Iterable[object]) -> BaseException | None:
    """Return what went wrong first, but for those who only waited for that one."""
    problems = [each for each in results if isinstance(each, BaseException)]
    waited = (asyncio.CancelledError, Busy)
    return next(
        (each for each in problems if not isinstance(each, waited)), next(iter(problems), None)
    )


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
