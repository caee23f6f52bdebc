"""What `serai check` looks at: do the records and the files agree, and are the files what was stored?

``find_dangling`` compares records with each other (pure), ``find_strays`` files with records,
``find_damage`` reads the files. Each returns ``Defect``; what can be mended without losing anything
that somebody may still want is marked so, and ``mend`` does it.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from serai.disk.layers import LayerFolder
from serai.disk.memory import MemoryFolder
from serai.disk.pools import PoolFolders
from serai.disk.qcow2 import head_length, read_head
from serai.disk.volumes import drop_head, stray_heads
from serai.errors import HostFailure, SeraiError
from serai.model.guest import GuestRecord, Volume
from serai.model.snapshot import Layer, SnapshotRecord
from serai.model.volume import VolumeRecord

Report = Callable[[int, int], None]


class Fault(StrEnum):
    """What is wrong."""

    DANGLING = "dangling"  # a record names something that no record is of
    MISSING = "missing"  # a record names a file that is not there
    DAMAGED = "damaged"  # a file is not what was stored
    ORPHAN = "orphan"  # a file that no record names


class Kind(StrEnum):
    """What it is wrong with."""

    GUEST = "guest"
    SNAPSHOT = "snapshot"
    LAYER = "layer"
    MEMORY = "memory"
    VOLUME = "volume"


@dataclass(frozen=True, slots=True, kw_only=True)
class Defect:
    """One thing that is wrong. ``where`` names it, ``id`` is the id of the guest, snapshot, layer or
    memory; ``name`` that of a file, if it is about one. ``mendable``: without losing anything."""

    fault: Fault
    kind: Kind
    id: str
    message: str
    name: str = ""
    mendable: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """All records. ``complete`` is False when some of them can't be read: then nothing that seems to
    belong to nobody may be deleted."""

    guests: Sequence[GuestRecord]
    snapshots: Sequence[SnapshotRecord]
    layers: Mapping[str, Layer]
    complete: bool = True
    volumes: Sequence[VolumeRecord] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Folders:
    """Where the files are. ``guests`` has one folder a guest, named by id.

    Without ``pools`` nothing is known of volumes that live by themselves.
    """

    guests: Path
    layers: LayerFolder
    memory: MemoryFolder
    pools: PoolFolders | None = None

    def layers_of(self, layer: Layer) -> LayerFolder | None:
        """Return the folder that a layer lies in; None for a pool that is not there."""
        if not layer.pool:
            return self.layers
        if self.pools is None or not self.pools.is_available(layer.pool):
            return None
        return self.pools.layers_of(layer)

    def head(self, guest: GuestRecord, volume: Volume) -> Path | None:
        """Return where the head of a guest's volume is; None where there is none, or nobody can tell."""
        if volume.read_only:
            return None
        if not volume.pool:
            return self.guests / guest.id / volume.head
        if self.pools is None or not self.pools.is_available(volume.pool):
            return None
        return self.pools.heads(volume.pool) / volume.head


def find_dangling(known: Known) -> list[Defect]:
    """Return what records name that no record is of. Pure."""
    found: list[Defect] = []
    for guest in known.guests:
        for volume in guest.volumes:
            found += _dangling(known, Kind.GUEST, guest.id, volume.layer)
    for each in known.volumes:
        tops = [snapshot.layer for snapshot in each.snapshots]
        tops += [] if each.attached_to else [each.layer]
        for top in tops:
            found += _dangling(known, Kind.VOLUME, each.id, top)
    found += _unheld(known)
    for snapshot in known.snapshots:
        for frozen in snapshot.volumes:
            found += _dangling(known, Kind.SNAPSHOT, snapshot.id, frozen.layer)
    for layer in known.layers.values():
        found += _dangling(known, Kind.LAYER, layer.id, layer.parent)
    return found + _circles(known.layers)


def _unheld(known: Known) -> list[Defect]:
    """Return the volumes whose writer does not have them, and what guests have that is none."""
    guests = {
        guest.id: {each.id for each in guest.volumes if not each.read_only}
        for guest in known.guests
    }
    volumes = {each.id: each for each in known.volumes}
    found = [
        _disagreeing(
            each.id, f"the volume {each.name} is attached to {each.attached_to}, which has it not"
        )
        for each in known.volumes
        if each.attached_to and each.id not in guests.get(each.attached_to, ())
    ]
    for guest_id, held in guests.items():
        for volume_id in held - {""}:
            volume = volumes.get(volume_id)
            if volume is None or volume.attached_to != guest_id:
                message = (
                    f"the guest {guest_id} has the volume {volume_id}, which is not attached to it"
                )
                found.append(_disagreeing(volume_id, message))
    return found


def _disagreeing(volume_id: str, message: str) -> Defect:
    return Defect(fault=Fault.DANGLING, kind=Kind.VOLUME, id=volume_id, message=message)


def _dangling(known: Known, kind: Kind, where: str, layer: str) -> list[Defect]:
    if not layer or layer in known.layers:
        return []
    message = f"the {kind} {where} stands on the layer {layer}, which is not known"
    return [Defect(fault=Fault.DANGLING, kind=kind, id=where, message=message)]


def _circles(layers: Mapping[str, Layer]) -> list[Defect]:
    """Return the layers that stand on themselves."""
    found = []
    done: set[str] = set()
    for start in layers:
        way: dict[str, None] = {}
        layer = start
        while layer in layers and layer not in done and layer not in way:
            way[layer] = None
            layer = layers[layer].parent
        if layer in way:
            message = f"the layer {layer} stands on itself"
            found.append(Defect(fault=Fault.DANGLING, kind=Kind.LAYER, id=layer, message=message))
        done |= set(way)
    return found


def find_strays(known: Known, folders: Folders, *, idle: Collection[str]) -> list[Defect]:
    """Return files that no record names. Blocking, quick.

    ``idle`` are the ids of the guests that have no process: only their disks are looked at.
    """
    found = [
        _orphan(known, Kind.LAYER, each, folders.layers.size(each))
        for each in folders.layers.orphans(known.layers)
    ]
    memories = {each for snapshot in known.snapshots for each in _memory_ids(snapshot)}
    found += [
        _orphan(known, Kind.MEMORY, each, folders.memory.sizes(each).own)
        for each in folders.memory.orphans(memories)
    ]
    for guest in known.guests:
        folder = folders.guests / guest.id
        if guest.id in idle and guest.volumes and folder.is_dir():
            found += [_stray(guest, path) for path in stray_heads(folder, guest.volumes)]
    return found


def _memory_ids(snapshot: SnapshotRecord) -> tuple[str, ...]:
    return (snapshot.memory.id, snapshot.memory.base) if snapshot.memory else ()


def _orphan(known: Known, kind: Kind, where: str, size: int) -> Defect:
    return Defect(
        fault=Fault.ORPHAN,
        kind=kind,
        id=where,
        message=f"no record names the {kind} {where} ({size} bytes)",
        mendable=known.complete,
    )


def _stray(guest: GuestRecord, head: Path) -> Defect:
    """A disk may go when it is empty, or has another name as a layer; else it may be somebody's."""
    return Defect(
        fault=Fault.ORPHAN,
        kind=Kind.GUEST,
        id=guest.id,
        name=head.name,
        message=f"the disk {head.name} of {guest.spec.name} belongs to none of its volumes",
        mendable=_holds_nothing(head),
    )


def _holds_nothing(head: Path) -> bool:
    try:
        facts = head.stat(follow_symlinks=False)
        empty = facts.st_size <= head_length(read_head(head).virtual_size)
    except (SeraiError, OSError):
        return False
    return empty or facts.st_nlink > 1


async def find_damage(
    known: Known, folders: Folders, *, report: Report | None = None
) -> list[Defect]:
    """Read all that snapshots and guests stand on; return what is missing or not what was stored.

    Takes as long as reading it takes; ``report`` counts the layers and memories that were read.
    """
    found: list[Defect] = []
    memories = sorted({each for one in known.snapshots for each in _memory_ids(one)})
    total = len(known.layers) + len(memories)
    for done, layer in enumerate(known.layers.values()):
        _tell(report, done, total)
        folder = folders.layers_of(layer)
        if folder is None:
            continue  # its disk is not mounted: nobody can tell
        try:
            await folder.verify(layer)
        except HostFailure as error:
            gone = not folder.path(layer.id).exists()
            found.append(_damaged(Kind.LAYER, layer.id, error, gone=gone))
    there = folders.memory.memories() | set(folders.memory.bases())
    for done, memory in enumerate(memories, len(known.layers)):
        _tell(report, done, total)
        try:
            await folders.memory.verify(memory)
        except HostFailure as error:
            found.append(_damaged(Kind.MEMORY, memory, error, gone=memory not in there))
    for guest in known.guests:
        found += _missing_heads(guest, folders)
    for volume in known.volumes:
        found += _missing_head_of(volume, folders)
    return found


def _tell(report: Report | None, done: int, total: int) -> None:
    if report is not None:
        report(done, total)


def _damaged(kind: Kind, where: str, error: HostFailure, *, gone: bool) -> Defect:
    fault = Fault.MISSING if gone else Fault.DAMAGED
    return Defect(fault=fault, kind=kind, id=where, message=error.message)


def _missing_heads(guest: GuestRecord, folders: Folders) -> Iterable[Defect]:
    for volume in guest.volumes:
        head = folders.head(guest, volume)
        if head is not None:
            what = f"the disk {volume.head} of {guest.spec.name}"
            yield from _unusable(Kind.GUEST, guest.id, head, what)


def _missing_head_of(volume: VolumeRecord, folders: Folders) -> Iterable[Defect]:
    """Look at the head of a volume that no guest writes to."""
    pools = folders.pools
    if not volume.attached_to and pools is not None and pools.is_available(volume.pool):
        head = pools.heads(volume.pool) / volume.head
        yield from _unusable(Kind.VOLUME, volume.id, head, f"the volume {volume.name}")


def _unusable(kind: Kind, where: str, head: Path, what: str) -> Iterable[Defect]:
    try:
        read_head(head)
    except (SeraiError, OSError) as error:
        reason = error.message if isinstance(error, SeraiError) else error.strerror
        yield Defect(
            fault=Fault.DAMAGED if head.exists() else Fault.MISSING,
            kind=kind,
            id=where,
            name=head.name,
            message=f"{what} can't be used: {reason}",
        )


def broken_snapshots(known: Known, defects: Iterable[Defect]) -> dict[str, Defect]:
    """Return the snapshots that can't be used, and why: what they stand on is not sound. Pure."""
    bad: dict[tuple[Kind, str], Defect] = {}
    for defect in defects:
        if defect.fault in (Fault.DANGLING, Fault.MISSING, Fault.DAMAGED):
            bad.setdefault((defect.kind, defect.id), defect)
    broken: dict[str, Defect] = {}
    for snapshot in known.snapshots:
        needed = [(Kind.SNAPSHOT, snapshot.id)]
        needed += [(Kind.MEMORY, each) for each in _memory_ids(snapshot)]
        for volume in snapshot.volumes:
            needed += [(Kind.LAYER, each) for each in _down(known.layers, volume.layer)]
        reasons = [bad[each] for each in needed if each in bad]
        if reasons:
            broken[snapshot.id] = reasons[0]
    return broken


def _down(layers: Mapping[str, Layer], top: str) -> list[str]:
    way: dict[str, None] = {}
    while top in layers and top not in way:
        way[top] = None
        top = layers[top].parent
    return list(way)


def mend(defects: Iterable[Defect], folders: Folders) -> list[Defect]:
    """Delete what is mendable; return what was. Call it when nothing is being frozen or stored.

    Raises HostFailure where the disk does not let us.
    """
    mended = []
    # what is over a base goes before it
    for defect in sorted(defects, key=lambda each: each.id in folders.memory.bases()):
        if not defect.mendable or defect.fault is not Fault.ORPHAN:
            continue
        match defect.kind:
            case Kind.LAYER:
                folders.layers.delete(defect.id)
            case Kind.MEMORY:
                folders.memory.delete(defect.id)
            case Kind.GUEST:
                volume = Volume(name="stray", head=defect.name, size=0)
                drop_head(folders.guests / defect.id, volume)
            case Kind.SNAPSHOT | Kind.VOLUME:
                continue
        mended.append(defect)
    return mended
