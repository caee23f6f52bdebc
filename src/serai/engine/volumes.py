"""The keeper of volumes: the jobs that make, attach, change and delete them.

One thing at a time is done with a volume: whoever begins holds its lock. What concerns a guest that has
it runs in that guest's task (``plugging``), which never waits for a lock, so the two can't wait for
each other. A volume's files are made before its record and go after it; what a power cut leaves
in between is swept when the daemon starts. Moments of volumes are
``volume_moments``', copies ``volume_copies``'.
"""

import asyncio
import itertools
import shutil
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import msgspec

from serai.disk.exporting import part_of
from serai.disk.volumes import drop_head, grow_volume, make_head
from serai.engine.collecting import collect
from serai.engine.driver import GuestDriver
from serai.engine.house import House
from serai.engine.jobs import LiveJob, interrupted
from serai.engine.plugging import change_entry, drive_name, limit_here, plug_in, pull_out
from serai.engine.running import folder_of
from serai.engine.snapshots import SnapshotKeeper, check_admitted
from serai.engine.volume_moments import bare, settle
from serai.errors import Code, Conflict, Invalid, NotFound, SeraiError
from serai.model.actions import (
    AttachVolume,
    ChangeVolume,
    CreateVolume,
    DeleteVolume,
    DetachVolume,
    ExportVolume,
)
from serai.model.event import Event, EventKind
from serai.model.guest import GuestRecord
from serai.model.job import Job
from serai.model.lifecycle import Verb
from serai.model.volume import (
    DEFAULT_POOL,
    Limits,
    VolumeInfo,
    VolumeRecord,
    VolumeWish,
)
from serai.plan.volume import (
    Usage,
    check_attach,
    check_detachable,
    check_free,
    check_growth,
    check_limits,
    check_room,
    check_serial,
    current,
    default_serial,
    entry_of,
    find_entry,
    head_stem,
    readers_of,
    round_size,
    view_volume,
)
from serai.store.changes import Change, DropVolume, PutVolume
from serai.units import check_volume_name, shorten

Find = Callable[[str], GuestDriver]


class VolumeKeeper:
    """All that is done with volumes. ``find`` gives a guest by name or id, or raises NotFound."""

    def __init__(self, house: House, snapshots: SnapshotKeeper, find: Find) -> None:
        self._house = house
        self._snapshots = snapshots
        self._find = find
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._names_coming: set[str] = set()

    # -- showing -----------------------------------------------------------------------------------

    def all(self) -> list[VolumeInfo]:
        """Return all volumes by name."""
        shelf, guests = self._house.shelf, self.guests()
        records = [current(each, guests) for each in shelf.volumes.values()]
        heads = {each.id: self._house.pools.head_size(bare(each)) for each in records}
        usage = Usage(shelf.layers, shelf.tops(), heads)
        shown = [view_volume(each, guests, usage) for each in records]
        return sorted(shown, key=lambda each: each.name)

    def one(self, name_or_id: str) -> VolumeInfo:
        """Return one; NotFound (``volume-not-found``)."""
        volume = self._house.shelf.find_volume(name_or_id)
        return next(each for each in self.all() if each.id == volume.id)

    def guests(self) -> list[GuestRecord]:
        """Return the records of all guests."""
        return list(self._house.shelf.guests())

    # -- making ------------------------------------------------------------------------------------

    async def create(self, action: CreateVolume, key: str) -> Job:
        """Make an empty volume, as a job."""
        record = self.new_record(
            action.name, action.size, action.pool, serial=action.serial, limits=action.limits
        )
        record = msgspec.structs.replace(record, note=action.note)

        async def work(job: LiveJob) -> None:
            await self.make(job, record)

        return await self.begin_new(action, record, ("create",), work, key)

    def new_record(
        self,
        name: str,
        size: int,
        pool: str,
        *,
        serial: str = "",
        limits: Limits | None = None,
    ) -> VolumeRecord:
        """Return the record of a new volume; refuses what can be seen to be wrong."""
        check_volume_name(name)
        self.check_name_free(name)
        record = self._record(name, round_size(size), pool, serial=serial, limits=limits)
        self.check_room(record.pool, record.size)
        return record

    def _record(
        self, name: str, size: int, pool: str, *, serial: str = "", limits: Limits | None = None
    ) -> VolumeRecord:
        volume_id = self._house.new_id()
        record = VolumeRecord(
            id=volume_id,
            name=name,
            pool=self.check_pool(pool),
            created_at=self._house.journal.now(),
            size=size,
            head="",
            serial=check_serial(serial) if serial else default_serial(volume_id),
            limits=check_limits(limits or Limits()),
        )
        return msgspec.structs.replace(record, head=f"{head_stem(bare(record))}.qcow2")

    def record_for(self, guest_id: str, name: str, size: int) -> VolumeRecord:
        """Return the record of a new volume that is made for a guest, and goes if that never is."""
        self.check_room(DEFAULT_POOL, size)
        record = self._record(name, size, DEFAULT_POOL)
        return msgspec.structs.replace(record, made_for=guest_id, attached_to=guest_id)

    @contextmanager
    def names_for(self, guest: str, count: int) -> Iterator[list[str]]:
        """Take ``count`` free names after a guest's within the block: ``web1-1``, ``web1-2``, …"""
        taken = {each.name for each in self._house.shelf.volumes.values()} | self._names_coming
        free = (name for n in itertools.count(1) if (name := f"{guest[:56]}-{n}") not in taken)
        names = list(itertools.islice(free, count))
        self._names_coming.update(names)
        try:
            yield names
        finally:
            self._names_coming.difference_update(names)

    def check_name_free(self, name: str) -> None:
        """Raise Conflict (``volume-exists``) unless a new volume may have that name."""
        names = {each.name for each in self._house.shelf.volumes.values()}
        if name in names | self._names_coming:
            raise Conflict(
                Code.VOLUME_EXISTS,
                f"there is a volume {name} already, or it is on its way",
                hint="Choose another name; see which there are: serai volume list",
            )

    def check_pool(self, name: str) -> str:
        """Return the name of a pool that can be used; NotFound, HostFailure (``pool-unavailable``)."""
        if name != DEFAULT_POOL and name not in self._house.shelf.pools:
            raise NotFound(
                Code.POOL_NOT_FOUND,
                f"there is no pool {shorten(name)}",
                hint="See which there are: serai pool list",
            )
        self._house.pools.heads(name)
        return name

    def check_room(self, pool: str, size: int, used: int = 0) -> None:
        """Raise HostFailure (``pool-full``) unless the pool has room."""
        _, free = self._house.pools.room(pool, self._house.settings.disk_reserve)
        check_room(size, used, free, pool)

    async def make(self, job: LiveJob, record: VolumeRecord) -> None:
        """Make the file of a new volume, over its layer, and store it; on failure nothing is left."""
        folder = self._house.pools.heads(record.pool)
        try:
            await asyncio.to_thread(make_head, folder, bare(record))
            await self.keep_new(job, record)
        except Exception:  # cancelled, nobody knows whether it is stored: it is swept later if not
            await asyncio.to_thread(drop_head, folder, bare(record))
            raise

    async def keep_new(self, job: LiveJob, record: VolumeRecord, *more: Change) -> None:
        """End the job with a new volume, whose file is there."""
        await job.finish(
            *more,
            PutVolume(record),
            events=(self._event(EventKind.VOLUME_CREATED, record),),
            results=(record.id,),
            message=record.name,
            then=lambda: self._keep(record),
        )

    async def begin_new(
        self,
        action: Any,
        record: VolumeRecord,
        phases: tuple[str, ...],
        work: Callable[[LiveJob], Coroutine[Any, Any, None]],
        key: str,
    ) -> Job:
        """Do ``work`` as a job, the name of the new volume being taken meanwhile."""
        self._names_coming.add(record.name)

        async def working(job: LiveJob) -> None:
            try:
                await work(job)
            finally:
                self._names_coming.discard(record.name)

        try:
            return await self._snapshots.begin(action, record.name, phases, working, key)
        except BaseException:
            self._names_coming.discard(record.name)
            raise

    def _keep(self, record: VolumeRecord) -> None:
        self._house.shelf.volumes[record.id] = record

    # -- attaching ---------------------------------------------------------------------------------

    async def attach(self, action: AttachVolume, key: str) -> Job:
        """Give a guest a volume, as a job."""
        driver, volume = self._find(action.guest), self._house.shelf.find_volume(action.volume)
        check_boot(action.boot)
        check_admitted(driver, Verb.SET)
        check_attach(volume, self.guests(), driver.record, read_only=action.read_only)

        async def work(job: LiveJob) -> None:
            job.hold()  # half an attaching can't be undone: the guest may use it
            async with self.lock(volume.id):
                await self._attach(job, driver, volume.id, action)

        return await self._snapshots.begin(action, volume.name, ("attach",), work, key)

    async def _attach(
        self, job: LiveJob, driver: GuestDriver, volume_id: str, action: AttachVolume
    ) -> None:
        volume = self._house.shelf.find_volume(volume_id)
        if action.read_only:
            check_attach(volume, self.guests(), driver.record, read_only=True)
            volume = await settle(self._house, volume)
        await driver.do(
            Verb.SET,
            lambda: plug_in(driver, volume, read_only=action.read_only, boot=action.boot),
        )
        how = "reads" if action.read_only else "has"
        event = self._event(EventKind.VOLUME_ATTACHED, volume, guest=driver.name)
        await job.finish(events=(event,), message=f"{driver.name} {how} {volume.name}")

    async def detach(self, action: DetachVolume, key: str) -> Job:
        """Take a volume from a guest, as a job."""
        driver = self._holder(action)
        entry = find_entry(driver.record, action.volume)
        check_detachable(driver.record, entry)
        check_admitted(driver, Verb.SET)
        volume = self._house.shelf.find_volume(entry.id)

        work = partial(self._detach, driver, volume)
        return await self._snapshots.begin(action, volume.name, ("detach",), work, key)

    async def _detach(self, driver: GuestDriver, volume: VolumeRecord, job: LiveJob) -> None:
        job.hold()
        async with self.lock(volume.id):
            await driver.do(Verb.SET, lambda: pull_out(driver, volume.id))
            event = self._event(EventKind.VOLUME_DETACHED, volume, guest=driver.name)
            await job.finish(events=(event,), message=f"{driver.name} has let it go")
            await collect(self._house)

    def _holder(self, action: DetachVolume) -> GuestDriver:
        """Return the guest that a volume is to be taken from."""
        if action.guest:
            return self._find(action.guest)
        volume = self._house.shelf.find_volume(action.volume)
        holders = [each for each in self.guests() if entry_of(each, volume.id)]
        if len(holders) > 1:
            raise Invalid(
                Code.VALUE_INVALID,
                f"{len(holders)} guests have the volume {volume.name}",
                hint=f"Say which: serai volume detach {volume.name} GUEST",
            )
        if not holders:
            raise Conflict(
                Code.VOLUME_NOT_ATTACHED, f"no guest has the volume {volume.name}: nothing to do"
            )
        return self._find(holders[0].id)

    async def furnish(self, driver: GuestDriver, wishes: Iterable[VolumeWish]) -> None:
        """Attach what a new guest asked for, before it starts; in its own task, while it is made."""
        for number, wish in enumerate(wishes, 1):
            await self._make_for(driver, wish, number)

    async def _make_for(self, driver: GuestDriver, wish: VolumeWish, number: int) -> None:
        if not wish.size:
            volume = self._house.shelf.find_volume(wish.name)
            async with self.lock(volume.id):
                now = self._house.shelf.find_volume(volume.id)
                if wish.read_only:
                    check_attach(now, self.guests(), driver.record, read_only=True)
                    now = await settle(self._house, now)
                await plug_in(driver, now, read_only=wish.read_only, boot=wish.boot)
            return
        name = wish.name or f"{driver.name}-{number}"
        record = self.new_record(name, wish.size, wish.pool)
        record = msgspec.structs.replace(record, made_for=driver.record.id)
        folder = self._house.pools.heads(record.pool)
        await asyncio.to_thread(make_head, folder, bare(record))
        # the record comes with the commit of the guest's own: nobody ever finds a half of it
        await plug_in(driver, record, read_only=False, boot=wish.boot)
        self._house.journal.tell(self._event(EventKind.VOLUME_CREATED, record))

    def check_wishes(self, wishes: Iterable[VolumeWish], guest: GuestRecord) -> None:
        """Refuse, before anything is made, what a new guest can't get."""
        for wish in wishes:
            check_boot(wish.boot)
            if wish.size:
                if wish.read_only:
                    raise Invalid(
                        Code.VALUE_INVALID, "an empty volume that is only read is of no use"
                    )
                if wish.name:
                    check_volume_name(wish.name)
                    self.check_name_free(wish.name)
                self.check_room(self.check_pool(wish.pool), round_size(wish.size))
            else:
                volume = self._house.shelf.find_volume(wish.name)
                check_attach(volume, self.guests(), guest, read_only=wish.read_only)

    # -- changing ----------------------------------------------------------------------------------

    async def change(self, action: ChangeVolume, key: str) -> Job:
        """Grow, limit or note, as a job."""
        volume = current(self._house.shelf.find_volume(action.volume), self.guests())
        if all(each is msgspec.UNSET for each in (action.size, action.limits, action.note)):
            raise Invalid(
                Code.VALUE_INVALID, "nothing to change", hint="Name what: size, limits or note."
            )
        if action.limits is not msgspec.UNSET:
            check_limits(action.limits)
        if action.size is not msgspec.UNSET:
            size = round_size(action.size)
            check_growth(volume.name, volume.size, size)
            if readers_of(volume, self.guests()):
                check_free(volume, self.guests(), "grow")
            self.check_room(volume.pool, size, self.one(volume.id).own)

        work = partial(self._change, volume.id, action)
        return await self._snapshots.begin(action, volume.name, ("change",), work, key)

    async def _change(self, volume_id: str, action: ChangeVolume, job: LiveJob) -> None:
        job.hold()
        async with self.lock(volume_id):
            await self._change_now(volume_id, action, job)

    async def _change_now(self, volume_id: str, action: ChangeVolume, job: LiveJob) -> None:
        if action.size is not msgspec.UNSET:
            await self._grow(volume_id, round_size(action.size))
        if action.limits is not msgspec.UNSET:
            await self._limit(volume_id, action.limits)
        volume = self._house.shelf.find_volume(volume_id)
        if action.note is not msgspec.UNSET:
            volume = msgspec.structs.replace(volume, note=action.note, version=volume.version + 1)
        event = self._event(EventKind.VOLUME_CHANGED, volume)
        await job.finish(PutVolume(volume), events=(event,), then=lambda: self._keep(volume))

    async def _grow(self, volume_id: str, size: int) -> None:
        volume = self._house.shelf.find_volume(volume_id)
        if volume.attached_to:
            driver = self._find(volume.attached_to)
            await driver.do(Verb.SET, lambda: _grow_here(driver, volume_id, size))
            return
        folder = self._house.pools.heads(volume.pool)
        grown = await asyncio.to_thread(grow_volume, folder, bare(volume), size)
        changed = msgspec.structs.replace(volume, size=grown.size, version=volume.version + 1)
        await self._house.journal.commit(PutVolume(changed))
        self._keep(changed)

    async def _limit(self, volume_id: str, limits: Limits) -> None:
        for guest in self.guests():
            if entry_of(guest, volume_id) is not None:
                await self._limit_at(self._find(guest.id), volume_id, limits)
        volume = self._house.shelf.find_volume(volume_id)
        changed = msgspec.structs.replace(volume, limits=limits, version=volume.version + 1)
        await self._house.journal.commit(PutVolume(changed))
        self._keep(changed)

    async def _limit_at(self, driver: GuestDriver, volume_id: str, limits: Limits) -> None:
        await driver.do(Verb.SET, lambda: limit_here(driver, volume_id, limits))

    async def delete(self, action: DeleteVolume, key: str) -> Job:
        """Delete a volume that nobody has, as a job."""
        volume = self._house.shelf.find_volume(action.volume)
        check_free(volume, self.guests(), "delete")

        async def work(job: LiveJob) -> None:
            async with self.lock(volume.id):
                await self._delete(job, volume.id)

        return await self._snapshots.begin(action, volume.name, ("delete",), work, key)

    async def _delete(self, job: LiveJob, volume_id: str) -> None:
        """Forget the volume, then remove its files; interrupted between, they are swept later."""
        house = self._house
        volume = house.shelf.find_volume(volume_id)
        check_free(volume, self.guests(), "delete")
        folder = house.pools.heads(volume.pool)
        job.hold()
        deleted = self._event(EventKind.VOLUME_DELETED, volume)
        await house.journal.commit(DropVolume(volume.id), events=(deleted,))
        house.shelf.volumes.pop(volume.id, None)
        await asyncio.to_thread(drop_head, folder, bare(volume))
        await collect(house)
        await job.finish()

    def lock(self, volume_id: str) -> AbstractAsyncContextManager[None]:
        """Return the lock under which one thing at a time is done with a volume."""
        return self._locks.setdefault(volume_id, asyncio.Lock())

    # -- at the daemon's start ---------------------------------------------------------------------

    async def take_up(self, job: Job) -> str:
        """End a job that an earlier daemon left; return a sentence that says how.

        Attaching is what the guest's record says, which was brought about already; detaching and changing
        go on; of the rest nothing is left that anybody was promised.
        """
        live = self._house.jobs.resume(job)
        if live is None:
            return f"{job.subject}: {job.kind} can't be read, and was given up"
        try:
            return await self._go_on(job, live)
        except SeraiError as error:  # what it names is gone, or not there now
            await live.fail(error)
            return f"{job.subject}: {job.kind} failed: {error.message}"

    async def _go_on(self, job: Job, live: LiveJob) -> str:
        match live.action:
            case AttachVolume(volume=name, guest=guest) if self._has(guest, name):
                await live.finish(message="it was attached")
                return f"{job.subject}: {job.kind} was finished"
            case DeleteVolume(volume=name) if not self._is_known(name):
                await live.finish()
                return f"{job.subject}: {job.kind} was finished"
            case DetachVolume() if self._is_known(live.action.volume):
                volume = self._house.shelf.find_volume(live.action.volume)
                if any(entry_of(each, volume.id) for each in self.guests()):
                    driver = self._holder(live.action)
                    self._snapshots.go_on(live, partial(self._detach, driver, volume))
                    return f"{job.subject}: {job.kind} goes on"
                await live.finish(message="it was detached")
                return f"{job.subject}: {job.kind} was finished"
            case ChangeVolume() if self._is_known(live.action.volume):
                volume = self._house.shelf.find_volume(live.action.volume)
                work = partial(self._change, volume.id, live.action)
                self._snapshots.go_on(live, work)
                return f"{job.subject}: {job.kind} goes on"
            case ExportVolume(path=path):
                await asyncio.to_thread(part_of(Path(path), job.id).unlink, missing_ok=True)
            case _:
                pass
        await live.fail(interrupted(live))
        return f"{job.subject}: {job.kind} was undone"

    def _has(self, guest: str, volume: str) -> bool:
        try:
            driver, record = self._find(guest), self._house.shelf.find_volume(volume)
        except NotFound:
            return False
        return entry_of(driver.record, record.id) is not None

    def _is_known(self, volume: str) -> bool:
        return any(volume in (each.name, each.id) for each in self._house.shelf.volumes.values())

    async def tidy(self, *, complete: bool) -> list[str]:
        """Give back what a guest has that is gone, remove files of nobody if all records were read."""
        house = self._house
        guests = self.guests()
        await asyncio.to_thread(shutil.rmtree, house.places.run / "nbd", ignore_errors=True)
        if not complete:
            return []
        known = {each.id for each in guests}
        for volume in list(house.shelf.volumes.values()):
            if volume.attached_to and volume.attached_to not in known:
                free = msgspec.structs.replace(volume, attached_to="")
                await house.journal.commit(PutVolume(free))
                self._keep(free)
        records = [current(each, guests) for each in house.shelf.volumes.values()]
        heads = {(each.pool, each.head) for each in records}
        gone = await asyncio.to_thread(house.pools.sweep, heads, list(house.shelf.layers.values()))
        return [f"{name} belonged to no volume" for name in gone]

    def _event(self, kind: EventKind, volume: VolumeRecord, **data: str) -> Event:
        return self._house.journal.event(kind, volume.name, volume.id, **data)


async def _grow_here(driver: GuestDriver, volume_id: str, size: int) -> None:
    """Grow a volume in the task of the guest that writes to it."""
    entry = find_entry(driver.record, volume_id)
    if driver.instance is not None:
        await driver.instance.resize_drive(drive_name(entry), size)
        entry = msgspec.structs.replace(entry, size=size)
    else:
        entry = await asyncio.to_thread(grow_volume, folder_of(driver, entry), entry, size)
    await change_entry(driver, entry)


def check_boot(boot: int) -> None:
    """Raise Invalid (``value-invalid``) unless it can be a place in the order of booting."""
    if not 0 <= boot <= 99:
        raise Invalid(Code.VALUE_INVALID, f"{boot} is no place in the order of booting: 1 to 99")
