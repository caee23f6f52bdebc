"""One moment of a volume: a layer of what is in it now, and snapshots, which are such layers with names.

Whatever begins with a moment (a clone, an export) asks here. A guest that writes to the volume goes on,
into an empty head.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import msgspec

from serai.disk.volumes import drop_head, is_empty_head
from serai.engine.collecting import collect
from serai.engine.driver import GuestDriver
from serai.engine.freezing import freeze
from serai.engine.heads import freeze_file
from serai.engine.house import House
from serai.engine.jobs import LiveJob
from serai.engine.snapshots import SnapshotKeeper
from serai.errors import Code, Conflict, NotFound
from serai.model.actions import DeleteVolumeSnapshot, SnapshotVolume
from serai.model.event import EventKind
from serai.model.guest import Volume
from serai.model.job import Job
from serai.model.lifecycle import Verb
from serai.model.volume import VolumeRecord, VolumeSnapshot
from serai.plan.snapshot import pick_name
from serai.plan.volume import attached, current, find_entry
from serai.store.changes import PutLayer, PutVolume
from serai.units import check_snapshot_name, shorten

Lock = Callable[[str], AbstractAsyncContextManager[None]]
Change = Callable[[tuple[VolumeSnapshot, ...]], tuple[VolumeSnapshot, ...]]


def bare(record: VolumeRecord) -> Volume:
    """Return a volume that nobody has, as those functions take it that work with a guest's."""
    return attached(record, port="-", read_only=False, boot=0)


def find_snapshot(volume: VolumeRecord, name_or_id: str) -> VolumeSnapshot:
    """Return a snapshot of a volume; NotFound (``snapshot-not-found``)."""
    for each in volume.snapshots:
        if name_or_id in (each.name, each.id):
            return each
    raise NotFound(
        Code.SNAPSHOT_NOT_FOUND,
        f"the volume {volume.name} has no snapshot {shorten(name_or_id)}",
        hint=f"See which it has: serai volume show {volume.name}",
    )


async def settle(house: House, volume: VolumeRecord) -> VolumeRecord:
    """Make a layer of the head of a volume that no guest writes to, unless that is empty.

    Hold its lock. On failure the volume is as before.
    """
    folder, old = house.pools.heads(volume.pool), bare(volume)
    if volume.layer:
        is_empty = await asyncio.to_thread(is_empty_head, folder, old)
        if is_empty:
            return volume
    layer_id = house.new_id()
    with house.shelf.under_way.on(layer_id):
        return await _settle(house, volume, layer_id)


async def _settle(house: House, volume: VolumeRecord, layer_id: str) -> VolumeRecord:
    folder, old = house.pools.heads(volume.pool), bare(volume)
    head, layer = await freeze_file(house, folder, old, layer_id)
    settled = msgspec.structs.replace(
        volume, head=head.head, layer=layer.id, version=volume.version + 1
    )
    try:
        await house.journal.commit(PutLayer(layer), PutVolume(settled))
    except Exception:  # cancelled, nobody knows whether it is stored: it is swept later if not
        await asyncio.to_thread(drop_head, folder, head)
        await asyncio.to_thread(house.pools.layers_of(layer).delete, layer.id)
        raise
    house.shelf.layers[layer.id] = layer
    house.shelf.volumes[settled.id] = settled
    await asyncio.to_thread(drop_head, folder, old)
    return settled


class VolumeMoments:
    """Moments and snapshots of volumes. ``find`` gives a guest by id, ``lock`` a volume's lock."""

    def __init__(
        self,
        house: House,
        snapshots: SnapshotKeeper,
        find: Callable[[str], GuestDriver],
        lock: Lock,
    ) -> None:
        self._house = house
        self._snapshots = snapshots
        self._find = find
        self._lock = lock

    @asynccontextmanager
    async def taken(
        self, job: LiveJob, volume_id: str, snapshot: str
    ) -> AsyncIterator[VolumeSnapshot]:
        """Give a volume as it is now, or its snapshot; its layer is held within the block."""
        shelf = self._house.shelf
        async with self._lock(volume_id):
            if snapshot:
                found = find_snapshot(shelf.find_volume(volume_id), snapshot)
            else:
                with job.held():
                    now = await self._freeze(volume_id)
                found = VolumeSnapshot(
                    id="", name="", layer=now.layer, size=now.size, created_at=now.created_at
                )
            holding = shelf.holding(found.layer)
            holding.__enter__()
        try:
            yield found
        finally:
            holding.__exit__(None, None, None)

    async def _freeze(self, volume_id: str) -> VolumeRecord:
        """Make a layer of what is in a volume now; its record then has that as its layer."""
        house = self._house
        volume = house.shelf.find_volume(volume_id)
        if not volume.attached_to:
            return await settle(house, volume)
        driver = self._find(volume.attached_to)
        entry = find_entry(driver.record, volume_id)
        frozen = await driver.do(
            Verb.SNAPSHOT,
            lambda: freeze(driver, memory=False, quiesce=False, only={entry.name}),
        )
        frozen.close()
        return current(house.shelf.find_volume(volume_id), list(house.shelf.guests()))

    # -- snapshots ---------------------------------------------------------------------------------

    async def snapshot(self, action: SnapshotVolume, key: str) -> Job:
        """Keep what is in a volume now under a name, as a job."""
        volume = self._house.shelf.find_volume(action.volume)
        name = check_snapshot_name(
            action.name or pick_name({each.name for each in volume.snapshots})
        )
        _check_free(volume, name)

        async def work(job: LiveJob) -> None:
            async with self.taken(job, volume.id, "") as moment:
                made = msgspec.structs.replace(
                    moment,
                    id=self._house.new_id(),
                    name=name,
                    created_at=self._house.journal.now(),
                    note=action.note,
                )
                _check_free(self._house.shelf.find_volume(volume.id), name)
                await self._keep(job, volume.id, lambda before: (*before, made), made)

        return await self._snapshots.begin(action, volume.name, ("freeze",), work, key)

    async def delete(self, action: DeleteVolumeSnapshot, key: str) -> Job:
        """Delete a snapshot of a volume, as a job."""
        volume = self._house.shelf.find_volume(action.volume)
        gone = find_snapshot(volume, action.snapshot)

        def without(before: tuple[VolumeSnapshot, ...]) -> tuple[VolumeSnapshot, ...]:
            return tuple(each for each in before if each.id != gone.id)

        async def work(job: LiveJob) -> None:
            async with self._lock(volume.id):
                await self._keep(job, volume.id, without, None)
                await collect(self._house)

        return await self._snapshots.begin(action, volume.name, ("delete",), work, key)

    async def _keep(
        self, job: LiveJob, volume_id: str, change: Change, made: VolumeSnapshot | None
    ) -> None:
        """End the job with other snapshots of a volume."""
        house = self._house
        volume = house.shelf.find_volume(volume_id)
        changed = msgspec.structs.replace(
            volume, snapshots=change(volume.snapshots), version=volume.version + 1
        )

        def then() -> None:
            house.shelf.volumes[changed.id] = changed

        await job.finish(
            PutVolume(changed),
            events=(house.journal.event(EventKind.VOLUME_CHANGED, volume.name, volume.id),),
            results=(made.id,) if made else (),
            message=made.name if made else "",
            then=then,
        )


def _check_free(volume: VolumeRecord, name: str) -> None:
    if any(each.name == name for each in volume.snapshots):
        raise Conflict(
            Code.SNAPSHOT_EXISTS,
            f"{volume.name} has a snapshot {name} already",
            hint="Choose another name.",
        )
