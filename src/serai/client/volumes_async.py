"""Volumes and pools, as the async SDK has them."""

from functools import partial
from typing import Self

from serai.client import volume_calls
from serai.client.async_connection import AsyncConnection
from serai.client.calls import Call
from serai.client.words import Size, limits_of, size_of
from serai.model.job import Job
from serai.model.volume import DEFAULT_POOL, Pool, VolumeInfo


class AsyncVolume:
    """One volume. ``info`` is how it was when it was last asked; ``refresh`` asks again."""

    def __init__(self, connection: AsyncConnection, info: VolumeInfo) -> None:
        self._connection = connection
        self.info = info

    def __repr__(self) -> str:
        return f"<AsyncVolume {self.info.name}>"

    @property
    def name(self) -> str:
        """Its name."""
        return self.info.name

    @property
    def id(self) -> str:
        """Its id."""
        return self.info.id

    async def refresh(self) -> Self:
        """Ask how it is now."""
        self.info = await self._connection.ask(volume_calls.show_volume(self.id))
        return self

    async def _do(self, call: Call[Job]) -> Self:
        await self._connection.finish(call)
        return await self.refresh()

    async def attach(self, guest: str, *, read_only: bool = False, boot: int = 0) -> Self:
        """Give it to a guest; one may write to it, or any number may read it."""
        return await self._do(
            volume_calls.attach_volume(self.id, guest, read_only=read_only, boot=boot)
        )

    async def detach(self, guest: str = "") -> Self:
        """Take it from a guest; without a name from the only one that has it."""
        return await self._do(volume_calls.detach_volume(self.id, guest))

    async def resize(self, size: Size) -> Self:
        """Make it larger."""
        return await self._do(volume_calls.change_volume(self.id, size=size_of(size)))

    async def limit(
        self,
        *,
        iops: int = 0,
        iops_burst: int = 0,
        bps: Size = 0,
        bps_burst: Size = 0,
        burst_seconds: int = 1,
    ) -> Self:
        """Let it be used so much a second; without anything as much as its guest likes."""
        limits = limits_of(
            iops=iops, iops_burst=iops_burst, bps=bps, bps_burst=bps_burst, seconds=burst_seconds
        )
        return await self._do(volume_calls.change_volume(self.id, limits=limits))

    async def clone(self, name: str, *, snapshot: str = "") -> "AsyncVolume":
        """Make a new volume of it, or of its snapshot; nothing is copied."""
        await self._connection.finish(volume_calls.clone_volume(self.id, name, snapshot=snapshot))
        return AsyncVolume(
            self._connection, await self._connection.ask(volume_calls.show_volume(name))
        )

    async def snapshot(self, name: str = "", *, note: str = "") -> Self:
        """Keep what is in it now."""
        return await self._do(volume_calls.snapshot_volume(self.id, snapshot=name, note=note))

    async def delete_snapshot(self, name: str) -> Self:
        """Delete a snapshot of it."""
        return await self._do(volume_calls.delete_volume_snapshot(self.id, name))

    async def export(self, path: str, *, form: str = "qcow2", snapshot: str = "") -> str:
        """Write it, or its snapshot, to a new file on the daemon's host; return the file's digest."""
        call = volume_calls.export_volume(self.id, path, form=form, snapshot=snapshot)
        return (await self._connection.finish(call)).results[0]

    async def delete(self) -> None:
        """Delete it and its snapshots; clones stay."""
        await self._connection.finish(volume_calls.delete_volume(self.id))


class AsyncVolumeShelf:
    """What an inn does with volumes and pools."""

    connection: AsyncConnection

    async def volumes(self, *, pool: str = "", guest: str = "") -> list[AsyncVolume]:
        """Return volumes by name; only those in a pool, or that a guest has."""
        wanted = partial(volume_calls.list_volumes, pool=pool, guest=guest)
        found = await self.connection.all_of(wanted)
        return [AsyncVolume(self.connection, info) for info in found]

    async def volume(self, name: str) -> AsyncVolume:
        """Return a volume by name or id; NotFound."""
        return AsyncVolume(
            self.connection, await self.connection.ask(volume_calls.show_volume(name))
        )

    async def create_volume(
        self, name: str, size: Size, *, pool: str = DEFAULT_POOL, serial: str = "", note: str = ""
    ) -> AsyncVolume:
        """Make an empty volume of a size like "10GiB"."""
        call = volume_calls.create_volume(name, size_of(size), pool=pool, serial=serial, note=note)
        await self.connection.finish(call)
        return await self.volume(name)

    async def import_volume(
        self, source: str, name: str, *, pool: str = DEFAULT_POOL, sha256: str = ""
    ) -> AsyncVolume:
        """Make a volume of a disk image on the daemon's host, or of a URL."""
        await self.connection.finish(
            volume_calls.import_volume(source, name, pool=pool, sha256=sha256)
        )
        return await self.volume(name)

    async def pools(self) -> list[Pool]:
        """Return all pools by name."""
        return (await self.connection.ask(volume_calls.list_pools())).items

    async def create_pool(self, name: str, path: str) -> Pool:
        """Make a pool of an empty or new folder."""
        await self.connection.finish(volume_calls.create_pool(name, path))
        return await self.connection.ask(volume_calls.show_pool(name))

    async def delete_pool(self, name: str) -> None:
        """Delete an empty pool."""
        await self.connection.finish(volume_calls.delete_pool(name))
