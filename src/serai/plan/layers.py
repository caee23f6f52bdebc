"""Which layers are still needed, and which two can become one: pure.

A *chain* is what some guest's volume or some snapshot stands on: ids of layers, the newest first.
"""

from collections.abc import Collection, Iterable, Mapping
from itertools import pairwise

from serai.model.guest import GuestRecord
from serai.model.snapshot import Layer, SnapshotRecord

Chain = tuple[str, ...]


def chains_of(guests: Iterable[GuestRecord], snapshots: Iterable[SnapshotRecord]) -> list[Chain]:
    """Return every chain that somebody stands on."""
    found = [volume.layers for guest in guests for volume in guest.volumes]
    found += [volume.layers for snapshot in snapshots for volume in snapshot.volumes]
    return [chain for chain in found if chain]


def unneeded(layers: Iterable[str], chains: Iterable[Chain]) -> set[str]:
    """Return the layers that no chain has."""
    return set(layers) - {layer for chain in chains for layer in chain}


def mergeable(
    layers: Mapping[str, Layer], chains: Collection[Chain], tops: Collection[str]
) -> list[tuple[str, str]]:
    """Return pairs (child, parent) that can become one layer; no layer is in two of them.

    A pair can when wherever the parent is, the child is right above it, so that nobody can tell them
    apart. ``tops`` are layers that a snapshot or a guest's head stands on directly: never a parent.
    """
    above: dict[str, set[str]] = {}
    for chain in chains:
        for child, parent in pairwise(chain):
            above.setdefault(parent, set()).add(child)
    pairs: list[tuple[str, str]] = []
    taken: set[str] = set()
    for parent, children in sorted(above.items()):
        if len(children) != 1 or parent in tops or parent not in layers:
            continue
        (child,) = children
        if child in layers and not {child, parent} & taken:
            taken |= {child, parent}
            pairs.append((child, parent))
    return pairs


def tops_of(guests: Iterable[GuestRecord], snapshots: Iterable[SnapshotRecord]) -> set[str]:
    """Return the layers that a head or a snapshot stands on directly."""
    return {chain[0] for chain in chains_of(guests, snapshots)}
