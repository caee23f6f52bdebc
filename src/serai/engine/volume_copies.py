"""Volumes that leave, arrive and multiply: clones, imports, exports, NBD.

All but the import begin with one moment of a volume, which is a layer (``VolumeMoments``); that is
held, so that nobody merges or collects it, until what stands on it is stored or done. A guest that
writes to the volume goes on meanwhile.
"""

import asyncio
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import msgspec

from serai.disk.convert import Workshop
from serai.disk.exporting import check_target, part_of, write_export
from serai.disk.importing import check_action, import_image, workshop_uid
from serai.disk.machines import head_of
from serai.disk.volumes import chain_of, drop_head, move_head_in
from serai.engine.house import House
from serai.engine.jobs import LiveJob
from serai.engine.snapshots import SnapshotKeeper
from serai.engine.volume_moments import VolumeMoments, bare, find_snapshot
from serai.engine.volumes import VolumeKeeper
from serai.errors import Code, Conflict
from serai.host.sockets import bind_unix
from serai.model.actions import CloneVolume, ExportVolume, ImportImage, ImportVolume, ServeVolume
from serai.model.guest import Volume
from serai.model.job import Job
from serai.model.machine import LayerFile
from serai.model.volume import VolumeRecord, VolumeSnapshot
from serai.plan.layers import chain
from serai.qemu.serving import EXPORT, open_server
from serai.units import MIB

CLONE_PHASES = ("freeze", "clone")
IMPORT_PHASES = ("fetch", "inspect", "convert", "publish")
EXPORT_PHASES = ("freeze", "write")
SERVE_PHASES = ("freeze", "serve")


class VolumeCopier:
    """Copies of volumes, as jobs."""

    def __init__(
        self,
        house: House,
        snapshots: SnapshotKeeper,
        volumes: VolumeKeeper,
        moments: VolumeMoments,
    ) -> None:
        self._house = house
        self._moments = moments
        self._snapshots = snapshots
        self._volumes = volumes

    def _chain(self, moment: VolumeSnapshot) -> tuple[LayerFile, ...]:
        """Return the layers of a moment, none of which can be written to."""
        volume = Volume(name="", head="", layer=moment.layer, size=moment.size, read_only=True)
        below = chain(self._house.shelf.layers, moment.layer)
        pools, nowhere = self._house.pools, Path()
        return chain_of(nowhere, volume, below, pools.layers_of, None, nowhere)

    # -- clones ------------------------------------------------------------------------------------

    async def clone(self, action: CloneVolume, key: str) -> Job:
        """Make a new volume over what another has now, or had; as a job."""
        source = self._house.shelf.find_volume(action.volume)
        if action.snapshot:
            find_snapshot(source, action.snapshot)
        record = self._volumes.new_record(action.name, MIB, source.pool, limits=source.limits)

        async def work(job: LiveJob) -> None:
            await job.enter("freeze")
            async with self._moments.taken(job, source.id, action.snapshot) as moment:
                await job.enter("clone")
                made = msgspec.structs.replace(record, layer=moment.layer, size=moment.size)
                await self._volumes.make(job, made)

        return await self._volumes.begin_new(action, record, CLONE_PHASES, work, key)

    # -- imports -----------------------------------------------------------------------------------

    async def import_(self, action: ImportVolume, key: str) -> Job:
        """Make a volume of a stranger's disk, as a job."""
        record = self._volumes.new_record(action.name, MIB, action.pool)
        wanted = ImportImage(source=action.source, name=action.name, sha256=action.sha256)
        check_action(wanted)

        async def work(job: LiveJob) -> None:
            scratch = self._house.places.scratch / job.id
            await asyncio.to_thread(scratch.mkdir, mode=0o700, parents=True, exist_ok=True)
            try:
                await self._import(job, wanted, record, scratch)
            finally:
                await asyncio.to_thread(shutil.rmtree, scratch, ignore_errors=True)

        return await self._volumes.begin_new(action, record, IMPORT_PHASES, work, key)

    async def _import(
        self, job: LiveJob, wanted: ImportImage, record: VolumeRecord, scratch: Path
    ) -> None:
        house = self._house
        await job.enter("fetch")
        new = await import_image(
            wanted,
            scratch=scratch,
            settings=house.settings,
            capabilities=house.capabilities,
            progress=lambda phase, done, total, message: job.progress(
                done, total, message, phase=phase
            ),
        )
        self._volumes.check_room(record.pool, new.virtual_size)
        await job.enter("convert")
        made = scratch / "head"
        await head_of(
            new,
            made,
            shop=self._shop(house.pools.room(record.pool, house.settings.disk_reserve)[1]),
            report=lambda done, total: job.progress(done, total, "", phase="convert"),
        )
        await job.enter("publish")
        folder = house.pools.heads(record.pool)
        try:
            await asyncio.to_thread(move_head_in, made, folder, bare(record))
            await self._volumes.keep_new(
                job, msgspec.structs.replace(record, size=new.virtual_size)
            )
        except Exception:  # cancelled, nobody knows whether it is stored: it is swept later if not
            await asyncio.to_thread(drop_head, folder, bare(record))
            raise

    def _shop(self, room: int) -> Workshop:
        settings, capabilities = self._house.settings, self._house.capabilities
        return Workshop(
            uid=workshop_uid(settings, capabilities), limit=settings.image_limit, room=room
        )

    # -- exports -----------------------------------------------------------------------------------

    async def export(self, action: ExportVolume, key: str) -> Job:
        """Write a volume to a file, as a job."""
        volume = self._house.shelf.find_volume(action.volume)
        if action.snapshot:
            find_snapshot(volume, action.snapshot)
        target = check_target(action.path)

        async def work(job: LiveJob) -> None:
            await job.enter("freeze")
            async with (
                self._moments.taken(job, volume.id, action.snapshot) as moment,
                self._served(job, moment) as path,
            ):
                await job.enter("write")
                with _connected(path) as server:
                    digest = await write_export(
                        server,
                        target,
                        part_of(target, job.id),
                        action.format,
                        size=moment.size,
                        reserve=self._house.settings.disk_reserve,
                        shop=self._shop,
                        export=EXPORT,
                        report=lambda done, total: job.progress(done, total, "", phase="write"),
                    )
                await job.finish(results=(digest, str(target)), message=str(target))

        return await self._snapshots.begin(action, volume.name, EXPORT_PHASES, work, key)

    async def serve(self, action: ServeVolume, key: str) -> Job:
        """Serve a volume by NBD until the job is cancelled."""
        volume = self._house.shelf.find_volume(action.volume)
        if action.snapshot:
            find_snapshot(volume, action.snapshot)

        async def work(job: LiveJob) -> None:
            await job.enter("freeze")
            async with (
                self._moments.taken(job, volume.id, action.snapshot) as moment,
                self._served(job, moment) as path,
            ):
                await job.enter("serve")
                job.progress(0, 0, f"nbd+unix:///{EXPORT}?socket={path}")
                await self._house.closing.wait()
                raise Conflict(Code.JOB_CANCELLED, "the daemon stops, and with it what it serves")

        return await self._snapshots.begin(action, volume.name, SERVE_PHASES, work, key)

    @asynccontextmanager
    async def _served(self, job: LiveJob, moment: VolumeSnapshot) -> AsyncIterator[Path]:
        """Serve a moment by NBD at the path of a socket that is ours alone, within the block."""
        house = self._house
        folder = house.places.run / "nbd" / job.id[:8]
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = folder / "nbd.sock"
        try:
            async with AsyncExitStack() as stack:
                with house.shelf.openers.opening():
                    listener = stack.enter_context(bind_unix(path, mode=0o600))
                    server = open_server(
                        await asyncio.to_thread(self._chain, moment),
                        listener,
                        folder=folder,
                        qemu_path=house.capabilities.qemu_path,
                        uid=workshop_uid(house.settings, house.capabilities),
                        sandbox=house.capabilities.sandbox,
                    )
                    await stack.enter_async_context(server)
                yield path
        finally:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


def _connected(path: Path) -> socket.socket:
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        server.connect(str(path))
    except BaseException:
        server.close()
        raise
    return server
