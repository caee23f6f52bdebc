# Made of volumes_async.py by scripts/make_blocking.py: change that file, then `make blocking`.
"""Volumes and pools, as the blocking SDK has them."""

from functools import partial
from typing import Self

from serai.client import volume_calls
from serai.client.blocking import Connection
from serai.client.calls import Call
from serai.client.words import Size, limits_of, size_of
from serai.model.job import Job
from serai.model.volume import DEFAULT_POOL, Pool, VolumeInfo


class Volume:
    """One volume. ``info`` is how it was when it was last asked; ``refresh`` asks again."""

    def __init__(self, connection: Connection, info: VolumeInfo) -> None:
        self._connection = connection
        self.info = info

    def __repr__(self) -> str:
        return f"<Volume {self.info.name}>"

    @property
    def name(self) -> str:
        """Its name."""
        return self.info.name

    @property
    def id(self) -> str:
        """Its id."""
        return self.info.id

    def refresh(self) -> Self:
        """Ask how it is now."""
        self.info = self._connection.ask(volume_calls.show_volume(self.id))
        return self

    def _do(self, call: Call[Job]) -> Self:
        self._connection.finish(call)
        return self.refresh()

    def attach(self, guest: str, *, read_only: bool = False, boot: int = 0) -> Self:
        """Give it to a guest; one may write to it, or any number may read it."""
        return self._do(volume_calls.attach_volume(self.id, guest, read_only=read_only, boot=boot))

    def detach(self, guest: str = "") -> Self:
        """Take it from a guest; without a name from the only one that has it."""
        return self._do(volume_calls.detach_volume(self.id, guest))

    def resize(self, size: Size) -> Self:
        """Make it larger."""
        return self._do(volume_calls.change_volume(self.id, size=size_of(size)))

    def limit(
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
        return self._do(volume_calls.change_volume(self.id, limits=limits))

    def clone(self, name: str, *, snapshot: str = "") -> "Volume":
        """Make a new volume of it, or of its snapshot; nothing is copied."""
        self._connection.finish(volume_calls.clone_volume(self.id, name, snapshot=snapshot))
        return Volume(self._connection, self._connection.ask(volume_calls.show_volume(name)))

    def snapshot(self, name: str = "", *, note: str = "") -> Self:
        """Keep what is in it now."""
        return self._do(volume_calls.snapshot_volume(self.id, snapshot=name, note=note))

    def delete_snapshot(self, name: str) -> Self:
        """Delete a snapshot of it."""
        return self._do(volume_calls.delete_volume_snapshot(self.id, name))

    def export(self, path: str, *, form: str = "qcow2", snapshot: str = "") -> str:
        """Write it, or its snapshot, to a new file on the daemon's host; return the file's digest."""
        call = volume_calls.export_volume(self.id, path, form=form, snapshot=snapshot)
        return self._connection.finish(call).results[0]

    def delete(self) -> None:
        """Delete it and its snapshots; clones stay."""
        self._connection.finish(volume_calls.delete_volume(self.id))


class VolumeShelf:
    """What an inn does with volumes and pools."""

    connection: Connection

    def volumes(self, *, pool: str = "", guest: str = "") -> list[Volume]:
        """Return volumes by name; only those in a pool, or that a guest has."""
        wanted = partial(volume_calls.list_volumes, pool=pool, guest=guest)
        found = self.connection.all_of(wanted)
        return [Volume(self.connection, info) for info in found]

    def volume(self, name: str) -> Volume:
        """Return a volume by name or id; NotFound."""
        return Volume(self.connection, self.connection.ask(volume_calls.show_volume(name)))

    def create_volume(
        self, name: str, size: Size, *, pool: str = DEFAULT_POOL, serial: str = "", note: str = ""
    ) -> Volume:
        """Make an empty volume of a size like "10GiB"."""
        call = volume_calls.create_volume(name, size_of(size), pool=pool, serial=serial, note=note)
        self.connection.finish(call)
        return self.volume(name)

    def import_volume(
        self, source: str, name: str, *, pool: str = DEFAULT_POOL, sha256: str = ""
    ) -> Volume:
        """Make a volume of a disk image on the daemon's host, or of a URL."""
        self.connection.finish(volume_calls.import_volume(source, name, pool=pool, sha256=sha256))
        return self.volume(name)

    def pools(self) -> list[Pool]:
        """Return all pools by name."""
        return self.connection.ask(volume_calls.list_pools()).items

    def create_pool(self, name: str, path: str) -> Pool:
        """Make a pool of an empty or new folder."""
        self.connection.finish(volume_calls.create_pool(name, path))
        return self.connection.ask(volume_calls.show_pool(name))

    def delete_pool(self, name: str) -> None:
        """Delete an empty pool."""
        self.connection.finish(volume_calls.delete_pool(name))
