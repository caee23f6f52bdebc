"""Snapshots: the frozen state of a guest, and the layers and memory that it is made of.

    Volume           a guest's block device: a writable head over immutable layers
    Layer            one immutable qcow2 file; it stands on another layer, on an image's disk, or alone
    FrozenVolume     a volume in a snapshot: the layers, without a head
    FrozenMemory     RAM and device state of a running guest, and what can take it up again
    SnapshotRecord   what the database keeps of a snapshot
    Snapshot         what everybody is shown of it

A fork is a new guest over the layers of a snapshot, with its memory mapped privately.
"""

from enum import StrEnum

import msgspec

from serai.errors import Problem
from serai.model.guest import Accel, GuestRecord, Volume
from serai.model.machine import Machine

__all__ = [
    "FrozenMemory",
    "FrozenVolume",
    "Layer",
    "Snapshot",
    "SnapshotRecord",
    "SnapshotState",
    "Volume",
]


class SnapshotState(StrEnum):
    """Whether a snapshot can be used."""

    CREATING = "creating"  # the guest goes on; the memory is still being written
    READY = "ready"
    BROKEN = "broken"  # a file of it is missing or is not what was stored: ``problem`` says which


class Layer(msgspec.Struct, frozen=True, kw_only=True):
    """An immutable piece of a volume: the file ``layers/ID.qcow2``.

    ``parent`` is the layer below; "" where it stands on the disk of the image ``image_digest``,
    or, if that is "" too, on nothing. ``size`` is what the file takes, ``virtual_size`` what a guest
    sees. ``digest`` is "" until the file has been hashed. ``pool`` names the pool whose layer it is, ""
    for the house's own folder.
    """

    id: str
    parent: str = ""
    image_digest: str = ""
    virtual_size: int
    size: int = 0
    digest: str = ""
    created_at: float
    pool: str = ""


class FrozenVolume(msgspec.Struct, frozen=True, kw_only=True):
    """A volume as it was: its top ``layer``; what is below that is in the layers themselves."""

    name: str
    layer: str
    size: int


class FrozenMemory(msgspec.Struct, frozen=True, kw_only=True):
    """The memory of a running guest, in the folder ``memory/ID``.

    ``base`` is the id of the flat RAM file that it is a difference to. ``machine`` is what ran;
    only a QEMU of the same version, with the same accelerator (and, under KVM, the same model of
    processor), takes it up again. ``size`` is the guest's RAM, ``stored`` what is kept for this one.
    """

    id: str
    base: str
    machine: Machine
    qemu_version: str
    accel: Accel
    processor: str = ""
    size: int
    stored: int = 0


class SnapshotRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What the database keeps. ``guest`` is the guest's whole record at that moment.

    ``parent`` is the snapshot that the guest stood on when this one was made ("": none), so that
    the snapshots of a guest are a tree. ``schedule`` names the schedule that made it, and
    ``schedule_id`` is its id: only that schedule may delete it. ``firmware`` names its UEFI
    variables ("" under BIOS).
    """

    id: str
    name: str
    guest_id: str
    guest: GuestRecord
    created_at: float
    state: SnapshotState = SnapshotState.CREATING
    parent: str = ""
    note: str = ""
    schedule: str = ""
    schedule_id: str = ""
    quiesced: bool = False
    volumes: tuple[FrozenVolume, ...] = ()
    memory: FrozenMemory | None = None
    firmware: str = ""
    problem: Problem | None = None


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """What is shown of a snapshot: REST, CLI and SDK all give this. Sizes are bytes.

    ``own`` is what would be free without this snapshot, ``shared`` what it uses together with others.
    ``depth`` is how far it is from the root of the tree; ``is_current`` marks the one that the guest
    stands on now. ``forks`` counts the guests that were made from it.
    """

    name: str
    id: str
    guest: str
    guest_id: str
    state: SnapshotState
    created_at: float
    parent: str
    depth: int
    is_current: bool
    with_memory: bool
    quiesced: bool
    note: str
    schedule: str
    own: int
    shared: int
    forks: int
    problem: Problem | None = None
