"""Letting go of what nobody needs any more: snapshots of what is gone, layers, memory.

What is forgotten in the store goes first, its files after that; what a power cut leaves in between
is swept when the daemon starts.
"""

import asyncio
from collections.abc import Collection

from serai.engine.house import House
from serai.model.snapshot import SnapshotRecord
from serai.plan.layers import tops_of, unneeded
from serai.store.changes import Change, DropLayer, DropSnapshot


def drop_all_of(house: House, owner: str) -> tuple[Change, ...]:
    """Return the changes that forget all snapshots of a guest, or image, that goes."""
    return tuple(DropSnapshot(each.id) for each in house.shelf.of(owner))


async def forget_all_of(house: House, owner: str) -> None:
    """Delete what the snapshots of an owner had, once the store has forgotten them."""
    snapshots = house.shelf.of(owner)
    for snapshot in snapshots:
        house.shelf.drop(snapshot)
    await delete_files(house, snapshots)
    await collect(house)


async def delete_files(house: House, snapshots: Collection[SnapshotRecord]) -> None:
    """Delete the memory and firmware of snapshots that are not on the shelf any more.

    What others of their family use stays; layers are ``collect``'s.
    """
    memories = [each.memory for each in snapshots if each.memory]
    kept = [each.memory for each in house.shelf.snapshots.values() if each.memory]
    for snapshot in snapshots:
        path = house.places.firmware / f"{snapshot.id}.fd"
        await asyncio.to_thread(path.unlink, missing_ok=True)
    for memory in {each.id for each in memories} - {each.id for each in kept}:
        await asyncio.to_thread(house.memory.delete, memory)
    for base in {each.base for each in memories} - {each.base for each in kept}:
        house.shelf.bases.pop(base, None)
        await asyncio.to_thread(house.memory.delete_base, base)


def collect_seeds(house: House) -> None:
    """Delete what no guest and no snapshot would be told at a first boot any more."""
    guests = [*house.shelf.guests(), *(each.guest for each in house.shelf.snapshots.values())]
    house.seeds.keep_only({guest.seed for guest in guests if guest.seed})


async def collect(house: House) -> list[str]:
    """Delete the layers that nothing stands on; return a sentence for each. Seeds go quietly."""
    shelf = house.shelf
    collect_seeds(house)
    gone = unneeded(shelf.layers, tops_of(shelf.guests(), shelf.snapshots.values()))
    if not gone:
        return []
    await house.journal.commit(*map(DropLayer, sorted(gone)))
    for layer in gone:
        shelf.layers.pop(layer, None)
        await asyncio.to_thread(house.layers.delete, layer)
    return [f"the layer {layer} was not needed any more" for layer in sorted(gone)]
