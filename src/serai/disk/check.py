"""What `serai check` looks at: do the records and the files agree, and are the files what was stored?

``find_dangling`` compares records with each other (pure), ``find_orphans`` and ``find_stray_heads`` files
with records, ``look_at_…`` read one thing each. What can be mended without losing anything that somebody
may still want is marked so, and ``delete`` does it. When which of them may be called is the caller's
to know (``engine.checking``): records and files need not agree while somebody is at work on them.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from serai.disk.firmware import FirmwareFolder
from serai.disk.images import ImageFolder
from serai.disk.layers import LayerFolder
from serai.disk.memory import MemoryFolder
from serai.disk.pools import PoolFolders
from serai.disk.qcow2 import head_length, read_head
from serai.disk.volumes import drop_head, stray_heads
from serai.errors import Code, HostFailure, SeraiError
from serai.model.check import Fault, Finding, FindingKind
from serai.model.guest import GuestRecord, Volume
from serai.model.snapshot import Layer, SnapshotRecord
from serai.model.volume import VolumeRecord
from serai.plan.layers import tops_of

NAMED = 10
"""How many guests and snapshots a finding names."""

Thing = tuple[FindingKind, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """All records. ``is_whole`` is False when some of them can't be read: then nothing that seems to
    belong to nobody may be deleted. What somebody is at work on (``under_way``) is not judged."""

    guests: Sequence[GuestRecord]
    snapshots: Sequence[SnapshotRecord]
    layers: Mapping[str, Layer]
    volumes: Sequence[VolumeRecord] = ()
    is_whole: bool = True
    under_way: Collection[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Folders:
    """Where the files are. ``guests`` has one folder a guest, named by id."""

    guests: Path
    layers: LayerFolder
    memory: MemoryFolder
    firmware: FirmwareFolder
    images: ImageFolder
    pools: PoolFolders

    def layers_of(self, layer: Layer) -> LayerFolder | None:
        """Return the folder that a layer lies in; None for a pool that is not there."""
        return self.pools.layers_of(layer) if self.pools.is_available(layer.pool) else None

    def head(self, guest: GuestRecord, volume: Volume) -> Path | None:
        """Return where the head of a guest's volume is; None where there is none, or nobody can tell."""
        if volume.read_only or not self.pools.is_available(volume.pool):
            return None
        if not volume.pool:
            return self.guests / guest.id / volume.head
        return self.pools.heads(volume.pool) / volume.head


# -- records ---------------------------------------------------------------------------------------


def find_dangling(known: Known) -> list[Finding]:
    """Return what records name that no record is of. Pure."""
    found: list[Finding] = []
    for guest in known.guests:
        for each in guest.volumes:
            found += _dangling(known, FindingKind.GUEST, guest.id, each.layer)
    for snapshot in known.snapshots:
        for frozen in snapshot.volumes:
            found += _dangling(known, FindingKind.SNAPSHOT, snapshot.id, frozen.layer)
    for volume in known.volumes:
        tops = [each.layer for each in volume.snapshots]
        tops += [] if volume.attached_to else [volume.layer]
        for top in tops:
            found += _dangling(known, FindingKind.VOLUME, volume.id, top)
    for layer in known.layers.values():
        found += _dangling(known, FindingKind.LAYER, layer.id, layer.parent)
    return found + _unheld(known) + _circles(known.layers)


def _unheld(known: Known) -> list[Finding]:
    """Return the volumes whose writer does not have them, and what guests have that is none."""
    held = {
        guest.id: {each.id for each in guest.volumes if not each.read_only}
        for guest in known.guests
    }
    volumes = {each.id: each for each in known.volumes}
    found = [
        _disagreeing(
            each.id, f"the volume {each.name} is attached to {each.attached_to}, which has it not"
        )
        for each in known.volumes
        if each.attached_to and each.id not in held.get(each.attached_to, ())
    ]
    for guest_id, ids in held.items():
        for volume_id in ids - {""}:
            volume = volumes.get(volume_id)
            if volume is None or volume.attached_to != guest_id:
                message = (
                    f"the guest {guest_id} has the volume {volume_id}, which is not attached to it"
                )
                found.append(_disagreeing(volume_id, message))
    return found


def _disagreeing(volume_id: str, message: str) -> Finding:
    return Finding(fault=Fault.DANGLING, kind=FindingKind.VOLUME, id=volume_id, message=message)


def _dangling(known: Known, kind: FindingKind, where: str, layer: str) -> list[Finding]:
    if not layer or layer in known.layers or layer in known.under_way:
        return []
    message = f"the {kind} {where} stands on the layer {layer}, which is not known"
    return [Finding(fault=Fault.DANGLING, kind=kind, id=where, message=message)]


def _circles(layers: Mapping[str, Layer]) -> list[Finding]:
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
            found.append(
                Finding(fault=Fault.DANGLING, kind=FindingKind.LAYER, id=layer, message=message)
            )
        done |= set(way)
    return found


def memories_of(snapshot: SnapshotRecord) -> tuple[str, ...]:
    """Return the ids of a snapshot's memory and of its base; one that is being made has its own id."""
    return (snapshot.memory.id, snapshot.memory.base) if snapshot.memory else (snapshot.id,)


def needs_of(known: Known, snapshot: SnapshotRecord) -> list[Thing]:
    """Return all that a snapshot stands on, itself first. Pure."""
    needed = [(FindingKind.SNAPSHOT, snapshot.id), (FindingKind.IMAGE, snapshot.guest.image_digest)]
    needed += [(FindingKind.MEMORY, each) for each in memories_of(snapshot)]
    for volume in snapshot.volumes:
        needed += _down(known.layers, volume.layer)
    return needed


def _guest_needs(known: Known, guest: GuestRecord) -> list[Thing]:
    needed = [(FindingKind.GUEST, guest.id), (FindingKind.IMAGE, guest.image_digest)]
    for volume in guest.volumes:
        needed += _down(known.layers, volume.layer)
    return needed


def _down(layers: Mapping[str, Layer], top: str) -> list[Thing]:
    way: dict[str, None] = {}
    while top in layers and top not in way:
        way[top] = None
        top = layers[top].parent
    images = {layers[each].image_digest for each in way} - {""}
    return [(FindingKind.LAYER, each) for each in way] + [
        (FindingKind.IMAGE, each) for each in sorted(images)
    ]


def broken_snapshots(known: Known, findings: Iterable[Finding]) -> dict[str, Finding]:
    """Return the snapshots that can't be used, and why: what they stand on is not sound. Pure."""
    bad: dict[Thing, Finding] = {}
    for finding in findings:
        if finding.is_unsound:
            bad.setdefault((finding.kind, finding.id), finding)
    broken: dict[str, Finding] = {}
    for snapshot in known.snapshots:
        reasons = [bad[each] for each in needs_of(known, snapshot) if each in bad]
        if reasons:
            broken[snapshot.id] = reasons[0]
    return broken


def name_users(known: Known, findings: Iterable[Finding]) -> list[Finding]:
    """Return the findings with the names of the guests and snapshots that stand on each. Pure."""
    names = {guest.id: guest.spec.name for guest in known.guests}
    guests, snapshots = defaultdict[Thing, list[str]](list), defaultdict[Thing, list[str]](list)
    for guest in [each for each in known.guests if not each.is_spare]:
        for thing in dict.fromkeys(_guest_needs(known, guest)):
            guests[thing].append(guest.spec.name)
    for snapshot in known.snapshots:
        for thing in dict.fromkeys(needs_of(known, snapshot)):
            snapshots[thing].append(_name_of(snapshot, names))
    return [
        msgspec.structs.replace(
            each,
            guests=tuple(sorted(guests[each.kind, each.id])[:NAMED]),
            snapshots=tuple(sorted(snapshots[each.kind, each.id])[:NAMED]),
        )
        for each in findings
    ]


def _name_of(snapshot: SnapshotRecord, names: Mapping[str, str]) -> str:
    if snapshot.guest_id.startswith("image:"):
        return snapshot.guest_id
    return f"{names.get(snapshot.guest_id, snapshot.guest_id)}@{snapshot.name}"


# -- files of nobody -------------------------------------------------------------------------------


def find_orphans(known: Known, folders: Folders) -> list[Finding]:
    """Return layers and memories that have files and no record. Blocking, quick."""
    found = []
    named = _named_layers(known)
    for each in folders.layers.orphans({*known.layers, *known.under_way}):
        size = folders.layers.size(each)
        found.append(_orphan(known, FindingKind.LAYER, each, size, is_named=each in named))
    memories = {each for snapshot in known.snapshots for each in memories_of(snapshot)}
    for each in folders.memory.orphans({*memories, *known.under_way}):
        size = folders.memory.sizes(each).own
        found.append(_orphan(known, FindingKind.MEMORY, each, size, is_named=False))
    return found


def _named_layers(known: Known) -> set[str]:
    """Return the layers that any record stands on: one whose own record is lost is still wanted."""
    return {
        *tops_of(known.guests, known.snapshots, known.volumes),
        *(each.parent for each in known.layers.values()),
    }


def _orphan(known: Known, kind: FindingKind, where: str, size: int, *, is_named: bool) -> Finding:
    message = f"no record is of the {kind} {where} ({size} bytes)"
    if is_named:
        message += ", but others stand on it: it is not to be deleted"
    return Finding(
        fault=Fault.ORPHAN,
        kind=kind,
        id=where,
        message=message,
        mendable=known.is_whole and not is_named,
    )


def find_stray_heads(guest: GuestRecord, folders: Folders) -> list[Finding]:
    """Return the disks in the folder of a guest, which has no process, that are none of its volumes.

    Blocking, quick.
    """
    folder = folders.guests / guest.id
    if not guest.volumes or not folder.is_dir():
        return []
    return [_stray(guest, path) for path in stray_heads(folder, guest.volumes)]


def _stray(guest: GuestRecord, head: Path) -> Finding:
    """A disk may go when it is empty, or has another name as a layer; else it may be somebody's."""
    return Finding(
        fault=Fault.ORPHAN,
        kind=FindingKind.GUEST,
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


def delete(finding: Finding, folders: Folders) -> None:
    """Delete an orphan that is mendable (done already: fine). Blocking.

    Raises Conflict (``snapshot-state``) for a base that a memory is over, and HostFailure where the disk
    does not let us.
    """
    match finding.kind:
        case FindingKind.LAYER:
            folders.layers.delete(finding.id)
        case FindingKind.MEMORY:
            folders.memory.delete(finding.id)
        case FindingKind.GUEST:
            volume = Volume(name="stray", head=finding.name, size=0)
            drop_head(folders.guests / finding.id, volume)
        case FindingKind.SNAPSHOT | FindingKind.IMAGE | FindingKind.VOLUME:
            pass


# -- files that are needed -------------------------------------------------------------------------


def damage_of(kind: FindingKind, where: str, error: HostFailure, *, is_gone: bool) -> Finding:
    """Return the finding that ``error`` tells of; what is none of a file's is raised again."""
    if error.code not in (Code.SNAPSHOT_CORRUPT, Code.IMAGE_CORRUPT):
        raise error
    fault = Fault.MISSING if is_gone else Fault.DAMAGED
    return Finding(fault=fault, kind=kind, id=where, message=error.message)


async def look_at_layer(layer: Layer, folders: Folders) -> Finding | None:
    """Read a layer; return what is wrong with it, if anything is and anybody can tell."""
    folder = folders.layers_of(layer)
    if folder is None:
        return None
    try:
        await folder.verify(layer, again=True)
    except HostFailure as error:
        is_gone = not folder.path(layer.id).exists()
        return damage_of(FindingKind.LAYER, layer.id, error, is_gone=is_gone)
    return None


async def look_at_memory(memory_id: str, folders: Folders) -> Finding | None:
    """Read a memory or a base; return what is wrong with it, if anything is."""
    try:
        await folders.memory.verify(memory_id)
    except HostFailure as error:
        there = {*folders.memory.memories(), *folders.memory.bases()}
        return damage_of(FindingKind.MEMORY, memory_id, error, is_gone=memory_id not in there)
    return None


async def look_at_image(digest: str, folders: Folders) -> Finding | None:
    """Read all files of an image; return what is wrong with it, if anything is."""
    try:
        image = folders.images.read(digest)
        if image is None:
            message = f"the image {digest} is gone"
            return Finding(fault=Fault.MISSING, kind=FindingKind.IMAGE, id=digest, message=message)
        await folders.images.verify(image)
    except HostFailure as error:
        return damage_of(FindingKind.IMAGE, digest, error, is_gone=False)
    return None


def look_at_heads(guest: GuestRecord, folders: Folders) -> list[Finding]:
    """Return which disks of a guest are missing or can't be ones. Blocking, quick."""
    found = []
    for volume in guest.volumes:
        head = folders.head(guest, volume)
        if head is not None:
            what = f"the disk {volume.head} of {guest.spec.name}"
            found += _unusable(FindingKind.GUEST, guest.id, head, what)
    return found


def look_at_firmware(snapshot: SnapshotRecord, folders: Folders) -> list[Finding]:
    """Read a snapshot's UEFI variables; return what is wrong with them. Blocking, quick."""
    try:
        folders.firmware.get(snapshot.firmware)
    except HostFailure as error:
        is_gone = not folders.firmware.path(snapshot.firmware).exists()
        return [damage_of(FindingKind.SNAPSHOT, snapshot.id, error, is_gone=is_gone)]
    return []


def look_at_volume(volume: VolumeRecord, folders: Folders) -> list[Finding]:
    """Return what is wrong with the head of a volume that no guest writes to. Blocking, quick."""
    if volume.attached_to or not folders.pools.is_available(volume.pool):
        return []
    head = folders.pools.heads(volume.pool) / volume.head
    return _unusable(FindingKind.VOLUME, volume.id, head, f"the volume {volume.name}")


def _unusable(kind: FindingKind, where: str, head: Path, what: str) -> list[Finding]:
    try:
        read_head(head)
    except (SeraiError, OSError) as error:
        reason = error.message if isinstance(error, SeraiError) else error.strerror
        fault = Fault.DAMAGED if head.exists() else Fault.MISSING
        message = f"{what} can't be used: {reason}"
        return [Finding(fault=fault, kind=kind, id=where, name=head.name, message=message)]
    return []
