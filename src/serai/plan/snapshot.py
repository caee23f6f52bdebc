"""Snapshots as a tree, what is shown of them, and whether their memory fits this host: pure."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

import msgspec

from serai.errors import Busy, Code, Conflict, Invalid
from serai.model.guest import Accel, ExitReason, GuestRecord, GuestSpec, Volume
from serai.model.network import Port
from serai.model.node import Capabilities
from serai.model.snapshot import (
    FrozenMemory,
    Layer,
    Snapshot,
    SnapshotRecord,
    SnapshotState,
)
from serai.model.volume import VolumeRecord
from serai.plan.layers import tops_of, users_of
from serai.plan.volume import ROOT
from serai.units import MIB, NAME_LENGTH, check_guest_name, format_size

MOST_FORKS = 1000
ROOM_PER_FORK = 48 * MIB
"""What an idle fork keeps for itself (measured: 17 to 33 MiB), generously."""


def pick_name(taken: Collection[str]) -> str:
    """Return a free name for a snapshot whose owner gave none."""
    number = len(taken) + 1
    while f"snap-{number}" in taken:
        number += 1
    return f"snap-{number}"


def in_tree_order(snapshots: Iterable[SnapshotRecord]) -> list[tuple[int, SnapshotRecord]]:
    """Return the snapshots with their depth: each after its parent, siblings by age.

    One whose parent is gone counts as a root.
    """
    by_id = {each.id: each for each in snapshots}
    children: dict[str, list[SnapshotRecord]] = {}
    for each in sorted(by_id.values(), key=lambda each: (each.created_at, each.id), reverse=True):
        parent = each.parent if each.parent in by_id else ""
        children.setdefault(parent, []).append(each)
    found: list[tuple[int, SnapshotRecord]] = []
    waiting = [(0, each) for each in children.get("", [])]
    while waiting:
        depth, each = waiting.pop()
        found.append((depth, each))
        waiting += [(depth + 1, child) for child in children.get(each.id, [])]
    return found


class Sizes:
    """What snapshots take, and what each of them shares; made once for a list."""

    def __init__(
        self,
        layers: Mapping[str, Layer],
        guests: Iterable[GuestRecord],
        snapshots: Sequence[SnapshotRecord],
        bases: Mapping[str, int],
        volumes: Iterable[VolumeRecord] = (),
    ) -> None:
        self._layers = layers
        self._bases = bases
        self._users = users_of(layers, tops_of(guests, snapshots, volumes))
        self._base_users = Counter(each.memory.base for each in snapshots if each.memory)
        self._below: dict[str, int] = {}

    def own(self, snapshot: SnapshotRecord) -> int:
        """Return what would be free without this snapshot, in bytes."""
        alone = sum(self._alone(volume.layer)[0] for volume in snapshot.volumes)
        memory = snapshot.memory
        return alone if memory is None else alone + memory.stored + self._base(memory, alone=True)

    def shared(self, snapshot: SnapshotRecord) -> int:
        """Return what it uses together with guests and other snapshots, in bytes."""
        together = sum(self._under(self._alone(volume.layer)[1]) for volume in snapshot.volumes)
        memory = snapshot.memory
        return together if memory is None else together + self._base(memory, alone=False)

    def _base(self, memory: FrozenMemory, *, alone: bool) -> int:
        is_alone = self._base_users[memory.base] == 1
        return self._bases.get(memory.base, 0) if is_alone is alone else 0

    def _alone(self, top: str) -> tuple[int, str]:
        """Return what the layers from ``top`` take that have no other user, and the next one."""
        size = 0
        while top in self._layers and self._users[top] == 1:
            size += self._layers[top].size
            top = self._layers[top].parent
        return size, top

    def _under(self, top: str) -> int:
        """Return what the layers from ``top`` down take; each is added up once for a whole list."""
        way = []
        while top in self._layers and top not in self._below:
            way.append(top)
            top = self._layers[top].parent
        below = self._below.get(top, 0)
        for each in reversed(way):
            below += self._layers[each].size
            self._below[each] = below
        return below


def view_snapshot(
    record: SnapshotRecord, *, guest: str, depth: int, is_current: bool, forks: int, sizes: Sizes
) -> Snapshot:
    """Join the record with what is known around it; ``guest`` is the guest's name now."""
    return Snapshot(
        name=record.name,
        id=record.id,
        guest=guest,
        guest_id=record.guest_id,
        state=record.state,
        created_at=record.created_at,
        parent=record.parent,
        depth=depth,
        is_current=is_current,
        with_memory=record.memory is not None,
        quiesced=record.quiesced,
        note=record.note,
        schedule=record.schedule,
        own=sizes.own(record),
        shared=sizes.shared(record),
        forks=forks,
        problem=record.problem,
    )


def cold_memories(
    snapshots: Iterable[SnapshotRecord], used: Mapping[str, float], before: float
) -> list[str]:
    """Return the memories and bases that nobody has made or used since ``before``, the coldest first.

    ``used`` tells by snapshot when it was last loaded. A base is as warm as its warmest memory.
    """
    warmth: dict[str, float] = {}
    for each in snapshots:
        if each.memory is not None and each.state is SnapshotState.READY:
            last = max(each.created_at, used.get(each.id, 0.0))
            for memory in (each.memory.id, each.memory.base):
                warmth[memory] = max(warmth.get(memory, 0.0), last)
    cold = [memory for memory, last in warmth.items() if last < before]
    return sorted(cold, key=lambda memory: (warmth[memory], memory))


def check_memory_fits(memory: FrozenMemory, what: str, capabilities: Capabilities) -> None:
    """Raise Conflict (``snapshot-unfit``) with the reason when this host can't take the memory up."""
    reason = _unfit(memory, capabilities)
    if reason:
        raise Conflict(
            Code.SNAPSHOT_UNFIT,
            f"the memory of {what} can't be taken up on this host: {reason}",
            hint="Its disks can: fork a snapshot without memory, or start it cold.",
        )


def _unfit(memory: FrozenMemory, capabilities: Capabilities) -> str:
    if memory.accel is not capabilities.accel:
        return f"it ran under {memory.accel}, and here guests run under {capabilities.accel}"
    if memory.qemu_version != capabilities.qemu_version:
        return f"it ran under QEMU {memory.qemu_version}, and here is {capabilities.qemu_version}"
    if memory.accel is Accel.KVM and memory.processor != capabilities.processor:
        return f"it ran on {memory.processor}, and here is {capabilities.processor}"
    return ""


def check_as_frozen(asked: GuestSpec, image: str, snapshot: SnapshotRecord) -> None:
    """Raise Conflict (``image-unfit``) where a guest of a published image is wanted with another machine.

    It begins with the one that was frozen. What is as it is without being asked for may stand: nobody can
    tell whether it was.
    """
    frozen, default = snapshot.guest.spec, GuestSpec(image=image)
    disks = {frozen.disk, *(each.size for each in snapshot.volumes if each.name == ROOT)}
    given = (
        ("--cpus", asked.cpus, {default.cpus, frozen.cpus}, str(frozen.cpus)),
        ("--memory", asked.memory, {default.memory, frozen.memory}, format_size(frozen.memory)),
        ("--disk", asked.disk, {default.disk, *disks}, format_size(max(disks))),
        ("--firmware", asked.firmware, {default.firmware, frozen.firmware}, str(frozen.firmware)),
    )
    can_change = {"--cpus", "--memory", *(["--disk"] if any(disks) else [])}
    for option, value, fits, has in given:
        if value not in fits:
            later = f"; to change it later: serai set NAME {option}" if option in can_change else ""
            raise Conflict(
                Code.IMAGE_UNFIT,
                f"a guest of the image {image} begins as it was frozen, with {option} {has}",
                hint=f"Launch it without {option}{later}",
            )


# -- forks -----------------------------------------------------------------------------------------


def fork_names(name: str, count: int) -> list[str]:
    """Return the names of ``count`` forks; Invalid for a count or a name that can't be."""
    if not 1 <= count <= MOST_FORKS:
        raise Invalid(
            Code.VALUE_INVALID,
            f"{count} forks at once: 1 to {MOST_FORKS} can be made",
            hint="Ask several times for more.",
        )
    if count == 1:
        return [check_guest_name(name)]
    longest = NAME_LENGTH - len(str(count)) - 1
    if len(name) > longest:
        raise Invalid(Code.NAME_INVALID, f"the name of so many forks has at most {longest} letters")
    return [check_guest_name(f"{name}-{number}") for number in range(1, count + 1)]


def check_not_itself(names: Collection[str], source: str) -> None:
    """Raise Conflict (``guest-exists``) where a fork is to have the name of its source."""
    if source in names:
        raise Conflict(
            Code.GUEST_EXISTS,
            f"there is a guest {source} already: it is what is to be forked",
            hint="Choose another name.",
        )


def group_names(name: str, count: int, sources: Sequence[str]) -> list[list[str]]:
    """Return, for each of ``count`` forks of a group, the names of its members.

    ``name-SOURCE``, or ``name-1-SOURCE`` and so on. Raises as ``fork_names`` does.
    """
    if count * len(sources) > MOST_FORKS:
        raise Invalid(
            Code.VALUE_INVALID,
            f"{count} forks of {len(sources)} guests at once: {MOST_FORKS} guests can be made",
            hint="Ask several times for more.",
        )
    groups = fork_names(name, count)
    return [[check_guest_name(f"{group}-{source}") for source in sources] for group in groups]


def check_group(sources: Sequence[str], *, keep_identity: bool, snapshot: str) -> None:
    """Raise Invalid (``value-invalid``) where these guests can't be forked as a group."""
    if not keep_identity:
        raise Invalid(
            Code.VALUE_INVALID,
            "guests that are forked together keep their identity: they know each other by it",
            hint="Add --keep-identity, or fork each by itself.",
        )
    if snapshot:
        raise Invalid(
            Code.VALUE_INVALID,
            "guests are forked together as they are now, not as they were in a snapshot",
            hint="Snapshots of two guests are of two moments: fork each by itself.",
        )
    if len(set(sources)) < len(sources):
        raise Invalid(Code.VALUE_INVALID, "a guest is named twice", hint="Name each guest once.")


def check_fork_room(count: int, available: int, coming: int = 0) -> None:
    """Raise Busy (``memory-short``) with the arithmetic when so many forks don't fit now.

    ``coming`` forks were promised already, and have taken nothing of ``available`` yet.
    """
    needed = count * ROOM_PER_FORK
    promised = coming * ROOM_PER_FORK
    if needed > available - promised:
        taken = f", of which {coming} forks on their way take {format_size(promised)}"
        raise Busy(
            Code.MEMORY_SHORT,
            f"{count} forks need {format_size(needed)} ({format_size(ROOM_PER_FORK)} each at first), "
            f"and {format_size(available)} are free{taken if coming else ''}",
            hint="Stop some guests, or make fewer forks.",
            details={"needed": str(needed), "available": str(available)},
        )


def fork_record(
    source: GuestRecord,
    *,
    guest_id: str,
    number: int,
    name: str,
    mac: str,
    genid: str,
    now: float,
    volumes: tuple[Volume, ...],
    origin: str,
    expires_at: float,
    coming: str,
    ports: tuple[Port, ...] = (),
    hostname: str,
) -> GuestRecord:
    """Return the record of a new guest that is like ``source`` and nobody else's.

    At a first boot it is told what its source was told, but for its ``hostname``.
    """
    return msgspec.structs.replace(
        source,
        id=guest_id,
        number=number,
        version=1,
        created_at=now,
        spec=msgspec.structs.replace(source.spec, name=name),
        mac=mac,
        genid=genid,
        wanted_on=True,
        last_exit=ExitReason.NEVER_STARTED,
        problem=None,
        volumes=volumes,
        snapshot="",
        origin=origin,
        expires_at=expires_at,
        coming=coming,
        ports=ports,
        hostname=hostname if source.seed else "",
    )
