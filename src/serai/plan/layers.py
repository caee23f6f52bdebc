"""Which layers are still needed, and which two can become one: pure.

Layers are a graph: each knows the one below (``parent``). Whatever a guest's head or a snapshot
stands on directly is a *top*; what no way down from a top reaches is not needed.
"""

from collections import Counter
from collections.abc import Iterable, Mapping

from serai.errors import Code, HostFailure
from serai.model.guest import GuestRecord
from serai.model.snapshot import Layer, SnapshotRecord
from serai.model.volume import VolumeRecord

Layers = Mapping[str, Layer]


def tops_of(
    guests: Iterable[GuestRecord],
    snapshots: Iterable[SnapshotRecord],
    volumes: Iterable[VolumeRecord] = (),
) -> Counter[str]:
    """Return the layers that heads and snapshots stand on directly, and how many do.

    Of a volume that a guest writes to, the guest says what its head stands on.
    """
    found = Counter(volume.layer for guest in guests for volume in guest.volumes)
    found.update(volume.layer for snapshot in snapshots for volume in snapshot.volumes)
    for each in volumes:
        found.update(snapshot.layer for snapshot in each.snapshots)
        if not each.attached_to:
            found[each.layer] += 1
    del found[""]
    return found


def chain(layers: Layers, top: str) -> list[Layer]:
    """Return the layers from ``top`` down to the last.

    Raises HostFailure (``snapshot-corrupt``) when one is not known, or they go round in a circle.
    """
    found: list[Layer] = []
    while top:
        layer = layers.get(top)
        if layer is None or len(found) >= len(layers):
            raise HostFailure(Code.SNAPSHOT_CORRUPT, f"the layer {top} is not known")
        found.append(layer)
        top = layer.parent
    return found


def unneeded(layers: Layers, tops: Iterable[str]) -> set[str]:
    """Return the layers that nothing stands on any more."""
    needed: set[str] = set()
    for top in tops:
        while top and top not in needed and top in layers:
            needed.add(top)
            top = layers[top].parent
    return set(layers) - needed


def users_of(layers: Layers, tops: Mapping[str, int]) -> Counter[str]:
    """Return how many stand right on each layer: heads, snapshots and other layers."""
    return Counter(tops) + Counter(each.parent for each in layers.values() if each.parent)


def mergeable(layers: Layers, tops: Mapping[str, int]) -> list[tuple[str, str]]:
    """Return pairs (child, parent) that can become one layer; no layer is in two of them.

    A pair can when nothing else stands on the parent, so that nobody can tell them apart, and both
    lie in one pool.
    """
    users = users_of(layers, tops)
    pairs: list[tuple[str, str]] = []
    taken: set[str] = set()
    for child in sorted(layers):
        parent = layers[child].parent
        if parent not in layers or users[parent] != 1 or {child, parent} & taken:
            continue
        if layers[child].pool != layers[parent].pool:
            continue
        taken |= {child, parent}
        pairs.append((child, parent))
    return pairs
