"""Volumes, the pools that they lie in, and the media in guests' CD drives."""

from litestar.types import ASGIApp

from serai.api.answers import answer_json
from serai.api.bodies import NoBody, NoQuery, PageQuery, WaitQuery
from serai.api.calls import Call
from serai.api.paging import page_by_name
from serai.api.volume_bodies import (
    AttachBody,
    CloneBody,
    DetachBody,
    EjectQuery,
    MediumBody,
    PoolBody,
    ServeBody,
    VolumeBody,
    VolumeChange,
    VolumeExportBody,
    VolumeImportBody,
    VolumeSnapshotBody,
    VolumesQuery,
)
from serai.model.actions import (
    AttachVolume,
    ChangeVolume,
    CloneVolume,
    CreatePool,
    CreateVolume,
    DeletePool,
    DeleteVolume,
    DeleteVolumeSnapshot,
    DetachVolume,
    EjectMedium,
    ExportVolume,
    ImportVolume,
    InsertMedium,
    ServeVolume,
    SnapshotVolume,
)


async def list_volumes(call: Call[VolumesQuery, NoBody]) -> ASGIApp:
    """List volumes.

    Sorted by name. A guest's root disk is no volume of its own: see the guest.
    """
    query = call.query
    found = call.room.engine.volumes()
    if query.pool:
        found = [each for each in found if each.pool == query.pool]
    if query.guest:
        guest_id = call.room.engine.guest(query.guest).id
        found = [each for each in found if guest_id in {one.guest_id for one in each.attached}]
    return answer_json(page_by_name(found, query.limit, query.cursor))


async def show_volume(call: Call[NoQuery, NoBody]) -> ASGIApp:
    """Show a volume, with its snapshots and who has it."""
    return answer_json(call.room.engine.volume(call.subject))


def create_volume(call: Call[WaitQuery, VolumeBody]) -> CreateVolume:
    """Make an empty volume.

    It takes only what is written to it, but its pool must have room for all of it.
    """
    body = call.body
    return CreateVolume(
        name=body.name,
        size=body.size,
        pool=body.pool,
        serial=body.serial,
        limits=body.limits,
        note=body.note,
    )


def change_volume(call: Call[WaitQuery, VolumeChange]) -> ChangeVolume:
    """Grow, limit or note a volume.

    A guest that runs sees it at once. What is not named stays as it is; `limits` are set as a whole.
    """
    body = call.body
    return ChangeVolume(volume=call.subject, size=body.size, limits=body.limits, note=body.note)


def delete_volume(call: Call[WaitQuery, NoBody]) -> DeleteVolume:
    """Delete a volume that no guest has, with its snapshots.

    Clones keep what they stand on.
    """
    return DeleteVolume(volume=call.subject)


def attach_volume(call: Call[WaitQuery, AttachBody]) -> AttachVolume:
    """Attach a volume to a guest.

    At once where it runs, and at each start. One guest may write to a volume, or any number may have it
    read-only.
    """
    body = call.body
    return AttachVolume(
        volume=call.subject, guest=body.guest, read_only=body.read_only, boot=body.boot
    )


def detach_volume(call: Call[WaitQuery, DetachBody]) -> DetachVolume:
    """Detach a volume from a guest.

    A guest that runs is asked to let it go, for ten seconds. A disk that a guest was made with stays.
    """
    return DetachVolume(volume=call.subject, guest=call.body.guest)


def clone_volume(call: Call[WaitQuery, CloneBody]) -> CloneVolume:
    """Make a new volume of a volume as it is now, or of its snapshot.

    Nothing is copied: both stand on the same layers.
    """
    return CloneVolume(volume=call.subject, name=call.body.name, snapshot=call.body.snapshot)


def snapshot_volume(call: Call[WaitQuery, VolumeSnapshotBody]) -> SnapshotVolume:
    """Make a snapshot of a volume.

    What is in it now is kept; a guest that writes to it goes on.
    """
    return SnapshotVolume(volume=call.subject, name=call.body.name, note=call.body.note)


def delete_volume_snapshot(call: Call[WaitQuery, NoBody]) -> DeleteVolumeSnapshot:
    """Delete a snapshot of a volume."""
    return DeleteVolumeSnapshot(volume=call.subject, snapshot=call.part)


def import_volume(call: Call[WaitQuery, VolumeImportBody]) -> ImportVolume:
    """Import a disk image as a volume.

    From a file of the daemon's host or an http(s) URL: raw, qcow2 or VMDK, looked at as strictly as an
    image.
    """
    body = call.body
    return ImportVolume(source=body.source, name=body.name, pool=body.pool, sha256=body.sha256)


def export_volume(call: Call[WaitQuery, VolumeExportBody]) -> ExportVolume:
    """Write a volume as it is now, or its snapshot, to a new file on the daemon's host.

    The job's `results` hold the file's digest and its path.
    """
    body = call.body
    return ExportVolume(
        volume=call.subject, path=body.path, format=body.format, snapshot=body.snapshot
    )


def serve_volume(call: Call[WaitQuery, ServeBody]) -> ServeVolume:
    """Serve a volume as it is now, or its snapshot, by NBD.

    Until the job is cancelled. Its message is the address; it can only be read.
    """
    return ServeVolume(volume=call.subject, snapshot=call.body.snapshot)


async def list_pools(call: Call[PageQuery, NoBody]) -> ASGIApp:
    """List pools.

    Sorted by name. The pool `default` is always there.
    """
    return answer_json(page_by_name(call.room.engine.pools(), call.query.limit, call.query.cursor))


async def show_pool(call: Call[NoQuery, NoBody]) -> ASGIApp:
    """Show a pool: its room, and what its kind can do."""
    return answer_json(call.room.engine.pool(call.subject))


def create_pool(call: Call[WaitQuery, PoolBody]) -> CreatePool:
    """Make a pool of an empty or new folder."""
    return CreatePool(name=call.body.name, path=call.body.path)


def delete_pool(call: Call[WaitQuery, NoBody]) -> DeletePool:
    """Delete a pool that no volume is in."""
    return DeletePool(pool=call.subject)


def insert_medium(call: Call[WaitQuery, MediumBody]) -> InsertMedium:
    """Put an installation medium into a guest's CD drive.

    A stopped guest without a drive gets one.
    """
    return InsertMedium(guest=call.subject, image=call.body.image, force=call.body.force)


def eject_medium(call: Call[EjectQuery, NoBody]) -> EjectMedium:
    """Take what is in a guest's CD drive out.

    The drive stays.
    """
    return EjectMedium(guest=call.subject, force=call.query.force)
