"""The pool: machines that are made before anybody asks, and handed to who asks next.

What they are is told in ``ahead``, how many there are is decided in ``plan.pool``. Nobody is shown
one, no event tells of it, and a daemon that finds one at its start removes it, as it would any fork
that was not finished. A spare only ever becomes a fork of its own source. None is made while forks
are on their way.
"""

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace

import msgspec

from serai.engine.ahead import (
    ReadySpare,
    Spare,
    StartedSpare,
    make_ready,
    make_started,
    promise_of,
)
from serai.engine.births import forget_record, new_record
from serai.engine.driver import GuestDriver
from serai.engine.house import House
from serai.engine.moments import Frozen, Promised, Template
from serai.engine.procedures import remove_guest
from serai.engine.snapshots import SnapshotKeeper
from serai.errors import Code, Conflict, SeraiError
from serai.host.tools import available_memory
from serai.model.guest import POOL, GuestRecord, RestartPolicy
from serai.model.snapshot import SnapshotState
from serai.plan.pool import Budget, Demand, Kind, Stock, plan_turn
from serai.store.changes import PutGuest

log = logging.getLogger(__name__)

LOOK_EVERY = 2.0
LEAST_LEFT = 10
"""What part of the host's memory the pool leaves alone: one tenth."""

Adopt = Callable[[GuestRecord], GuestDriver]


class SparePool:
    """All spares. ``find`` finds a guest by its id, ``is_busy`` tells whether forks are on their way."""

    def __init__(
        self,
        house: House,
        snapshots: SnapshotKeeper,
        adopt: Adopt,
        find: Callable[[str], GuestDriver],
        is_busy: Callable[[], bool],
    ) -> None:
        self._house = house
        self._snapshots = snapshots
        self._adopt = adopt
        self._find = find
        self._is_busy = is_busy
        self._demands: dict[str, Demand] = {}
        self._there: list[Spare] = []
        self._bell = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._making: asyncio.Task[Spare | None] | None = None
        self._closing = False

    # -- taking ------------------------------------------------------------------------------------

    @property
    def counts(self) -> Counter[Kind]:
        """How many there are of each kind."""
        return Counter(each.stock.kind for each in self._there)

    def note(self, source: str, count: int, *, is_settled: bool) -> None:
        """Remember that so many forks were asked for: of a snapshot, or of a guest as it is."""
        before = self._demands.get(source, Demand(is_settled=is_settled))
        self._demands[source] = before.with_one_more(count, self._house.journal.now())

    def take_ready(self, snapshot: str, count: int) -> list[ReadySpare]:
        """Take up to ``count`` ready spares of a snapshot."""
        fit = [each for each in self._there if isinstance(each, ReadySpare)]
        taken = [each for each in fit if each.source == snapshot and each.is_usable][:count]
        self._forget(taken)
        return taken

    def take_started(self, source: str, frozen: Frozen, count: int) -> list[StartedSpare]:
        """Take up to ``count`` started ones of a snapshot or guest that can be what was frozen."""
        fit = [each for each in self._there if isinstance(each, StartedSpare)]
        fit = [each for each in fit if each.source == source and each.is_usable]
        taken = [each for each in fit if each.fits(frozen)][:count]
        self._forget(taken)
        return taken

    def give_back(self, spares: Sequence[Spare]) -> None:
        """Keep spares that were taken and are not used."""
        self._there += spares

    def ring(self) -> None:
        """Look soon whether something is to be done: forks have ended, or something has gone."""
        self._bell.set()

    # -- keeping -----------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to keep the pool as it should be, until ``close``."""
        self._task = self._house.supervisor.start(self._run(), name="pool")

    async def close(self) -> None:
        """Make no more, and remove all that are there; what is being removed is so when it returns."""
        self._closing = True
        self.ring()
        if self._making is not None:
            self._making.cancel()
        if self._task is not None:
            await asyncio.wait({self._task})
        await self._remove(self._there)

    async def drop_of(self, snapshot: str) -> None:
        """Remove the spares of a snapshot that goes, and forget that anybody asked for it."""
        self._demands.pop(snapshot, None)
        await self._remove([each for each in self._there if each.source == snapshot])

    async def _run(self) -> None:
        while not self._closing:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY):  # for what no bell tells: time, memory
                    await self._bell.wait()
            self._bell.clear()
            while not self._closing and not self._is_busy() and await self._take_turn():
                pass

    async def _take_turn(self) -> bool:
        """Do what is to be done next; False when it is nothing."""
        now = self._house.journal.now()
        self._demands = {
            each: demand for each, demand in self._demands.items() if demand.is_fresh(now)
        }
        able = {
            each: demand for each, demand in self._demands.items() if self._can_be_made_of(each)
        }
        await self._remove([each for each in self._there if not self._is_good(each)])
        there = Counter(each.stock for each in self._there)
        turn = plan_turn(able, there, self._budget(), now)
        for stock, count in turn.drop.items():
            await self._remove([each for each in self._there if each.stock == stock][:count])
        if turn.make:
            await self._make_safely(turn.make)
        return turn.make is not None

    def _is_good(self, spare: Spare) -> bool:
        """Tell whether a spare can still be handed out, as far as is known."""
        if spare.source in self._house.shelf.snapshots or isinstance(spare, ReadySpare):
            return spare.is_usable
        now = self._promise_of(spare.source)
        return spare.is_usable and now is not None and spare.fits(now)

    def _promise_of(self, guest_id: str) -> Promised | None:
        try:
            return promise_of(self._find(guest_id))
        except SeraiError:
            return None

    def _can_be_made_of(self, source: str) -> bool:
        """Tell whether it is known what a fork of it is going to be, and it takes no address ahead."""
        snapshot = self._house.shelf.snapshots.get(source)
        if snapshot is None:
            return self._promise_of(source) is not None
        has_memory = snapshot.memory is not None and snapshot.state is SnapshotState.READY
        return has_memory and not snapshot.guest.ports

    def _budget(self) -> Budget:
        return Budget(
            limit=self._house.settings.pool_memory,
            available=available_memory(),
            reserve=self._house.capabilities.memory // LEAST_LEFT,
        )

    def _forget(self, spares: Sequence[Spare]) -> None:
        self._there = [each for each in self._there if each not in spares]

    async def _remove(self, spares: Sequence[Spare]) -> None:
        self._forget(spares)
        gone = await asyncio.gather(*(each.remove() for each in spares), return_exceptions=True)
        for problem in gone:
            if isinstance(problem, BaseException):
                log.warning("a spare was not removed: %s", problem)

    # -- making ------------------------------------------------------------------------------------

    async def _make_safely(self, stock: Stock) -> None:
        """Make a spare; one that can't be made is not tried again until somebody asks again.

        A source of which none can be made ready has them started.
        """
        making = self._making = self._house.supervisor.start(self._try(stock), name="spare")
        try:
            await asyncio.wait({making})
        finally:
            self._making = None
        made = None if making.cancelled() or making.exception() else making.result()
        if made is not None:
            self._there.append(made)
            return
        demand = self._demands.pop(stock.source, None)
        if demand is not None and stock.kind is Kind.READY:
            self._demands[stock.source] = replace(demand, is_settled=False)

    async def _try(self, stock: Stock) -> Spare | None:
        try:
            return await self._make(stock)
        except SeraiError as error:
            log.warning("no spare was made: %s", error.message)
            return None

    async def _make(self, stock: Stock) -> Spare:
        snapshot = self._house.shelf.snapshots.get(stock.source)
        if snapshot is None:
            source = self._find(stock.source)
            promised = promise_of(source)
            if promised is None:
                raise Conflict(
                    Code.GUEST_STATE, f"{source.name} is not what it was when it was forked"
                )
            await self._house.bases.find(promised.moment.base, source.instance)
            return await self._start(stock.source, promised, origin="")
        if stock.kind is Kind.STARTED:
            async with self._snapshots.promised(snapshot) as promised:
                return await self._start(stock.source, promised, origin=snapshot.id)
        frozen = await self._snapshots.load(snapshot)
        try:
            driver = await self._store(frozen, snapshot.id)
            async with _removed_on_failure(driver):
                return await make_ready(driver, snapshot.id, frozen)
        finally:
            frozen.close()

    async def _start(self, source: str, promised: Promised, *, origin: str) -> StartedSpare:
        driver = await self._store(promised, origin)
        async with _removed_on_failure(driver):
            return await make_started(driver, source, promised)

    async def _store(self, template: Template, origin: str) -> GuestDriver:
        house = self._house
        guest_id = house.new_id()
        spec = msgspec.structs.replace(
            template.record.spec, name=f".spare-{guest_id[:8]}", restart=RestartPolicy.NO
        )
        record = new_record(house, template, spec, guest_id=guest_id, origin=origin, coming=POOL)
        try:
            await house.journal.commit(PutGuest(record))
        except BaseException:
            forget_record(house, record)
            raise
        return self._adopt(record)


@contextlib.asynccontextmanager
async def _removed_on_failure(driver: GuestDriver) -> AsyncIterator[None]:
    """Remove a guest that nobody was promised when the block fails."""
    try:
        yield
    except BaseException:
        await remove_guest(driver)
        raise
