"""The keeper of pools: which there are, what is in them, how much fits."""

import asyncio

from serai.disk.pools import check_pool_path, create_pool, remove_pool
from serai.engine.house import House
from serai.engine.jobs import LiveJob
from serai.engine.snapshots import SnapshotKeeper
from serai.engine.volumes import VolumeKeeper
from serai.errors import Code, Conflict, NotFound
from serai.model.actions import CreatePool, DeletePool
from serai.model.event import EventKind
from serai.model.job import Job
from serai.model.volume import DEFAULT_POOL, FEATURES, Pool, PoolRecord
from serai.store.changes import DropPool, PutPool
from serai.units import check_volume_name, shorten


class PoolKeeper:
    """All that is done with pools."""

    def __init__(self, house: House, snapshots: SnapshotKeeper, volumes: VolumeKeeper) -> None:
        self._house = house
        self._snapshots = snapshots
        self._volumes = volumes
        self._coming: set[str] = set()

    def all(self) -> list[Pool]:
        """Return all pools by name."""
        default = PoolRecord(
            name=DEFAULT_POOL, id="", path=str(self._house.places.volumes), created_at=0.0
        )
        records = (default, *self._house.shelf.pools.values())
        return sorted(map(self._view, records), key=lambda each: each.name)

    def one(self, name: str) -> Pool:
        """Return one; NotFound (``pool-not-found``)."""
        for pool in self.all():
            if pool.name == name:
                return pool
        raise NotFound(
            Code.POOL_NOT_FOUND,
            f"there is no pool {shorten(name)}",
            hint="See which there are: serai pool list",
        )

    def _view(self, record: PoolRecord) -> Pool:
        size, free = self._house.pools.room(record.name, self._house.settings.disk_reserve)
        volumes = [each for each in self._volumes.all() if each.pool == record.name]
        return Pool(
            name=record.name,
            kind=record.kind,
            path=record.path,
            available=self._house.pools.is_available(record.name),
            size=size,
            free=free,
            virtual=sum(each.size for each in volumes),
            used=sum(each.own + each.shared for each in volumes),
            volumes=len(volumes),
            features=FEATURES[record.kind],
            created_at=record.created_at,
        )

    async def create(self, action: CreatePool, key: str) -> Job:
        """Make a pool, as a job."""
        house = self._house
        name, path = check_volume_name(action.name), check_pool_path(action.path)
        if name == DEFAULT_POOL or name in house.shelf.pools or name in self._coming:
            raise Conflict(
                Code.POOL_EXISTS,
                f"there is a pool {name} already",
                hint="Choose another name; see which there are: serai pool list",
            )
        record = PoolRecord(
            name=name, id=house.new_id(), path=str(path), created_at=house.journal.now()
        )
        self._coming.add(name)

        async def work(job: LiveJob) -> None:
            try:
                await self._create(job, record)
            finally:
                self._coming.discard(name)

        try:
            return await self._snapshots.begin(action, name, ("create",), work, key)
        except BaseException:
            self._coming.discard(name)
            raise

    async def _create(self, job: LiveJob, record: PoolRecord) -> None:
        """Make the folder, then the record; a folder without a record is taken up by the next try."""
        house = self._house
        known = {each.id for each in house.shelf.pools.values()}
        await asyncio.to_thread(create_pool, record, known)
        event = house.journal.event(EventKind.POOL_CREATED, record.name, record.id)
        try:
            await job.finish(PutPool(record), events=(event,), message=record.name)
        except Exception:
            await asyncio.to_thread(remove_pool, record)
            raise
        house.shelf.pools[record.name] = record
        house.pools.know(record)

    async def delete(self, action: DeletePool, key: str) -> Job:
        """Delete a pool that nothing lies in, as a job."""
        name = self.one(action.pool).name
        self._check_empty(name)

        async def work(job: LiveJob) -> None:
            self._check_empty(name)
            record = self._house.shelf.pools.pop(name)
            try:
                await asyncio.to_thread(remove_pool, record)
                event = self._house.journal.event(EventKind.POOL_DELETED, name, record.id)
                await job.finish(DropPool(name), events=(event,))
            except BaseException:
                self._house.shelf.pools[name] = record
                raise
            self._house.pools.forget(name)

        return await self._snapshots.begin(action, name, ("delete",), work, key)

    def _check_empty(self, name: str) -> None:
        if name == DEFAULT_POOL:
            raise Conflict(Code.POOL_IN_USE, "the pool default is always there")
        shelf = self._house.shelf
        volumes = [each.name for each in shelf.volumes.values() if each.pool == name]
        if volumes or any(each.pool == name for each in shelf.layers.values()):
            shown = ", ".join(sorted(volumes)[:5]) or "what forks and snapshots stand on"
            raise Conflict(
                Code.POOL_IN_USE,
                f"there is something in the pool {name}: {shown}",
                hint=f"See what: serai volume list --pool {name}",
            )
