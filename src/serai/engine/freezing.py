"""Freezing a guest: its disks and memory at one moment, while it goes on.

Runs in the guest's own task. What is frozen belongs to nobody yet: a snapshot keeps it, a fork
takes it up, or it is dropped. How the disks stay whole whatever happens is told in ``heads``.

How the memory is kept depends on where the guest has it. A guest that was booted has it in a file
that its QEMU maps shared: that file is frozen for good and becomes a *base*, and a second QEMU,
prepared beforehand, goes on with a private mapping of it in the first one's place. A guest with a
private mapping just says which pages it has changed (docs/design/0030).
"""

import asyncio
import contextlib
import dataclasses
import os
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from serai.engine.driver import GuestDriver
from serai.engine.heads import (
    PATIENCE,
    Switched,
    drop_old_heads,
    is_dying,
    new_heads,
    settle_heads,
    store_chain,
    switch,
    take_back,
    wanted_heads,
)
from serai.engine.leading import open_forwards
from serai.engine.meeting import ALONE, Meeting
from serai.engine.moments import Frozen, Moment, bringing
from serai.engine.plugging import finish_plugging
from serai.engine.running import (
    attach,
    confinement_of,
    detach,
    dismiss,
    held_mark,
    machine_of,
    next_run_dir,
    quiet_mark,
    write_running,
)
from serai.errors import Busy, Code, Conflict, HostFailure, SeraiError
from serai.host.supervise import whole
from serai.model.guest import Firmware
from serai.model.lifecycle import GuestState, Happening
from serai.model.machine import Machine
from serai.model.snapshot import FrozenVolume
from serai.plan.machine import UEFI_VARS_NAME
from serai.qemu.instance import Instance, seal_memory
from serai.qemu.saving import Saving
from serai.store.changes import Change

FREEZE_TIMEOUT = 30.0
QUIESCE_TIMEOUT = 10.0
LATE_THAW_TIMEOUT = 3.0


Also = Callable[[tuple[FrozenVolume, ...]], tuple[Change, ...]]
Early = Callable[[Frozen], None]


def nothing_else(_: tuple[FrozenVolume, ...]) -> tuple[Change, ...]:
    """Store nothing else together with the new chain."""
    return ()


async def freeze(
    driver: GuestDriver,
    *,
    memory: bool,
    quiesce: bool,
    also: Also = nothing_else,
    only: Collection[str] | None = None,
    meeting: Meeting = ALONE,
    early: Early | None = None,
) -> Frozen:
    """Freeze the guest; ``also`` gives what is to be stored together with its new chain.

    With ``only`` just those of its volumes get new heads; what is shared read-only never does. At a
    ``meeting`` several guests are frozen at one moment: none goes on before all are held.

    ``early`` gets what will be returned ahead, where all is known of it but the content of its moment.

    What is returned is to be closed, once; what ``early`` got also when the moment never comes. A guest that ran runs on, one that was held stays so. On failure it is as before, and nothing of
    the new chain is left; only where QEMU writes to the new heads already, they stay.
    """
    how = _How(memory=memory, quiesce=quiesce, also=also, only=only, meeting=meeting, early=early)
    ids = [driver.house.new_id() for _ in driver.record.volumes]
    with driver.house.shelf.under_way.on(*ids):
        return await _freeze(driver, ids, how)


@dataclass(frozen=True, slots=True, kw_only=True)
class _How:
    """How a guest is to be frozen: what ``freeze`` was told."""

    memory: bool
    quiesce: bool
    also: Also
    only: Collection[str] | None
    meeting: Meeting
    early: Early | None


async def _freeze(driver: GuestDriver, ids: list[str], how: _How) -> Frozen:
    await settle_heads(driver)
    record = driver.record
    heads = await new_heads(driver, ids, how.only)
    frozen = tuple(
        FrozenVolume(name=each.name, layer=each.layer, size=each.size) for each in heads.volumes
    )
    told: list[Frozen] = []

    def frozen_with(moment: Moment | None, uefi_vars: bytes) -> Frozen:
        return Frozen(
            record=record,
            volumes=frozen,
            layers=tuple(heads.layers),
            moment=moment,
            uefi_vars=uefi_vars,
            holding=driver.house.shelf.hold(each.layer for each in frozen if each.layer),
        )

    def tell_early(moment: Moment) -> bool:
        """Tell of a moment that comes, where nothing else is still to change, or to be taken back."""
        if how.early is None or heads.layers or record.spec.firmware is Firmware.UEFI:
            return False
        told.append(frozen_with(moment, b""))
        how.early(told[0])
        return True

    switched = Switched()
    try:
        if heads.layers or how.also is not nothing_else:
            await store_chain(driver, heads, how.also(frozen))
        driver.is_being_frozen = True  # it is we who hold it: nobody takes it for paused
        moment = await _freeze_running(driver, switched, how, tell_early)
        if moment is not None:
            moment = dataclasses.replace(moment, quiesced=how.quiesce)
    except BaseException:
        if switched.is_unsure and not await is_dying(driver):
            with contextlib.suppress(SeraiError):  # else before it is frozen again
                await settle_heads(driver)
        elif switched.is_unsure or switched.done:
            await drop_old_heads(driver, record)
        else:
            await take_back(driver, record, heads)
        raise
    finally:
        driver.is_being_frozen = False
    await drop_old_heads(driver, record)
    if told:
        return told[0]
    return frozen_with(moment, await asyncio.to_thread(_read_firmware, driver))


def _read_firmware(driver: GuestDriver) -> bytes:
    path = driver.house.places.guests / driver.record.id / UEFI_VARS_NAME
    return path.read_bytes() if path.exists() else b""


# -- the moment ------------------------------------------------------------------------------------


async def _freeze_running(
    driver: GuestDriver, switched: Switched, how: _How, tell_early: Callable[[Moment], bool]
) -> Moment | None:
    instance = driver.instance
    if instance is None:
        await how.meeting.wait_ready()
        await how.meeting.wait_held()
        switched.done = True
        return None
    if how.memory and instance.machine.ram_private:
        return await _freeze_private(driver, instance, switched, how, tell_early)
    async with _quiet(driver, instance, quiesce=how.quiesce):
        if not how.memory:
            await whole(switch(driver, instance, switched), patience=PATIENCE)
            return None
        return await _freeze_shared(driver, instance, switched, how.meeting)


@asynccontextmanager
async def _quiet(driver: GuestDriver, instance: Instance, *, quiesce: bool) -> AsyncIterator[None]:
    """Let no call of the agent cross the moment; with ``quiesce`` its file systems are frozen."""
    if not quiesce:
        async with instance.agent.quiet(QUIESCE_TIMEOUT):
            yield
        return
    quiet_mark(driver).touch()
    try:
        await instance.agent.freeze(timeout=QUIESCE_TIMEOUT)
    except (Busy, HostFailure):  # it was not done
        quiet_mark(driver).unlink(missing_ok=True)
        raise
    except BaseException:  # it may have been
        with contextlib.suppress(SeraiError):
            await instance.agent.thaw(timeout=QUIESCE_TIMEOUT)
            quiet_mark(driver).unlink(missing_ok=True)
        raise
    try:
        async with instance.agent.quiet(QUIESCE_TIMEOUT):
            yield
    finally:
        going_on = driver.instance
        if going_on is not None:
            await going_on.agent.thaw(timeout=QUIESCE_TIMEOUT)
            quiet_mark(driver).unlink(missing_ok=True)


async def _freeze_private(
    driver: GuestDriver,
    instance: Instance,
    switched: Switched,
    how: _How,
    tell_early: Callable[[Moment], bool],
) -> Moment:
    """Hold the guest, switch its heads, save what it changed of its memory, let it go on.

    What is long is done before and after: only then are its file systems frozen, and only for the
    rest it is held.
    """
    base = await driver.house.bases.find(instance.machine.ram, instance)
    coming = asyncio.get_running_loop().create_future()
    state_fd = os.memfd_create("serai-state", os.MFD_CLOEXEC)
    pages_fd = os.memfd_create("serai-pages", os.MFD_CLOEXEC)
    moment = Moment(
        base=base.id,
        machine=instance.machine,
        state_fd=state_fd,
        pages_fd=pages_fd,
        coming=coming,
    )
    is_anothers = tell_early(moment)
    try:
        with bringing(coming):
            async with instance.saving(FREEZE_TIMEOUT) as saving:
                async with _quiet(driver, instance, quiesce=how.quiesce):
                    await how.meeting.wait_ready()
                    await saving.catch_up()
                    take = _take(driver, instance, switched, how.meeting, saving, pages_fd)
                    await whole(take, patience=PATIENCE)
                await saving.finish(base.state_fd, state_fd, pages_fd)
    except BaseException:
        if not is_anothers:
            moment.close()
        raise
    return dataclasses.replace(moment, machine=instance.machine)


async def _take(
    driver: GuestDriver,
    instance: Instance,
    switched: Switched,
    meeting: Meeting,
    saving: Saving,
    pages_fd: int,
) -> None:
    """Take the moment itself: disks and memory, while the guest is held."""
    async with _held(driver, instance):
        await meeting.wait_held()
        await switch(driver, instance, switched)
        await saving.take(pages_fd)


@asynccontextmanager
async def _held(driver: GuestDriver, instance: Instance) -> AsyncIterator[None]:
    """Hold the guest's processors; one that ran goes on afterwards, come what may."""
    if driver.state is not GuestState.RUNNING:
        yield
        return
    held_mark(driver).touch()  # so that the next daemon lets it go on
    try:
        await instance.hold()
        yield
    finally:
        await _let_go_on(driver, instance)


async def _let_go_on(driver: GuestDriver, instance: Instance) -> None:
    await instance.go_on()
    held_mark(driver).unlink(missing_ok=True)


async def finish_freeze(driver: GuestDriver, instance: Instance) -> str:
    """Finish what an earlier daemon had begun with a running guest: its heads, and that it runs.

    Returns what was done, as the end of a sentence. The same for disks that were being plugged.
    """
    said = await finish_plugging(driver, instance)
    if instance.machine.ram_private:
        instance.seal_base()  # before another freeze of it asks for that
    heads = wanted_heads(driver) if instance.machine.drives else {}
    if heads and await instance.finish_switch(heads, FREEZE_TIMEOUT):
        write_running(driver, instance)
        said += "; its disks were switched to new heads"
    if held_mark(driver).exists():
        await _let_go_on(driver, instance)
        driver.happen(Happening.WENT_ON)
        said += "; it was held, and goes on"
    if quiet_mark(driver).exists():
        said += await _thaw_late(driver, instance)
    return said


async def _thaw_late(driver: GuestDriver, instance: Instance) -> str:
    """Let file systems go on that an earlier daemon had frozen; thawed ones are not harmed."""
    try:
        await instance.agent.thaw(timeout=LATE_THAW_TIMEOUT)
    except SeraiError as error:
        return f"; its file systems may still be frozen: {error.message}"
    quiet_mark(driver).unlink(missing_ok=True)
    return "; its file systems were thawed"


async def _freeze_shared(
    driver: GuestDriver, old: Instance, switched: Switched, meeting: Meeting
) -> Moment:
    """Make a base of the guest's memory; a second QEMU goes on with the guest."""
    house = driver.house
    fd = old.memory_fd()
    state_fd = os.memfd_create("serai-state", os.MFD_CLOEXEC)
    try:
        with house.shelf.openers.opening(), old.tap_fds() as taps:
            machine = dataclasses.replace(
                old.machine,
                drives=machine_of(driver).drives,
                ram_private=True,
                boots=not driver.agent_answered.is_set(),
            )
            upcoming = await _prepare(driver, machine, fd, taps)
        change = _change_over(driver, old, upcoming, switched, meeting, state_fd)
        try:
            await whole(change, patience=PATIENCE)
        finally:
            if switched.done:
                seal_memory(fd)
    except BaseException:
        os.close(fd)
        os.close(state_fd)
        raise
    base = house.bases.add(machine.ram, fd, state_fd)
    return Moment(base=base.id, machine=machine, state_fd=os.dup(state_fd), pages_fd=None)


async def _change_over(
    driver: GuestDriver,
    old: Instance,
    upcoming: Instance,
    switched: Switched,
    meeting: Meeting,
    state_fd: int,
) -> None:
    """Have the second QEMU go on where the first one stops."""
    try:
        await meeting.wait_ready()
        if driver.state is GuestState.RUNNING:
            held_mark(driver).touch()
        await old.freeze_shared(state_fd, FREEZE_TIMEOUT)
        await meeting.wait_held()
        await upcoming.take_state(state_fd, None, FREEZE_TIMEOUT)
        driver.house.bases.keep_state(upcoming.machine.ram, state_fd)
        write_running(driver, upcoming)
        if driver.state is GuestState.RUNNING:
            await _let_go_on(driver, upcoming)
    except BaseException:
        await _stay(driver, old, upcoming)
        raise
    switched.done = True
    await _take_over(driver, old, upcoming)


async def _prepare(
    driver: GuestDriver, machine: Machine, fd: int, taps: Mapping[str, int]
) -> Instance:
    house = driver.house
    return await Instance.prepare(
        machine,
        memory_fd=fd,
        taps=taps,
        capabilities=house.capabilities,
        run_dir=next_run_dir(driver),
        state_dir=house.places.guests / driver.record.id,
        confinement=confinement_of(driver, machine),
        timeout=house.settings.start_timeout,
    )


async def _stay(driver: GuestDriver, old: Instance, upcoming: Instance) -> None:
    """The second QEMU can't take over: the first one goes on."""
    write_running(driver, old)
    await upcoming.end(0.0)
    await dismiss(driver, upcoming)
    if driver.state is GuestState.RUNNING:
        await _let_go_on(driver, old)


async def _take_over(driver: GuestDriver, old: Instance, upcoming: Instance) -> None:
    """Put the second QEMU in the first one's place, and end that."""
    agent = driver.agent_state
    upcoming.take_agent(old)
    await detach(driver)
    attach(driver, upcoming, agent=agent)
    await old.end(0.0)
    await dismiss(driver, old)
    await open_forwards(driver)


def check_can_quiesce(driver: GuestDriver) -> None:
    """Raise Conflict (``agent-unavailable``) when no agent could freeze the file systems."""
    if driver.instance is not None and not driver.agent_answered.is_set():
        raise Conflict(
            Code.AGENT_UNAVAILABLE,
            f"the agent of {driver.name} does not answer, so its file systems can't be frozen",
            hint="Leave --quiesce out: disks and memory are one moment without it.",
        )
