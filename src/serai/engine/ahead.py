"""Machines that are made ahead of anybody's asking, of either kind (``plan.pool.Kind``).

A ready one is a guest in everything but a name: it runs, under an id, a uid, a MAC address and a
random seed of its own, and knows them; so its clock is right, and what is left to do is to call it
something. A started one is a fork whose moment is a promise: its birth is under way, and has come to
where a moment is needed. Both are in the house like every guest, with a record that says ``POOL``.
"""

import asyncio
import contextlib
import secrets
from dataclasses import dataclass

from serai.engine.births import NONCE_BYTES, bring_to_life
from serai.engine.driver import GuestDriver
from serai.engine.moments import Frozen, Promise, Promised, Template
from serai.engine.procedures import remove_guest
from serai.errors import Busy, Code, Conflict, SeraiError
from serai.model.guest import AgentState, Firmware
from serai.model.image import Expect
from serai.model.lifecycle import GuestState
from serai.model.snapshot import FrozenVolume
from serai.plan.pool import Kind, Stock
from serai.plan.reborn import as_name_line
from serai.qemu.instance import Instance

HOST_NAME = "/proc/sys/kernel/hostname"
HOST_NAME_FILE = "/etc/hostname"
LARGEST_NAME_FILE = 256
NAMING_LIMIT = 2.0
"""One that does not answer by then is slower than a new one."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReadySpare:
    """A guest that waits for a name: at the port where it was told all else, or by its agent.

    ``source`` is a snapshot's id. ``handle`` is for an agent: its host name's file, opened ahead.
    ``has_name_file``: the name also stands in a file, which every later boot reads.
    """

    driver: GuestDriver
    source: str
    handle: int | None = None
    has_name_file: bool = False

    @property
    def stock(self) -> Stock:
        """What it is one of."""
        return Stock(self.source, Kind.READY)

    @property
    def is_usable(self) -> bool:
        """True while it runs and its agent answers."""
        return (
            self.driver.state is GuestState.RUNNING
            and self.driver.agent_state is AgentState.ANSWERING
        )

    async def name(self, name: str) -> None:
        """Tell the guest inside what it is called; in its own task.

        Raises TimeoutError, or what the agent or the port does that it is told at.
        """
        instance = self.driver.instance
        if instance is None:
            raise Conflict(Code.GUEST_STATE, "the spare has ended")
        if self.handle is None:
            await _tell_name(instance, name)
            return
        line = f"{name}\n".encode()
        async with asyncio.timeout(NAMING_LIMIT):
            await instance.agent.write_opened(self.handle, line)
            if self.has_name_file:
                file = await instance.agent.open_file(HOST_NAME_FILE)
                await instance.agent.write_opened(file, line)

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
    """Let a new guest be what was frozen, and do ahead all that can be.

    Raises as ``bring_to_life`` does; Conflict (``agent-unavailable``) when no agent answers.
    """
    await driver.do_first(lambda: bring_to_life(driver, frozen, keep_identity=False))
    instance = driver.instance
    if (
        driver.image.agent is Expect.NO
        or instance is None
        or driver.agent_state is not AgentState.ANSWERING
    ):
        raise Conflict(Code.AGENT_UNAVAILABLE, "no agent answers in it")
    with contextlib.suppress(SeraiError):
        await _tell_name(instance, driver.name)
        return ReadySpare(driver=driver, source=source)
    found = b""
    with contextlib.suppress(SeraiError):
        async for chunk in instance.agent.read_file(HOST_NAME_FILE):
            found += chunk[:LARGEST_NAME_FILE]
            break
    handle = await instance.agent.open_file(HOST_NAME)
    return ReadySpare(
        driver=driver, source=source, handle=handle, has_name_file=bool(found.strip())
    )


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
    firmware; and its memory has to be a base's (docs/design/0030).
    """
    instance, record = source.instance, source.record
    if (
        source.state is not GuestState.RUNNING
        or instance is None
        or not instance.machine.ram_private
        or record.spec.firmware is Firmware.UEFI
        or not all(each.read_only for each in record.volumes)
    ):
        return None
    promise = Promise(base=instance.machine.ram, machine=instance.machine)
    volumes = tuple(
        FrozenVolume(name=each.name, layer=each.layer, size=each.size) for each in record.volumes
    )
    return Promised(record=record, volumes=volumes, moment=promise)


async def _tell_name(instance: Instance, name: str) -> None:
    """Tell a name where the guest was told who it is; raises as ``Instance.hear_reborn`` does.

    Also where what waits there is older than this, and does not answer.
    """
    if not await instance.waits_to_be_told():
        raise Busy(Code.AGENT_UNAVAILABLE, "nothing in it waits to be told a name")
    nonce = secrets.token_hex(NONCE_BYTES)
    instance.say_reborn(as_name_line(name, nonce))
    await instance.hear_reborn(nonce, NAMING_LIMIT)
