"""Cold memory of snapshots takes less room: what nobody used for long is compressed.

Loading a compressed memory takes longer, and works all the same, also while this is under way.
"""

import asyncio

import msgspec

from serai.engine.house import House
from serai.plan.snapshot import cold_memories
from serai.store.changes import PutSnapshot
from serai.units import format_size


async def cool_one(house: House) -> str:
    """Compress the coldest memory that is not yet; return a sentence, or "" if there is none."""
    before = house.journal.now() - house.settings.cold_after
    cold = cold_memories(house.shelf.snapshots.values(), house.shelf.used, before)
    house.shelf.cooled.intersection_update(cold)
    for memory in cold:
        if memory in house.shelf.cooled or house.bases.is_open(memory):
            continue
        house.shelf.cooled.add(memory)  # tried once by each daemon, also where it was not worth it
        if await asyncio.to_thread(house.memory.is_compressed, memory):
            continue
        with house.shelf.under_way.on(*house.shelf.memory_ids()):  # they share files
            freed = await house.memory.compress(memory)
        await _note_sizes(house, memory)
        return f"the cold memory {memory} was compressed; {format_size(freed)} became free"
    return ""


async def _note_sizes(house: House, memory: str) -> None:
    """Store what the memory takes now, so that what is shown of its snapshots is so."""
    own = (await asyncio.to_thread(house.memory.sizes, memory)).own
    if memory in house.shelf.bases:
        house.shelf.bases[memory] = own
        return
    for snapshot in list(house.shelf.snapshots.values()):
        if snapshot.memory is not None and snapshot.memory.id == memory:
            changed = msgspec.structs.replace(
                snapshot, memory=msgspec.structs.replace(snapshot.memory, stored=own)
            )
            await house.journal.commit(PutSnapshot(changed, if_there=True))
            house.shelf.put(changed)
