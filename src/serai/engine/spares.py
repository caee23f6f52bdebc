"""The pool: forks of a snapshot that are made before anybody asks, and handed to who asks next.

A spare is a guest in everything but a name. It runs, under an id, a uid, a MAC address and a random
seed of its own, and knows them; so its clock is right, and what is left to do is to call it
something. It is in the house like every guest, with a record that says ``POOL``: nobody is shown it,
no event tells of it, and a daemon that finds one at its start removes it, as it would any fork that
was not finished. A spare only ever becomes a fork of its own snapshot.

How many of which there are is decided in ``plan.pool``. None is made while forks are on their way.
"""

import asyncio
import contextlib
import logging
import secrets
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from serai.engine.births import NONCE_BYTES, bring_to_life, forget_record, new_record
from serai.engine.driver import GuestDriver
from serai.engine.freezing import Frozen
from serai.engine.house import House
from serai.engine.procedures import remove_guest
from serai.engine.snapshots import SnapshotKeeper
from serai.errors import Busy, Code, Conflict, SeraiError
from serai.host.tools import available_memory
from serai.model.guest import POOL, AgentState, GuestRecord, RestartPolicy
from serai.model.image import Expect
from serai.model.lifecycle import GuestState
from serai.model.snapshot import SnapshotRecord, SnapshotState
from serai.plan.pool import Budget, Demand, plan_turn
from serai.plan.reborn import as_name_line
from serai.plan.snapshot import ROOM_PER_FORK
from serai.qemu.instance import Instance
from serai.store.changes import PutGuest

log = logging.getLogger(__name__)

LOOK_EVERY = 2.0
LEAST_LEFT = 10
"""What part of the host's memory the pool leaves alone: one tenth."""
HOST_NAME = "/proc/sys/kernel/hostname"
HOST_NAME_FILE = "/etc/hostname"
LARGEST_NAME_FILE = 256
NAMING_LIMIT = 2.0
"""One that does not answer by then is slower than a new one."""

Adopt = Callable[[GuestRecord], GuestDriver]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spare:
    """A guest that waits for a name: at the port where it was told all else, or by its agent.

    ``handle`` is for the latter: its host name's file, opened ahead. ``has_name_file``: the name also
    stands in a file, which every later boot reads.
    """

    driver: GuestDriver
    snapshot: str
    handle: int | None = None
    has_name_file: bool = False

    @property
    def is_ready(self) -> bool:
        """True while it runs and its agent answers."""
        return (
            self.driver.state is GuestState.RUNNING
            and self.driver.agent_state is AgentState.ANSWERING
        )


class SparePool:
    """All spares. ``is_busy`` tells whether forks are on their way."""

    def __init__(
        self, house: House, snapshots: SnapshotKeeper, adopt: Adopt, is_busy: Callable[[], bool]
    ) -> None:
        self._house = house
        self._snapshots = snapshots
        self._adopt = adopt
        self._is_busy = is_busy
        self._demands: dict[str, Demand] = {}
        self._ready: list[Spare] = []
        self._bell = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._making: asyncio.Task[Spare | None] | None = None
        self._closing = False

    # -- taking ------------------------------------------------------------------------------------

    @property
    def count(self) -> int:
        """How many are ready."""
        return len(self._ready)

    def take(self, snapshot: str, count: int) -> list[Spare]:
        """Take up to ``count`` spares of a snapshot, and remember that so many were asked for."""
        before = self._demands.get(snapshot, Demand())
        self._demands[snapshot] = before.with_one_more(count, self._house.journal.now())
        fit = [each for each in self._ready if each.snapshot == snapshot and each.is_ready]
        taken = fit[:count]
        self._ready = [each for each in self._ready if each not in taken]
        return taken

    def give_back(self, spares: list[Spare]) -> None:
        """Keep spares that were taken and are not used."""
        self._ready += spares

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
        await self._remove(list(self._ready))

    async def drop_of(self, snapshot: str) -> None:
        """Remove the spares of a snapshot that goes, and forget that anybody asked for it."""
        self._demands.pop(snapshot, None)
        await self._remove([each for each in self._ready if each.snapshot == snapshot])

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
        shelf, now = self._house.shelf.snapshots, self._house.journal.now()
        self._demands = {
            each: demand
            for each, demand in self._demands.items()
            if each in shelf and demand.is_fresh(now)
        }
        await self._remove([each for each in self._ready if not each.is_ready])
        ready = Counter(each.snapshot for each in self._ready)
        turn = plan_turn(self._demands, ready, self._budget(), now)
        for snapshot, count in turn.drop.items():
            await self._remove([each for each in self._ready if each.snapshot == snapshot][:count])
        if turn.make:
            await self._make_safely(turn.make)
        return bool(turn.make)

    def _budget(self) -> Budget:
        return Budget(
            limit=self._house.settings.pool_memory,
            each=ROOM_PER_FORK,
            available=available_memory(),
            reserve=self._house.capabilities.memory // LEAST_LEFT,
        )

    async def _remove(self, spares: list[Spare]) -> None:
        self._ready = [each for each in self._ready if each not in spares]
        gone = await asyncio.gather(
            *(remove_guest(each.driver) for each in spares), return_exceptions=True
        )
        for problem in gone:
            if isinstance(problem, BaseException):
                log.warning("a spare was not removed: %s", problem)

    # -- making ------------------------------------------------------------------------------------

    async def _make_safely(self, snapshot: str) -> None:
        """Make a spare; one that can't be made is not tried again until somebody asks again."""
        making = self._making = self._house.supervisor.start(self._try(snapshot), name="spare")
        try:
            await asyncio.wait({making})
        finally:
            self._making = None
        made = None if making.cancelled() or making.exception() else making.result()
        if made is None:
            self._demands.pop(snapshot, None)
        else:
            self._ready.append(made)

    async def _try(self, snapshot: str) -> Spare | None:
        try:
            return await self._make(self._house.shelf.snapshots[snapshot])
        except SeraiError as error:
            log.warning("no spare was made: %s", error.message)
            return None

    async def _make(self, snapshot: SnapshotRecord) -> Spare:
        if snapshot.memory is None or snapshot.state is not SnapshotState.READY:
            raise Conflict(Code.SNAPSHOT_STATE, f"{snapshot.name} has no memory to take up")
        frozen = await self._snapshots.load(snapshot)
        try:
            driver = await self._store(frozen, snapshot.id)
            try:
                await driver.do_first(lambda: bring_to_life(driver, frozen, keep_identity=False))
                return await _ready_to_be_named(driver, snapshot.id)
            except BaseException:
                await remove_guest(driver)
                raise
        finally:
            frozen.close()

    async def _store(self, frozen: Frozen, snapshot: str) -> GuestDriver:
        house = self._house
        guest_id = house.new_id()
        spec = msgspec.structs.replace(
            frozen.record.spec, name=f".spare-{guest_id[:8]}", restart=RestartPolicy.NO
        )
        record = new_record(house, frozen, spec, guest_id=guest_id, origin=snapshot, coming=POOL)
        try:
            await house.journal.commit(PutGuest(record))
        except BaseException:
            forget_record(house, record)
            raise
        return self._adopt(record)


async def _ready_to_be_named(driver: GuestDriver, snapshot: str) -> Spare:
    """Do ahead all that can be; Conflict (``agent-unavailable``) when no agent answers."""
    instance = driver.instance
    if (
        driver.image.agent is Expect.NO
        or instance is None
        or driver.agent_state is not AgentState.ANSWERING
    ):
        raise Conflict(Code.AGENT_UNAVAILABLE, "no agent answers in it")
    with contextlib.suppress(SeraiError):
        await _tell_name(instance, driver.name)
        return Spare(driver=driver, snapshot=snapshot)
    found = b""
    with contextlib.suppress(SeraiError):
        async for chunk in instance.agent.read_file(HOST_NAME_FILE):
            found += chunk[:LARGEST_NAME_FILE]
            break
    handle = await instance.agent.open_file(HOST_NAME)
    return Spare(driver=driver, snapshot=snapshot, handle=handle, has_name_file=bool(found.strip()))


async def _tell_name(instance: Instance, name: str) -> None:
    """Tell a name where the guest was told who it is; raises as ``Instance.hear_reborn`` does.

    Also where what waits there is older than this, and does not answer.
    """
    if not await instance.waits_to_be_told():
        raise Busy(Code.AGENT_UNAVAILABLE, "nothing in it waits to be told a name")
    nonce = secrets.token_hex(NONCE_BYTES)
    instance.say_reborn(as_name_line(name, nonce))
    await instance.hear_reborn(nonce, NAMING_LIMIT)


async def name_spare(spare: Spare, name: str) -> None:
    """Tell the guest inside what it is called; in its own task.

    Raises TimeoutError, or what the agent or the port does that it is told at.
    """
    instance = spare.driver.instance
    if instance is None:
        raise Conflict(Code.GUEST_STATE, "the spare has ended")
    if spare.handle is None:
        await _tell_name(instance, name)
        return
    line = f"{name}\n".encode()
    async with asyncio.timeout(NAMING_LIMIT):
        await instance.agent.write_opened(spare.handle, line)
        if spare.has_name_file:
            await instance.agent.write_opened(await instance.agent.open_file(HOST_NAME_FILE), line)
