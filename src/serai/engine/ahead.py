"""Machines that are made ahead of anybody's asking, of either kind (``plan.pool.Kind``).

A ready one is a guest in everything but a name: it has run, under an id, a uid, a MAC address and a
random seed of its own, and knows them; then it was held, so it does nothing that nobody wants. What is
left to do is to let it go on, and to tell it the time and its name. A started one is a fork whose moment
is a promise: its birth is under way, and has come to where a moment is needed. Both are in the house
like every guest, with a record that says ``POOL``.
"""

import asyncio
import secrets
from dataclasses import dataclass

from serai.engine.births import NONCE_BYTES, bring_to_life, same_self, tell
from serai.engine.driver import GuestDriver
from serai.engine.moments import Frozen, Promise, Promised, Template
from serai.engine.procedures import remove_guest
from serai.errors import Busy, Code, Conflict
from serai.model.guest import AgentState, Firmware
from serai.model.image import Expect
from serai.model.lifecycle import GuestState, Happening, Verb
from serai.model.snapshot import FrozenVolume
from serai.plan.pool import Kind, Stock
from serai.plan.reborn import as_name_line
from serai.qemu.instance import Instance

NAMING_LIMIT = 2.0
"""One that does not answer by then is slower than a new one."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReadySpare:
    """A guest that is held, and waits for a name. ``source`` is a snapshot's id."""

    driver: GuestDriver
    source: str

    @property
    def stock(self) -> Stock:
        """What it is one of."""
        return Stock(self.source, Kind.READY)

    @property
    def is_usable(self) -> bool:
        """True while it is held, with an agent that has answered."""
        return (
            self.driver.state is GuestState.PAUSED
            and self.driver.agent_state is AgentState.ANSWERING
        )

    async def name(self, name: str) -> None:
        """Let the guest go on, and tell it what time it is and what it is called; in its own task.

        It reaches nobody before it knows. Raises TimeoutError, or as ``Instance.hear_reborn`` does.
        """
        driver, instance = self.driver, self.driver.instance
        if instance is None:
            raise Conflict(Code.GUEST_STATE, "the spare has ended")
        async with asyncio.timeout(NAMING_LIMIT):
            tell(instance, same_self(driver))
            nonce = _say_name(instance, name)
            await instance.go_on()
            await instance.hear_reborn(nonce, NAMING_LIMIT)
            await instance.set_user_links(True)
        driver.happen(Happening.WENT_ON)

    async def remove(self) -> None:
        """Leave nothing of it."""
        await remove_guest(self.driver)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StartedSpare:
    """A guest of which there is only QEMU, which waits for a moment.

    ``source`` is the id of a snapshot or of a guest; ``template`` is what that was.
    ``birth`` is what waits for its moment; it returns what went wrong.
    """

    driver: GuestDriver
    source: str
    template: Promised
    birth: asyncio.Task[Exception | None]

    @property
    def stock(self) -> Stock:
        """What it is one of."""
        return Stock(self.source, Kind.STARTED)

    @property
    def is_usable(self) -> bool:
        """True while its QEMU waits."""
        return not self.birth.done()

    def fits(self, source: Template) -> bool:
        """Tell whether it can be what ``source`` is: that is still as it was when this was started."""
        before, now = self.template, source.moment
        return (
            now is not None
            and (now.base, now.machine) == (before.moment.base, before.moment.machine)
            and source.record == before.record
            and source.volumes == before.volumes
            and source.uefi_vars == before.uefi_vars
        )

    async def be_born(self, frozen: Frozen) -> None:
        """Let it be what was frozen, which fits; raises as ``bring_to_life`` does."""
        assert frozen.moment is not None
        self.template.moment.keep(frozen.moment)
        problem = await self.birth
        if problem is not None:
            raise problem

    async def call_off(self) -> None:
        """Have it wait no longer; nothing happens to one that is born."""
        self.template.moment.break_off()
        await asyncio.wait({self.birth})

    async def remove(self) -> None:
        """Leave nothing of it."""
        await self.call_off()
        await remove_guest(self.driver)


Spare = ReadySpare | StartedSpare


async def make_ready(driver: GuestDriver, source: str, frozen: Frozen) -> ReadySpare:
    """Let a new guest be what was frozen, do ahead all that can be, and hold it.

    Raises as ``bring_to_life`` does; Conflict or Busy (``agent-unavailable``) when no agent answers, or
    nothing waits in it to be told a name (images of others, docs/design/0047).
    """
    await driver.do_first(lambda: bring_to_life(driver, frozen, keep_identity=False))
    instance = driver.instance
    if (
        driver.image.agent is Expect.NO
        or instance is None
        or driver.agent_state is not AgentState.ANSWERING
    ):
        raise Conflict(Code.AGENT_UNAVAILABLE, "no agent answers in it")
    if not await instance.waits_to_be_told():
        raise Busy(Code.AGENT_UNAVAILABLE, "nothing in it waits to be told a name")
    # what is done for the first time takes longest
    await instance.hear_reborn(_say_name(instance, driver.name), NAMING_LIMIT)

    async def hold() -> None:
        await instance.hold()
        driver.happen(Happening.HELD)

    await driver.do(Verb.PAUSE, hold)
    return ReadySpare(driver=driver, source=source)


def _say_name(instance: Instance, name: str) -> str:
    """Tell a guest its name where it was told all else; the answer will have the nonce returned."""
    nonce = secrets.token_hex(NONCE_BYTES)
    instance.say_reborn(as_name_line(name, nonce))
    return nonce


async def make_started(driver: GuestDriver, source: str, template: Promised) -> StartedSpare:
    """Start a new guest's QEMU, which waits for the moment; raises as ``bring_to_life`` does."""
    promise = template.moment
    birth = driver.house.supervisor.start(_birth(driver, template), name=f"birth of {driver.name}")
    waiting = asyncio.ensure_future(promise.awaited())
    try:
        await asyncio.wait({birth, waiting}, return_when=asyncio.FIRST_COMPLETED)
    except asyncio.CancelledError:
        promise.break_off()
        await asyncio.wait({birth})
        raise
    finally:
        waiting.cancel()
    if birth.done() and (problem := birth.result()) is not None:
        raise problem
    return StartedSpare(driver=driver, source=source, template=template, birth=birth)


async def _birth(driver: GuestDriver, template: Promised) -> Exception | None:
    """Let a guest be born; return what goes wrong, which is told to who waits for it."""
    try:
        await driver.do_first(lambda: bring_to_life(driver, template, keep_identity=False))
    except Exception as error:
        return error
    return None


def promise_of(source: GuestDriver) -> Promised | None:
    """Return what a fork of a running guest is going to be; None: that can't be known.

    It can where nothing but memory changes: no disk of its own that is written to, no variables of a
    firmware; and its memory has to be a base's (docs/design/0030). Who is in a network is left out, since
    what nobody has asked for takes no address.
    """
    instance, record = source.instance, source.record
    if (
        source.state is not GuestState.RUNNING
        or instance is None
        or not instance.machine.ram_private
        or record.spec.firmware is Firmware.UEFI
        or record.ports
        or not all(each.read_only for each in record.volumes)
    ):
        return None
    promise = Promise(base=instance.machine.ram, machine=instance.machine)
    volumes = tuple(
        FrozenVolume(name=each.name, layer=each.layer, size=each.size) for each in record.volumes
    )
    return Promised(record=record, volumes=volumes, moment=promise)
