"""The requests about volumes, pools and media as values; see ``calls`` for the rest."""

from typing import Any

import msgspec

from serai.client.calls import Call, Page, get, guest_path, page, post, segment
from serai.model.job import Job
from serai.model.volume import DEFAULT_POOL, DiskFile, Limits, Pool, VolumeInfo


def _volume(name: str) -> str:
    return f"/v1/volumes/{segment(name)}"


def _pool(name: str) -> str:
    return f"/v1/pools/{segment(name)}"


def list_volumes(cursor: str = "", *, pool: str = "", guest: str = "") -> Call[Page[VolumeInfo]]:
    """Volumes by name; only those in a pool, or that a guest has."""
    wanted = {key: text for key, text in (("pool", pool), ("guest", guest)) if text}
    return page("/v1/volumes", Page[VolumeInfo], cursor, **wanted)


def show_volume(name: str) -> Call[VolumeInfo]:
    """One volume."""
    return get(_volume(name), VolumeInfo)


def create_volume(
    name: str,
    size: int,
    *,
    pool: str = DEFAULT_POOL,
    serial: str = "",
    limits: Limits | None = None,
    note: str = "",
) -> Call[Job]:
    """Make an empty volume."""
    body: dict[str, Any] = {"name": name, "size": size, "pool": pool, "serial": serial}
    return post("/v1/volumes", Job, {**body, "limits": limits or Limits(), "note": note})


def change_volume(
    name: str, *, size: int | None = None, limits: Limits | None = None, note: str | None = None
) -> Call[Job]:
    """Grow, limit or note a volume."""
    given = {
        key: value
        for key, value in (("size", size), ("limits", limits), ("note", note))
        if value is not None
    }
    body = msgspec.json.encode(given)
    return Call(method="PATCH", path=_volume(name), kind=Job, body=body)


def delete_volume(name: str) -> Call[Job]:
    """Delete a volume and its snapshots."""
    return Call(method="DELETE", path=_volume(name), kind=Job)


def attach_volume(name: str, guest: str, *, read_only: bool = False, boot: int = 0) -> Call[Job]:
    """Give a guest a volume."""
    body = {"guest": guest, "read_only": read_only, "boot": boot}
    return post(f"{_volume(name)}/attach", Job, body)


def detach_volume(name: str, guest: str = "") -> Call[Job]:
    """Take a volume from its guest."""
    return post(f"{_volume(name)}/detach", Job, {"guest": guest})


def clone_volume(name: str, new: str, *, snapshot: str = "") -> Call[Job]:
    """Make a new volume of one as it is now, or of its snapshot."""
    return post(f"{_volume(name)}/clone", Job, {"name": new, "snapshot": snapshot})


def snapshot_volume(name: str, *, snapshot: str = "", note: str = "") -> Call[Job]:
    """Keep what is in a volume now."""
    return post(f"{_volume(name)}/snapshots", Job, {"name": snapshot, "note": note})


def delete_volume_snapshot(name: str, snapshot: str) -> Call[Job]:
    """Delete a snapshot of a volume."""
    path = f"{_volume(name)}/snapshots/{segment(snapshot)}"
    return Call(method="DELETE", path=path, kind=Job)


def import_volume(
    source: str, name: str, *, pool: str = DEFAULT_POOL, sha256: str = ""
) -> Call[Job]:
    """Make a volume of a disk image."""
    body = {"source": source, "name": name, "pool": pool, "sha256": sha256}
    return post("/v1/volumes/import", Job, body)


def export_volume(
    name: str, path: str, *, form: str = DiskFile.QCOW2, snapshot: str = ""
) -> Call[Job]:
    """Write a volume to a new file of the daemon's host."""
    body = {"path": path, "format": form, "snapshot": snapshot}
    return post(f"{_volume(name)}/export", Job, body)


def serve_volume(name: str, *, snapshot: str = "") -> Call[Job]:
    """Serve a volume by NBD until the job is cancelled."""
    return post(f"{_volume(name)}/serve", Job, {"snapshot": snapshot})


def list_pools(cursor: str = "") -> Call[Page[Pool]]:
    """Pools by name."""
    return page("/v1/pools", Page[Pool], cursor)


def show_pool(name: str) -> Call[Pool]:
    """One pool."""
    return get(_pool(name), Pool)


def create_pool(name: str, path: str) -> Call[Job]:
    """Make a pool of a folder."""
    return post("/v1/pools", Job, {"name": name, "path": path})


def delete_pool(name: str) -> Call[Job]:
    """Delete an empty pool."""
    return Call(method="DELETE", path=_pool(name), kind=Job)


def insert_medium(guest: str, image: str, *, force: bool = False) -> Call[Job]:
    """Put a medium into a guest's CD drive."""
    body = msgspec.json.encode({"image": image, "force": force})
    return Call(method="PUT", path=f"{guest_path(guest)}/medium", kind=Job, body=body)


def eject_medium(guest: str, *, force: bool = False) -> Call[Job]:
    """Take out what is in a guest's CD drive."""
    query = {"force": "true"} if force else {}
    return Call(method="DELETE", path=f"{guest_path(guest)}/medium", kind=Job, query=query)
