"""The keeper of snapshots: the jobs that make, restore, change and delete them.

The moment itself is the guest's task's (``freezing``); what comes before and after is here, so a
guest is never kept from anything while its memory is being written. A snapshot's record is stored
together with the guest's new chain, before anything is frozen; it is READY, and its job done, when
all of it is durable.
"""

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import ExitStack, asynccontextmanager
from typing import Any

import msgspec

from serai.disk.firmware import firmware_name
from serai.disk.volumes import is_empty_head
from serai.engine.collecting import collect, delete_files, drop_all_of, forget_all_of
from serai.engine.driver import GuestDriver
from serai.engine.freezing import check_can_quiesce, freeze
from serai.engine.house import House
from serai.engine.jobs import LiveJob, error_of, interrupted
from serai.engine.moments import Frozen, Moment, Promise, Promised, bringing
from serai.engine.restoring import restore
from serai.engine.running import folder_of
from serai.errors import Busy, Code, Conflict, HostFailure, SeraiError
from serai.model.actions import (
    Action,
    ChangeSnapshot,
    CreateSnapshot,
    DeleteSnapshot,
    RestoreSnapshot,
)
from serai.model.event import EventKind
from serai.model.guest import GuestRecord
from serai.model.image import Image
from serai.model.job import Job
from serai.model.lifecycle import ON_STATES, Deny, Verb, admit
from serai.model.snapshot import (
    FrozenMemory,
    FrozenVolume,
    Layer,
    Snapshot,
    SnapshotRecord,
    SnapshotState,
)
from serai.plan.admission import refusal
from serai.plan.layers import chain
from serai.plan.snapshot import check_memory_fits, pick_name
from serai.store.changes import Change, DropSnapshot, PutSnapshot
from serai.units import check_snapshot_name

log = logging.getLogger(__name__)

CREATE_PHASES = ("freeze", "store")
RESTORE_PHASES = ("prepare", "swap", "start")
DELETE_PHASES = ("delete",)
CHANGE_PHASES = ("change",)
WAITING_LIMIT = 1024

Work = Callable[[LiveJob], Coroutine[Any, Any, None]]


class SnapshotKeeper:
    """All that is done with snapshots. ``find`` gives a guest by name."""

    def __init__(
        self,
        house: House,
        find: Callable[[str], GuestDriver | None],
    ) -> None:
        self._house = house
        self._find = find
        self._under_way: dict[str, LiveJob] = {}
        self._names_coming: set[tuple[str, str]] = set()

    # -- showing -----------------------------------------------------------------------------------

    def all(self, guest: GuestRecord) -> list[Snapshot]:
        """Return a guest's snapshots as a tree: each after its parent."""
        return self._house.shelf.show(guest)

    def one(self, guest: GuestRecord, name_or_id: str) -> Snapshot:
        """Return one; NotFound (``snapshot-not-found``)."""
        found = self._house.shelf.find(guest, name_or_id)
        return next(each for each in self.all(guest) if each.id == found.id)

    def check_usable(self, driver: GuestDriver, name_or_id: str) -> SnapshotRecord:
        """Return a snapshot that can be used now; else say why not, before anything starts."""
        snapshot = self._house.shelf.find(driver.record, name_or_id)
        _check_ready(snapshot, f"the snapshot {snapshot.name} of {driver.name}")
        if snapshot.memory is not None:
            what = f"the snapshot {snapshot.name} of {driver.name}"
            check_memory_fits(snapshot.memory, what, self._house.capabilities)
        return snapshot

    # -- doing -------------------------------------------------------------------------------------

    async def create(self, driver: GuestDriver, action: CreateSnapshot, key: str) -> Job:
        """Make a snapshot, as a job."""
        shelf, guest = self._house.shelf, driver.record
        check_admitted(driver, Verb.SNAPSHOT)
        if action.quiesce:
            check_can_quiesce(driver)
        coming = {name for guest_id, name in self._names_coming if guest_id == guest.id}
        name = check_snapshot_name(action.name or pick_name(shelf.names(guest.id) | coming))
        shelf.check_free(guest, name)
        if name in coming:
            raise Conflict(Code.SNAPSHOT_EXISTS, f"a snapshot {name} is on its way already")
        self._names_coming.add((guest.id, name))

        async def work(job: LiveJob) -> None:
            try:
                await self._create(job, driver, action, name)
            finally:
                self._names_coming.discard((guest.id, name))

        try:
            return await self.begin(action, driver.name, CREATE_PHASES, work, key)
        except BaseException:
            self._names_coming.discard((guest.id, name))
            raise

    async def restore(self, driver: GuestDriver, action: RestoreSnapshot, key: str) -> Job:
        """Put a guest back, as a job."""
        check_admitted(driver, Verb.RESTORE)
        snapshot = self.check_usable(driver, action.snapshot)
        if not action.force:
            self._check_nothing_unsaved(driver)

        async def work(job: LiveJob) -> None:
            await self._restore(job, driver, snapshot)

        return await self.begin(action, driver.name, RESTORE_PHASES, work, key)

    async def change(self, driver: GuestDriver, action: ChangeSnapshot, key: str) -> Job:
        """Give a snapshot another name or note."""
        shelf = self._house.shelf
        snapshot = shelf.find(driver.record, action.snapshot)
        name = snapshot.name if action.name is msgspec.UNSET else check_snapshot_name(action.name)
        if name != snapshot.name:
            shelf.check_free(driver.record, name)
        note = snapshot.note if action.note is msgspec.UNSET else action.note

        async def work(job: LiveJob) -> None:
            now = shelf.snapshots.get(snapshot.id, snapshot)
            changed = msgspec.structs.replace(now, name=name, note=note)
            event = self._event(EventKind.SNAPSHOT_CHANGED, driver, changed)
            await job.finish(PutSnapshot(changed), events=(event,), then=lambda: shelf.put(changed))

        return await self.begin(action, driver.name, CHANGE_PHASES, work, key)

    async def delete(self, driver: GuestDriver, action: DeleteSnapshot, key: str) -> Job:
        """Delete a snapshot; what others stand on stays."""
        snapshot = self._house.shelf.find(driver.record, action.snapshot)
        if snapshot.state is SnapshotState.CREATING:
            raise Conflict(
                Code.SNAPSHOT_STATE,
                f"the snapshot {snapshot.name} is being made",
                hint="Cancel its job: serai job list",
            )

        async def work(job: LiveJob) -> None:
            event = self._event(EventKind.SNAPSHOT_DELETED, driver, snapshot)
            await job.finish(
                *self._forget(snapshot),
                events=(event,),
                then=lambda: self._house.shelf.drop(snapshot),
            )
            await delete_files(self._house, [snapshot])
            await collect(self._house)

        return await self.begin(action, driver.name, DELETE_PHASES, work, key)

    def cancel(self, job_id: str) -> bool:
        """Cancel a job; False when it is none of these that is on its way."""
        job = self._under_way.get(job_id)
        if job is not None:
            job.break_off()
        return job is not None

    def published(self, image: Image) -> SnapshotRecord:
        """Return the snapshot of a published image; Conflict when it can't be taken up here."""
        snapshot = self._house.shelf.snapshots.get(image.snapshot)
        if snapshot is None:
            raise HostFailure(
                Code.SNAPSHOT_CORRUPT, f"the snapshot of the image {image.name} is gone"
            )
        _check_ready(snapshot, f"the snapshot of the image {image.name}")
        if snapshot.memory is not None:
            what = f"the image {image.name}"
            check_memory_fits(snapshot.memory, what, self._house.capabilities)
        return snapshot

    async def forget_owner(self, owner: str) -> None:
        """Delete all snapshots of an image that is gone; guests keep what they stand on."""
        await self._house.journal.commit(*drop_all_of(self._house, owner))
        await forget_all_of(self._house, owner)

    # -- the jobs ----------------------------------------------------------------------------------

    async def begin(
        self, action: Action, subject: str, phases: tuple[str, ...], work: Work, key: str
    ) -> Job:
        """Do ``work`` as a job of its own; what it raises ends the job."""
        if len(self._under_way) >= WAITING_LIMIT:
            raise Busy(Code.QUEUE_FULL, "too many snapshots are on their way")
        job = await self._house.jobs.open(action, subject, phases, key=key)
        self._start(job, self._carry_out(job, work))
        return job.job

    def go_on(self, job: LiveJob, work: Work) -> None:
        """Do the work of a job anew that an earlier daemon left."""
        self._start(job, self._carry_out(job, work))

    def _start(self, job: LiveJob, run: Coroutine[Any, Any, None]) -> None:
        name = f"{job.job.subject}: {job.job.kind}"
        self._under_way[job.id] = job
        job.belongs_to(self._house.supervisor.start(run, name=name))

    async def _carry_out(self, job: LiveJob, work: Work) -> None:
        try:
            await work(job)
        except asyncio.CancelledError as error:
            if not self._house.closing.is_set():
                await job.fail(error_of(error))
        except Exception as error:  # the one place where a failed snapshot becomes an answer
            await job.fail(error_of(error))
        finally:
            self._under_way.pop(job.id, None)

    async def _create(
        self, job: LiveJob, driver: GuestDriver, action: CreateSnapshot, name: str
    ) -> None:
        ready = await self.freeze_for(job, driver, action, driver.record.id, name)
        event = self._event(EventKind.SNAPSHOT_CREATED, driver, ready)
        stayed = driver.record.snapshot == ready.parent  # else it was put back meanwhile
        await job.finish(
            PutSnapshot(ready),
            driver.revise(snapshot=ready.id if stayed else driver.record.snapshot),
            events=(event,),
            results=(ready.id,),
            message=ready.name,
            then=lambda: self._house.shelf.put(ready),
        )

    async def freeze_for(
        self, job: LiveJob, driver: GuestDriver, action: CreateSnapshot, owner: str, name: str
    ) -> SnapshotRecord:
        """Freeze a guest and make all of it durable; return the snapshot, READY but not stored yet.

        On failure nothing of it is left.
        """
        await job.enter("freeze")
        snapshot = SnapshotRecord(
            id=self._house.new_id(),
            name=name,
            guest_id=owner,
            guest=driver.record,
            created_at=self._house.journal.now(),
            note=action.note,
            schedule=action.schedule,
            schedule_id=action.schedule_id,
            quiesced=action.quiesce,
        )
        try:
            frozen = await driver.do(Verb.SNAPSHOT, lambda: self._freeze(driver, action, snapshot))
            try:
                await job.enter("store")
                await self._store_firmware(snapshot.id, frozen)
                memory = await self._store(job, snapshot.id, frozen.moment)
            finally:
                frozen.close()
        except BaseException:
            await self._drop_unfinished(snapshot.id)
            raise
        return msgspec.structs.replace(
            self._house.shelf.snapshots[snapshot.id], state=SnapshotState.READY, memory=memory
        )

    async def _freeze(
        self, driver: GuestDriver, action: CreateSnapshot, snapshot: SnapshotRecord
    ) -> Frozen:
        """In the guest's task: store that the snapshot is coming, freeze, stand the guest on it."""
        shelf = self._house.shelf

        def also(volumes: tuple[FrozenVolume, ...]) -> tuple[Change, ...]:
            coming = msgspec.structs.replace(
                snapshot,
                guest=driver.record,
                parent=driver.record.snapshot if snapshot.guest_id == driver.record.id else "",
                volumes=volumes,
            )
            shelf.put(coming)
            return (PutSnapshot(coming),)

        return await freeze(driver, memory=action.memory, quiesce=action.quiesce, also=also)

    async def _store(
        self, job: LiveJob, snapshot_id: str, moment: Moment | None
    ) -> FrozenMemory | None:
        if moment is None:
            return None
        shelf = self._house.shelf
        async with shelf.storing:
            with shelf.under_way.on(snapshot_id, moment.base):
                return await self._store_memory(job, snapshot_id, moment)

    async def _store_firmware(self, snapshot_id: str, frozen: Frozen) -> None:
        """Keep the firmware's variables; the snapshot on the shelf names them from now on."""
        shelf, name = self._house.shelf, firmware_name(frozen.uefi_vars)
        with self._house.firmware.held(name):
            await asyncio.to_thread(self._house.firmware.put, frozen.uefi_vars)
            shelf.put(msgspec.structs.replace(shelf.snapshots[snapshot_id], firmware=name))

    async def _store_memory(self, job: LiveJob, snapshot_id: str, moment: Moment) -> FrozenMemory:
        house = self._house
        base = await house.bases.find(moment.base)
        if base.id not in house.shelf.bases:
            stored = await house.memory.store_base(
                base.id, base.fd, moment.machine.memory, base.state_fd, job.progress
            )
            house.shelf.bases[base.id] = stored
        own = await house.memory.store(snapshot_id, base.id, moment.pages_fd, moment.state_fd)
        return FrozenMemory(
            id=snapshot_id,
            base=base.id,
            machine=moment.machine,
            qemu_version=house.capabilities.qemu_version,
            accel=house.capabilities.accel,
            processor=house.capabilities.processor,
            size=moment.machine.memory,
            stored=own,
        )

    async def _drop_unfinished(self, snapshot_id: str) -> None:
        """Forget a snapshot that did not become ready; the guest's chain keeps its layer for now."""
        snapshot = self._house.shelf.snapshots.get(snapshot_id)
        if snapshot is None or snapshot.state is not SnapshotState.CREATING:
            return
        self._house.shelf.drop(snapshot)
        try:
            with self._house.shelf.under_way.on(snapshot_id):
                await self._house.journal.commit(DropSnapshot(snapshot_id))
                await asyncio.to_thread(self._house.memory.delete, snapshot_id)
            await delete_files(self._house, [snapshot])
            await collect(self._house)
        except SeraiError as error:
            log.warning("an unfinished snapshot was not removed: %s", error.message)

    # -- restoring ---------------------------------------------------------------------------------

    async def load(self, snapshot: SnapshotRecord) -> Frozen:
        """Return a stored snapshot as it was when it was frozen; all of it is verified.

        Its moment may be still to come, and be what fails. It is to be closed. Raises HostFailure
        (``snapshot-corrupt``) that names what is not as it was stored.
        """
        holding = self._house.shelf.hold(each.layer for each in snapshot.volumes if each.layer)
        try:
            return await self._load(snapshot, holding)
        except BaseException:
            holding.close()
            raise

    async def _load(self, snapshot: SnapshotRecord, holding: ExitStack) -> Frozen:
        shelf, memory = self._house.shelf, snapshot.memory
        uefi_vars = await self._load_disks(snapshot)
        moment = None
        if memory is not None:
            await self._house.bases.find(memory.base)
            moment = self._bring(memory, quiesced=snapshot.quiesced)
        layers = tuple(shelf.layers[each.layer] for each in snapshot.volumes if each.layer)
        return Frozen(
            record=snapshot.guest,
            volumes=snapshot.volumes,
            layers=layers,
            moment=moment,
            uefi_vars=uefi_vars,
            holding=holding,
        )

    @asynccontextmanager
    async def promised(self, snapshot: SnapshotRecord) -> AsyncIterator[Promised]:
        """Give what a fork of a snapshot with memory is going to be, without reading its memory yet.

        Its layers are held in the block. Raises as ``load`` does.
        """
        memory = snapshot.memory
        assert memory is not None
        with self._house.shelf.hold(each.layer for each in snapshot.volumes if each.layer):
            uefi_vars = await self._load_disks(snapshot)
            await self._house.bases.find(memory.base)
            yield Promised(
                record=snapshot.guest,
                volumes=snapshot.volumes,
                moment=Promise(base=memory.base, machine=memory.machine),
                uefi_vars=uefi_vars,
            )

    async def _load_disks(self, snapshot: SnapshotRecord) -> bytes:
        """Verify the layers of a snapshot; return its firmware's variables."""
        self._house.shelf.used[snapshot.id] = self._house.journal.now()
        uefi_vars = await asyncio.to_thread(self._house.firmware.get, snapshot.firmware)
        for volume in snapshot.volumes:
            await self._verify_layers(volume.layer)
        return uefi_vars

    def _bring(self, memory: FrozenMemory, *, quiesced: bool) -> Moment:
        """Begin to read a memory; who takes it up starts a QEMU meanwhile."""
        coming = asyncio.get_running_loop().create_future()
        pages_fd = os.memfd_create("serai-pages", os.MFD_CLOEXEC)
        state_fd = os.memfd_create("serai-state", os.MFD_CLOEXEC)

        async def read() -> None:
            with contextlib.suppress(SeraiError), bringing(coming):  # who waits is told
                await self._house.memory.load(memory.id, pages_fd, state_fd)

        reading = self._house.supervisor.start(read(), name=f"reading memory {memory.id}")
        reading.add_done_callback(lambda _: coming.cancel())  # where it was never begun
        return Moment(
            base=memory.base,
            machine=memory.machine,
            state_fd=state_fd,
            pages_fd=pages_fd,
            quiesced=quiesced,
            coming=coming,
            give_up=reading.cancel,
        )

    async def _verify_layers(self, top: str) -> None:
        """Verify a layer and all below it, as they are then: two may be made one meanwhile."""
        layers, sound = self._house.shelf.layers, set[Layer]()
        while found := [each for each in chain(layers, top) if each not in sound]:
            layer = found[0]
            try:
                await self._house.pools.layers_of(layer).verify(layer)
            except HostFailure:
                if layers.get(layer.id) is layer:
                    raise
            else:
                sound.add(layer)

    async def _restore(self, job: LiveJob, driver: GuestDriver, snapshot: SnapshotRecord) -> None:
        await job.enter("prepare")
        loaded = await self.load(snapshot)
        try:
            await driver.do(Verb.RESTORE, lambda: restore(driver, job, snapshot, loaded))
        finally:
            loaded.close()

    def _check_nothing_unsaved(self, driver: GuestDriver) -> None:
        if driver.state in ON_STATES or not self._stands_untouched(driver):
            raise Conflict(
                Code.UNSAVED_WORK,
                f"what {driver.name} did since its last snapshot would be lost",
                hint="Make a snapshot of it first, or restore with --force.",
            )

    def _stands_untouched(self, driver: GuestDriver) -> bool:
        """Tell whether nothing was written since the last snapshot, or since it was made."""
        return all(
            is_empty_head(folder_of(driver, volume), volume)
            for volume in driver.record.volumes
            if not volume.read_only
        )

    def _forget(self, snapshot: SnapshotRecord) -> tuple[Change, ...]:
        """Return the changes that take a snapshot out: its children move up to its parent."""
        shelf = self._house.shelf
        children = [each for each in shelf.of(snapshot.guest_id) if each.parent == snapshot.id]
        moved = [msgspec.structs.replace(each, parent=snapshot.parent) for each in children]
        for each in moved:
            shelf.put(each)
        return (*map(PutSnapshot, moved), DropSnapshot(snapshot.id))

    # -- at the daemon's start ---------------------------------------------------------------------

    async def take_up(self, job: Job) -> str:
        """End a job that an earlier daemon left; return a sentence that says how."""
        live = self._house.jobs.resume(job)
        if live is None:
            return f"{job.subject}: {job.kind} can't be read, and was given up"
        driver = self._find(job.subject)
        if isinstance(live.action, RestoreSnapshot) and driver and job.phase in ("swap", "start"):
            snapshot = self._house.shelf.find(driver.record, live.action.snapshot)
            work = self._carry_out(live, lambda job: self._restore(job, driver, snapshot))
            self._start(live, work)
            return f"{job.subject}: {job.kind} goes on"
        await live.fail(interrupted(live))
        return f"{job.subject}: {job.kind} was undone"

    async def tidy(self, published: Iterable[str]) -> list[str]:
        """Drop snapshots that did not become ready or lost their guest, and files of nobody.

        Where records can't be read, files and snapshots that seem to be nobody's stay.
        """
        shelf = self._house.shelf
        known = {guest.id for guest in self._house.shelf.guests()} | set(published)
        for snapshot in list(shelf.snapshots.values()):
            if snapshot.guest_id not in known and shelf.is_whole:
                await self.forget_owner(snapshot.guest_id)
        for snapshot in list(shelf.snapshots.values()):
            if snapshot.state is SnapshotState.CREATING:
                await self._drop_unfinished(snapshot.id)
        sentences = await collect(self._house)
        layers = set(shelf.layers) if shelf.is_whole else None
        memories = shelf.memory_ids() if shelf.is_whole else None
        await asyncio.to_thread(self._house.layers.sweep, layers)
        await asyncio.to_thread(self._house.memory.sweep, memories)
        shelf.bases = await asyncio.to_thread(self._house.memory.bases)
        if shelf.is_whole:
            self._house.firmware.keep_only(shelf.firmware_names())
        return sentences

    def _event(self, kind: EventKind, driver: GuestDriver, snapshot: SnapshotRecord) -> Any:
        return self._house.journal.event(
            kind, driver.name, driver.record.id, snapshot=snapshot.name
        )


def owner_of_image(name: str) -> str:
    """Return what stands for a guest's id in the snapshot of a published image."""
    return f"image:{name}"


def _check_ready(snapshot: SnapshotRecord, what: str) -> None:
    """Raise Conflict (``snapshot-state``) with the reason when a snapshot can't be used."""
    if snapshot.state is SnapshotState.CREATING:
        raise Conflict(
            Code.SNAPSHOT_STATE,
            f"{what} is {snapshot.state}",
            hint="Wait until it is ready: serai job list",
        )
    if snapshot.state is SnapshotState.BROKEN:
        why = f": {snapshot.problem.message}" if snapshot.problem else ""
        raise Conflict(
            Code.SNAPSHOT_STATE,
            f"{what} is {snapshot.state}{why}",
            hint="See whether it still is, and what else: serai check",
        )


def check_admitted(driver: GuestDriver, verb: Verb) -> None:
    """Raise the refusal when the guest's state does not allow ``verb``."""
    move = admit(driver.state, verb)
    if isinstance(move, Deny):
        raise refusal(driver.name, driver.state, verb, move.reason)
