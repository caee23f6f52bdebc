"""What callers may send about volumes, pools and media; see ``bodies`` for the rest."""

from collections.abc import Mapping
from typing import Annotated

import msgspec
from msgspec import Meta

from serai.api.bodies import Body, Page, PageQuery, WaitQuery
from serai.model.volume import DEFAULT_POOL, NO_LIMITS, DiskFile, Limits, Pool, VolumeInfo
from serai.units import GIB


class VolumesQuery(PageQuery, frozen=True):
    """For the list of volumes."""

    pool: Annotated[str, Meta(description="Only those of this pool.")] = ""
    guest: Annotated[str, Meta(description="Only those that this guest has.")] = ""


class VolumeBody(Body, frozen=True):
    """A volume to be, of ``size`` bytes: empty, taking only what is written to it."""

    name: str
    size: int
    pool: str = DEFAULT_POOL
    serial: str = ""
    limits: Limits = NO_LIMITS
    note: str = ""


class VolumeChange(Body, frozen=True):
    """What to change of a volume; what is not named stays as it is. ``size`` only grows."""

    size: int | msgspec.UnsetType = msgspec.UNSET
    limits: Limits | msgspec.UnsetType = msgspec.UNSET
    note: str | msgspec.UnsetType = msgspec.UNSET


class AttachBody(Body, frozen=True):
    """Who gets the volume. ``boot`` is its place in the order of booting; 0: none."""

    guest: str
    read_only: bool = False
    boot: int = 0


class DetachBody(Body, frozen=True):
    """Who gives the volume back; without a name the only guest that has it."""

    guest: str = ""


class CloneBody(Body, frozen=True):
    """The new volume: of the volume as it is now, or of its ``snapshot``."""

    name: str
    snapshot: str = ""


class VolumeSnapshotBody(Body, frozen=True):
    """A snapshot of a volume to be. Without a name it gets one."""

    name: str = ""
    note: str = ""


class VolumeImportBody(Body, frozen=True):
    """What to import: ``source`` is an absolute path on the daemon's host or an http(s) URL."""

    source: str
    name: str
    pool: str = DEFAULT_POOL
    sha256: str = ""


class VolumeExportBody(Body, frozen=True):
    """Where to: ``path`` is a file on the daemon's host that does not exist yet."""

    path: str
    format: DiskFile = DiskFile.QCOW2
    snapshot: str = ""


class ServeBody(Body, frozen=True):
    """What to serve: the volume as it is now, or its ``snapshot``."""

    snapshot: str = ""


class PoolBody(Body, frozen=True):
    """A pool to be: ``path`` is an empty or new folder on the daemon's host."""

    name: str
    path: str


class MediumBody(Body, frozen=True):
    """The medium; ``force`` takes out what is in the drive even if the guest has locked it."""

    image: str
    force: bool = False


class EjectQuery(WaitQuery, frozen=True):
    """For ejecting."""

    force: Annotated[bool, Meta(description="Even if the guest has locked the drive.")] = False


class VolumePage(Page[VolumeInfo], frozen=True):
    """A page of volumes."""


class PoolPage(Page[Pool], frozen=True):
    """A page of pools."""


VOLUME_EXAMPLES: Mapping[type[msgspec.Struct], Mapping[str, object]] = {
    VolumeBody: {"name": "data", "size": 10 * GIB},
    VolumeChange: {"size": 20 * GIB, "limits": {"iops": 500, "iops_burst": 2000}},
    AttachBody: {"guest": "web1"},
    DetachBody: {"guest": "web1"},
    CloneBody: {"name": "data-copy", "snapshot": "monday"},
    VolumeSnapshotBody: {"name": "monday", "note": "before the update"},
    VolumeImportBody: {"source": "/srv/disk.vmdk", "name": "old-data"},
    VolumeExportBody: {"path": "/srv/data.qcow2", "format": "qcow2"},
    ServeBody: {"snapshot": "monday"},
    PoolBody: {"name": "fast", "path": "/srv/fast"},
    MediumBody: {"image": "installer"},
}
"""What a body looks like, for the pages; a test decodes each."""
