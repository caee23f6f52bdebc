"""Freezing a guest: its disks and memory at one moment, while it goes on.

Runs in the guest's own task. What is frozen belongs to nobody yet: a snapshot keeps it, a fork
takes it up, or it is dropped. How the disks stay whole whatever happens:

    new heads made, old ones linked as layers     nobody knows of them yet
    the guest's new chain is stored               an empty head over the old one: the same content
    QEMU writes to the new heads                  the moment
    the old heads' own names are removed

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
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from serai.disk.volumes import drop_head, new_head
from serai.engine.driver import GuestDriver
from serai.engine.house import House
from serai.engine.leading import open_forwards
from serai.engine.meeting import ALONE, Meeting
from serai.engine.moments import Frozen, Moment, bringing
from serai.engine.plugging import finish_plugging
from serai.engine.running import (
    attach,
    confinement_of,
    detach,
    dismiss,
    folder_of,
    held_mark,
    machine_of,
    next_run_dir,
    quiet_mark,
    write_running,
)
from serai.errors import Busy, Code, Conflict, HostFailure, SeraiError
from serai.host.supervise import whole
from serai.model.guest import Firmware, GuestRecord, Volume
from serai.model.lifecycle import GuestState, Happening
from serai.model.machine import LayerFile, Machine
from serai.model.snapshot import FrozenVolume, Layer
from serai.plan.machine import UEFI_VARS_NAME
from serai.plan.volume import layer_pool
from serai.qemu.instance import Instance, seal_memory
from serai.qemu.saving import Saving
from serai.store.changes import Change, DropLayer, PutGuest, PutLayer

FREEZE_TIMEOUT = 30.0
PATIENCE = 3.0
"""How long a moment may still take that nobody wants any more, in seconds."""
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
    await _settle_heads(driver)
    record = driver.record
    heads = await _new_heads(driver, ids, how.only)
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

    switched = _Switched()
    try:
        if heads.layers or how.also is not nothing_else:
            await _store(driver, heads, how.also(frozen))
        driver.is_being_frozen = True  # it is we who hold it: nobody takes it for paused
        moment = await _freeze_running(driver, switched, how, tell_early)
        if moment is not None:
            moment = dataclasses.replace(moment, quiesced=how.quiesce)
    except BaseException:
        if switched.is_unsure:
            with contextlib.suppress(SeraiError):  # else before it is frozen again
                await _settle_heads(driver)
        elif switched.done:
            await _drop_old_heads(driver, record)
        else:
            await _take_back(driver, record, heads)
        raise
    finally:
        driver.is_being_frozen = False
    await _drop_old_heads(driver, record)
    if told:
        return told[0]
    return frozen_with(moment, await asyncio.to_thread(_read_firmware, driver))


def _read_firmware(driver: GuestDriver) -> bytes:
    path = driver.house.places.guests / driver.record.id / UEFI_VARS_NAME
    return path.read_bytes() if path.exists() else b""


# -- the chain -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Heads:
    """The volumes with their new heads, and the layers that the old ones are."""

    volumes: list[Volume] = field(default_factory=list)
    layers: list[Layer] = field(default_factory=list)


@dataclass(slots=True)
class _Switched:
    """Whether QEMU writes to the new heads, or may do so."""

    done: bool = False
    is_unsure: bool = False


async def _new_heads(driver: GuestDriver, ids: list[str], only: Collection[str] | None) -> _Heads:
    """Make the new heads, and layers called ``ids`` of the old ones; the files only.

    On failure, and when cancelled, none of them is left.
    """
    heads = _Heads()
    try:
        await whole(_make_heads(driver, ids, only, heads), patience=PATIENCE)
    except BaseException:
        await asyncio.to_thread(_remove_heads, driver, heads)
        raise
    return heads


async def _make_heads(
    driver: GuestDriver, ids: list[str], only: Collection[str] | None, heads: _Heads
) -> None:
    for old, layer_id in zip(driver.record.volumes, ids, strict=True):
        if old.read_only or (only is not None and old.name not in only):
            heads.volumes.append(old)
            continue
        on_image = not old.layer and not old.port
        digest = driver.record.image_digest if on_image else ""
        folder = folder_of(driver, old)
        head, layer = await freeze_file(driver.house, folder, old, layer_id, digest)
        heads.volumes.append(head)
        heads.layers.append(layer)


async def freeze_file(
    house: House, folder: Path, old: Volume, layer_id: str, image_digest: str = ""
) -> tuple[Volume, Layer]:
    """Make the layer ``layer_id`` of a volume's head, and a new head over it; return both. Files only.

    Nobody knows of them yet, and a QEMU may go on writing to the old head. On failure neither is left;
    it is not to be cancelled. Size and layer of the volume
    are those that the new head has. The caller has the layer's id ``under_way``.
    """
    layers = house.pools.layers(old.pool)
    await asyncio.to_thread(layers.freeze_head, folder / old.head, layer_id)
    try:
        head = await asyncio.to_thread(new_head, folder, old, layer_id[:8])
    except BaseException:
        await asyncio.to_thread(layers.delete, layer_id)
        raise
    layer = Layer(
        id=layer_id,
        parent=old.layer,
        image_digest=image_digest,
        virtual_size=head.size,
        size=layers.size(layer_id),
        created_at=house.journal.now(),
        pool=layer_pool(old.pool),
    )
    return msgspec.structs.replace(head, layer=layer_id), layer


async def _store(driver: GuestDriver, heads: _Heads, more: tuple[Change, ...]) -> None:
    """Store the new chain, before anything is written to it."""
    # known together, at every moment: what a layer stands on that is not known seems to be needed by nobody
    driver.house.shelf.layers.update({layer.id: layer for layer in heads.layers})
    change = driver.revise(volumes=tuple(heads.volumes))
    await driver.house.journal.commit(*map(PutLayer, heads.layers), change, *more)


async def _take_back(driver: GuestDriver, before: GuestRecord, heads: _Heads) -> None:
    """Give the guest its old chain again: nothing was written to the new heads."""
    driver.revise(volumes=before.volumes)
    with contextlib.suppress(SeraiError):  # else the longer chain stays, with the same content
        drops = [DropLayer(layer.id) for layer in heads.layers]
        await driver.house.journal.commit(PutGuest(driver.record), *drops)
        await asyncio.to_thread(_remove_heads, driver, heads)


def _remove_heads(driver: GuestDriver, heads: _Heads) -> None:
    made = {layer.id for layer in heads.layers}
    for volume in heads.volumes:
        if volume.layer in made:
            drop_head(folder_of(driver, volume), volume)
    for layer in heads.layers:
        driver.house.shelf.layers.pop(layer.id, None)
        driver.house.pools.layers_of(layer).delete(layer.id)


async def _drop_old_heads(driver: GuestDriver, before: GuestRecord) -> None:
    """Remove the old heads' own names; as layers they have others."""
    kept = {volume.head for volume in driver.record.volumes}
    for volume in before.volumes:
        if not volume.read_only and volume.head not in kept:
            await asyncio.to_thread(drop_head, folder_of(driver, volume), volume)


# -- the moment ------------------------------------------------------------------------------------


async def _freeze_running(
    driver: GuestDriver, switched: _Switched, how: _How, tell_early: Callable[[Moment], bool]
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
            await whole(_switch(driver, instance, switched), patience=PATIENCE)
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


async def _switch(driver: GuestDriver, instance: Instance, switched: _Switched) -> None:
    """Have QEMU write to the new heads from now on."""
    now = {each.name: each.chain[0].path for each in instance.machine.drives if each.chain}
    wanted = _wanted_heads(driver)
    heads = {name: head for name, head in wanted.items() if now.get(name, head.path) != head.path}
    if heads:
        switched.is_unsure = True
        try:
            await instance.switch_heads(heads, FREEZE_TIMEOUT)
        except HostFailure:
            switched.is_unsure = False
            raise
    switched.done, switched.is_unsure = True, False
    write_running(driver, instance)


async def _settle_heads(driver: GuestDriver) -> None:
    """Have QEMU write to the heads that the record names, where nobody could say whether it does.

    Until then the old heads keep their own names: what they are as layers is not still.
    """
    instance = driver.instance
    if instance is None:
        return
    wanted = _wanted_heads(driver)
    old = [
        drive.chain[0].path
        for drive in instance.machine.drives
        if drive.name in wanted and drive.chain[0].path != wanted[drive.name].path
    ]
    if not old:
        return
    await instance.finish_switch(wanted, FREEZE_TIMEOUT)
    write_running(driver, instance)
    for path in old:
        await asyncio.to_thread(Path(path).unlink, missing_ok=True)


def _wanted_heads(driver: GuestDriver) -> dict[str, LayerFile]:
    """Return the head of each drive as the guest's record has it."""
    return {
        drive.name: drive.chain[0]
        for drive in machine_of(driver).drives
        if drive.chain and not drive.chain[0].read_only
    }


async def _freeze_private(
    driver: GuestDriver,
    instance: Instance,
    switched: _Switched,
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
    switched: _Switched,
    meeting: Meeting,
    saving: Saving,
    pages_fd: int,
) -> None:
    """Take the moment itself: disks and memory, while the guest is held."""
    async with _held(driver, instance):
        await meeting.wait_held()
        await _switch(driver, instance, switched)
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
    heads = _wanted_heads(driver) if instance.machine.drives else {}
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
    driver: GuestDriver, old: Instance, switched: _Switched, meeting: Meeting
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
    switched: _Switched,
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
