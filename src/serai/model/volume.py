"""Volumes that live by themselves, and the pools that they lie in.

    VolumeRecord     what the database keeps of a volume
    VolumeInfo       what everybody is shown of it
    VolumeSnapshot   the state of a volume at one moment: a layer with a name
    Limits           how much a volume may be used
    PoolRecord       what the database keeps of a pool
    Pool             what everybody is shown of it, with what its kind can do

A volume that is attached is a ``guest.Volume`` in the record of its guest, and that says what its head
and layer are from then on (docs/design/0035); ``VolumeRecord`` gets them back when it is detached.
"""

from collections.abc import Mapping
from enum import StrEnum

import msgspec

DEFAULT_POOL = "default"


class PoolKind(StrEnum):
    """What keeps the volumes of a pool."""

    DIRECTORY = "directory"


class PoolFeatures(msgspec.Struct, frozen=True, kw_only=True):
    """What a kind of pool can do; who decides asks this and never the kind.

    ``shared``: several nodes reach the same volumes. ``thin``: a volume takes what was written to it.
    """

    snapshots: bool
    clones: bool
    grow: bool
    discard: bool
    thin: bool
    exports: bool
    shared: bool


FEATURES: Mapping[PoolKind, PoolFeatures] = {
    PoolKind.DIRECTORY: PoolFeatures(
        snapshots=True, clones=True, grow=True, discard=True, thin=True, exports=True, shared=False
    ),
}


class PoolRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What the database keeps of a pool. ``path`` is its folder, which is marked with ``id``."""

    name: str
    id: str
    kind: PoolKind = PoolKind.DIRECTORY
    path: str
    created_at: float


class Pool(msgspec.Struct, frozen=True, kw_only=True):
    """What is shown of a pool. Sizes are bytes.

    ``free`` is what may still be written, the reserve taken off; ``virtual`` what the volumes in it say
    that they have, ``used`` what they take. ``available`` is false while its folder is not there.
    """

    name: str
    kind: PoolKind
    path: str
    available: bool
    size: int
    free: int
    virtual: int
    used: int
    volumes: int
    features: PoolFeatures
    created_at: float


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much a volume may be used: operations and bytes a second; 0: as much as it likes.

    A burst is how much it may be for ``burst_seconds`` when it was less before.
    """

    iops: int = 0
    iops_burst: int = 0
    bps: int = 0
    bps_burst: int = 0
    burst_seconds: int = 1


NO_LIMITS = Limits()


class VolumeSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """A volume at one moment: its top ``layer`` then."""

    id: str
    name: str
    layer: str
    size: int
    created_at: float
    note: str = ""


class VolumeRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What the database keeps of a volume.

    ``attached_to`` is the id of the guest that may write to it, "" where there is none: then the head
    is the file ``head`` in its pool over ``layer`` ("": over nothing). Who only reads it stands on its
    layer, and in no record but that guest's own. ``made_for`` is the id of the guest whose launch made it.
    """

    id: str
    name: str
    pool: str = DEFAULT_POOL
    version: int = 1
    created_at: float
    size: int
    head: str
    layer: str = ""
    serial: str
    limits: Limits = NO_LIMITS
    note: str = ""
    attached_to: str = ""
    made_for: str = ""
    snapshots: tuple[VolumeSnapshot, ...] = ()


class Attachment(msgspec.Struct, frozen=True, kw_only=True):
    """A guest that has a volume."""

    guest: str
    guest_id: str
    read_only: bool
    boot: int = 0


class VolumeSnapshotInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What is shown of a snapshot of a volume. ``own`` would be free without it."""

    name: str
    id: str
    created_at: float
    size: int
    own: int
    note: str


class VolumeInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What is shown of a volume: REST, CLI and SDK all give this. Sizes are bytes.

    ``size`` is what a guest sees, ``own`` what would be free without the volume, ``shared`` what it
    uses together with others. ``attached`` lists who has it: one that writes, or any that read.
    """

    name: str
    id: str
    pool: str
    size: int
    own: int
    shared: int
    serial: str
    limits: Limits
    note: str
    created_at: float
    version: int
    attached: tuple[Attachment, ...]
    snapshots: tuple[VolumeSnapshotInfo, ...]


class VolumeWish(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A volume that a new guest gets: the one that is called ``name``, or a new one of ``size`` bytes.

    ``boot`` is its place in the order of booting, 1 before the guest's own disk; 0: none.
    """

    name: str = ""
    size: int = 0
    pool: str = DEFAULT_POOL
    read_only: bool = False
    boot: int = 0


class DiskFile(StrEnum):
    """What a volume can be exported as."""

    QCOW2 = "qcow2"
    RAW = "raw"
    VMDK = "vmdk"
