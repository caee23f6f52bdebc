"""What is on the shelf: every snapshot, layer and volume by id, as the store has them.

Read by everybody; changed only together with a commit, by ``SnapshotKeeper``, ``VolumeKeeper``, and by
what runs in a guest's task (``freezing``, ``plugging``).
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager

from serai.engine.under_way import Openers, UnderWay
from serai.errors import Code, Conflict, NotFound
from serai.model.guest import GuestRecord
from serai.model.snapshot import Layer, Snapshot, SnapshotRecord
from serai.model.volume import PoolRecord, VolumeRecord
from serai.plan.layers import tops_of
from serai.plan.snapshot import Sizes, in_tree_order, view_snapshot
from serai.units import shorten


class Shelf:
    """All snapshots and layers. ``bases`` are the stored memory bases with their sizes in bytes.

    ``used`` tells when a snapshot was last loaded by this daemon, ``cooled`` which memories it has
    looked at to compress them. ``guests`` gives the records of all guests, which stand on layers
    too; the engine sets it. ``is_whole`` is False when the store has records that can't be read:
    then nothing that seems to belong to nobody may go. ``storing`` is held while a memory or a base
    is stored or a base deleted.
    """

    def __init__(self) -> None:
        self.guests: Callable[[], Iterable[GuestRecord]] = list
        self.layers: dict[str, Layer] = {}
        self.snapshots: dict[str, SnapshotRecord] = {}
        self.bases: dict[str, int] = {}
        self.volumes: dict[str, VolumeRecord] = {}
        self.pools: dict[str, PoolRecord] = {}
        self._held: Counter[str] = Counter()
        self.used: dict[str, float] = {}
        self.cooled: set[str] = set()
        self.is_whole = True
        self.under_way = UnderWay()
        self.openers = Openers()
        self.storing = asyncio.Lock()
        self._by_guest: dict[str, dict[str, str]] = {}

    def fill(self, layers: Iterable[Layer], snapshots: Iterable[SnapshotRecord]) -> None:
        """Put everything on it that the store has."""
        self.layers = {layer.id: layer for layer in layers}
        for snapshot in snapshots:
            self.put(snapshot)

    def tops(self) -> Counter[str]:
        """Return the layers that something stands on directly, and how many do."""
        found = tops_of(self.guests(), self.snapshots.values(), self.volumes.values())
        return found + self._held

    @contextmanager
    def holding(self, layer: str) -> Iterator[None]:
        """Let nobody collect or merge away a layer while the block uses it."""
        self._held[layer] += 1
        try:
            yield
        finally:
            self._held[layer] -= 1

    def hold(self, layers: Iterable[str]) -> ExitStack:
        """Hold several layers, from now on and until what is returned is closed."""
        stack = ExitStack()
        for layer in layers:
            stack.enter_context(self.holding(layer))
        return stack

    def find_volume(self, name_or_id: str) -> VolumeRecord:
        """Return a volume; NotFound (``volume-not-found``)."""
        for each in self.volumes.values():
            if name_or_id in (each.name, each.id):
                return each
        raise NotFound(
            Code.VOLUME_NOT_FOUND,
            f"there is no volume {shorten(name_or_id)}",
            hint="See which there are: serai volume list",
        )

    def put(self, snapshot: SnapshotRecord) -> None:
        """Keep a snapshot, new or changed."""
        before = self.snapshots.get(snapshot.id)
        if before is not None and before.name != snapshot.name:
            del self._by_guest[before.guest_id][before.name]
        self.snapshots[snapshot.id] = snapshot
        self._by_guest.setdefault(snapshot.guest_id, {})[snapshot.name] = snapshot.id

    def drop(self, snapshot: SnapshotRecord) -> None:
        """Forget a snapshot; one that is not there is forgotten already."""
        self.used.pop(snapshot.id, None)
        if self.snapshots.pop(snapshot.id, None) is not None:
            names = self._by_guest[snapshot.guest_id]
            names.pop(snapshot.name, None)
            if not names:
                del self._by_guest[snapshot.guest_id]

    def of(self, guest_id: str) -> list[SnapshotRecord]:
        """Return the snapshots of a guest, in no order."""
        return [self.snapshots[each] for each in self._by_guest.get(guest_id, {}).values()]

    def names(self, guest_id: str) -> set[str]:
        """Return the names that a guest's snapshots have."""
        return set(self._by_guest.get(guest_id, {}))

    def memory_ids(self) -> set[str]:
        """Return the ids of all memories and bases that snapshots have."""
        memories = [each.memory for each in self.snapshots.values() if each.memory]
        return {each.id for each in memories} | {each.base for each in memories}

    def firmware_names(self) -> set[str]:
        """Return the names of all UEFI variables that snapshots have."""
        return {each.firmware for each in self.snapshots.values()} - {""}

    def find(self, guest: GuestRecord, name_or_id: str) -> SnapshotRecord:
        """Return a snapshot of ``guest``; NotFound (``snapshot-not-found``), also for a foreign one."""
        found = self._by_guest.get(guest.id, {}).get(name_or_id, name_or_id)
        snapshot = self.snapshots.get(found)
        if snapshot is None or snapshot.guest_id != guest.id:
            raise NotFound(
                Code.SNAPSHOT_NOT_FOUND,
                f"{guest.spec.name} has no snapshot {shorten(name_or_id)}",
                hint=f"See which it has: serai snapshot list {guest.spec.name}",
            )
        return snapshot

    def check_free(self, guest: GuestRecord, name: str) -> None:
        """Raise Conflict (``snapshot-exists``) when a snapshot of ``guest`` has that name."""
        if name in self.names(guest.id):
            raise Conflict(
                Code.SNAPSHOT_EXISTS,
                f"{guest.spec.name} has a snapshot {name} already",
                hint=f"Choose another name, or: serai snapshot delete {guest.spec.name} {name}",
            )

    def show(self, guest: GuestRecord) -> list[Snapshot]:
        """Return a guest's snapshots as they are shown, as a tree."""
        everybody = list(self.guests())
        sizes = Sizes(
            self.layers,
            everybody,
            list(self.snapshots.values()),
            self.bases,
            self.volumes.values(),
        )
        forks = Counter(each.origin for each in everybody if not each.is_spare)
        return [
            view_snapshot(
                each,
                guest=guest.spec.name,
                depth=depth,
                is_current=each.id == guest.snapshot,
                forks=forks[each.id],
                sizes=sizes,
            )
            for depth, each in in_tree_order(self.of(guest.id))
        ]
