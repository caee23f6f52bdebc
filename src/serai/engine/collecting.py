"""Letting go of what nobody needs any more: snapshots of what is gone, layers, memory.

What is forgotten in the store goes first, its files after that; what a power cut leaves in between
is swept when the daemon starts.
"""

import asyncio
from collections.abc import Collection

from serai.engine.house import House
from serai.errors import Conflict
from serai.model.snapshot import FrozenMemory, SnapshotRecord
from serai.plan.layers import unneeded
from serai.store.changes import Change, DropLayer, DropSchedule, DropSnapshot


def drop_all_of(house: House, owner: str) -> tuple[Change, ...]:
    """Return the changes that forget all snapshots, and schedules, of a guest or image that goes."""
    snapshots = (DropSnapshot(each.id) for each in house.shelf.of(owner))
    return (*snapshots, *(DropSchedule(each.id) for each in house.timetable.of(owner)))


async def forget_all_of(house: House, owner: str) -> None:
    """Delete what the snapshots of an owner had, once the store has forgotten them."""
    for schedule in house.timetable.of(owner):
        house.timetable.drop(schedule)
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
    ids = {each.id for each in snapshots} | {each.id for each in memories}
    with house.shelf.under_way.on(*ids, *(each.base for each in memories)):
        await _delete_files(house, snapshots, memories)


async def _delete_files(
    house: House, snapshots: Collection[SnapshotRecord], memories: Collection[FrozenMemory]
) -> None:
    kept = [each.memory for each in house.shelf.snapshots.values() if each.memory]
    if house.shelf.is_whole:  # else a record that can't be read may name it too
        house.firmware.keep_only(house.shelf.firmware_names())
    for memory in {each.id for each in memories} - {each.id for each in kept}:
        await asyncio.to_thread(house.memory.delete, memory)
    bases = {each.base for each in memories} - {each.base for each in kept}
    if bases:
        async with house.shelf.storing:
            for base in bases:
                await drop_base(house, base)


async def drop_base(house: House, base: str) -> bool:
    """Delete a base, with ``shelf.storing`` held; False when a memory is over it, on its way too."""
    try:
        await asyncio.to_thread(house.memory.delete_base, base)
    except Conflict:
        return False
    house.shelf.bases.pop(base, None)
    return True


def collect_seeds(house: House) -> None:
    """Delete what no guest and no snapshot would be told at a first boot any more.

    Nothing while there are records that can't be read: they may name any.
    """
    if not house.shelf.is_whole:
        return
    guests = [*house.shelf.guests(), *(each.guest for each in house.shelf.snapshots.values())]
    house.seeds.keep_only({guest.seed for guest in guests if guest.seed})


async def collect(house: House) -> list[str]:
    """Delete the layers that nothing stands on; return a sentence for each. Seeds go quietly.

    None while there are records that can't be read: they may stand on any.
    """
    shelf = house.shelf
    if not shelf.is_whole:
        return []
    collect_seeds(house)
    gone = unneeded(shelf.layers, shelf.tops())
    if not gone:
        return []
    await house.journal.commit(*map(DropLayer, sorted(gone)))
    with shelf.under_way.on(*gone):
        for layer in gone:
            found = shelf.layers.pop(layer, None)
            if found is not None and house.pools.is_available(found.pool):  # else swept when back
                await asyncio.to_thread(house.pools.layers_of(found).delete, layer)
    return [f"the layer {layer} was not needed any more" for layer in sorted(gone)]
