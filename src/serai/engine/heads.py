"""New heads over a guest's disks: their files, the guest's record, and what QEMU writes to.

    new heads made, old ones linked as layers     nobody knows of them yet
    the guest's new chain is stored               an empty head over the old one: the same content
    QEMU writes to the new heads                  the moment
    the old heads' own names are removed

So what is stored is right whatever happens in between, also where nobody can say whether QEMU has
done what it was told: it is asked again later, and until then the old heads keep their names.
"""

import asyncio
import contextlib
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from serai.disk.volumes import drop_head, new_head
from serai.engine.driver import GuestDriver
from serai.engine.house import House
from serai.engine.running import folder_of, machine_of, write_running
from serai.errors import HostFailure, SeraiError
from serai.host.supervise import whole
from serai.model.guest import GuestRecord, Volume
from serai.model.machine import LayerFile
from serai.model.snapshot import Layer
from serai.plan.volume import layer_pool
from serai.qemu.instance import Instance
from serai.store.changes import Change, DropLayer, PutGuest, PutLayer

SWITCH_TIMEOUT = 30.0
PATIENCE = 3.0
"""How long a moment may still take that nobody wants any more, in seconds."""
DYING = 1.0
"""For how long a QEMU whose monitor is silent may turn out to have ended."""


@dataclass(frozen=True, slots=True)
class Heads:
    """The volumes with their new heads, and the layers that the old ones are."""

    volumes: list[Volume] = field(default_factory=list)
    layers: list[Layer] = field(default_factory=list)


@dataclass(slots=True)
class Switched:
    """Whether QEMU writes to the new heads, or may do so."""

    done: bool = False
    is_unsure: bool = False


async def new_heads(driver: GuestDriver, ids: list[str], only: Collection[str] | None) -> Heads:
    """Make the new heads, and layers called ``ids`` of the old ones; the files only.

    On failure, and when cancelled, none of them is left.
    """
    heads = Heads()
    try:
        await whole(_make_heads(driver, ids, only, heads), patience=PATIENCE)
    except BaseException:
        await asyncio.to_thread(_remove_heads, driver, heads)
        raise
    return heads


async def _make_heads(
    driver: GuestDriver, ids: list[str], only: Collection[str] | None, heads: Heads
) -> None:
    for old, layer_id in zip(driver.record.volumes, ids, strict=True):
        if old.read_only or (only is not None and old.name not in only):
            heads.volumes.append(old)
            continue
        on_image = not old.layer and not old.port
        digest = driver.record.image_digest if on_image else ""
        folder = folder_of(driver, old)
        head, layer = await freeze_file(driver.house, folder, old, layer_id, digest)
        heads.volumes.append(head)
        heads.layers.append(layer)


async def freeze_file(
    house: House, folder: Path, old: Volume, layer_id: str, image_digest: str = ""
) -> tuple[Volume, Layer]:
    """Make the layer ``layer_id`` of a volume's head, and a new head over it; return both. Files only.

    Nobody knows of them yet, and a QEMU may go on writing to the old head. On failure neither is left;
    it is not to be cancelled. Size and layer of the volume
    are those that the new head has. The caller has the layer's id ``under_way``.
    """
    layers = house.pools.layers(old.pool)
    await asyncio.to_thread(layers.freeze_head, folder / old.head, layer_id)
    try:
        head = await asyncio.to_thread(new_head, folder, old, layer_id[:8])
    except BaseException:
        await asyncio.to_thread(layers.delete, layer_id)
        raise
    layer = Layer(
        id=layer_id,
        parent=old.layer,
        image_digest=image_digest,
        virtual_size=head.size,
        size=layers.size(layer_id),
        created_at=house.journal.now(),
        pool=layer_pool(old.pool),
    )
    return msgspec.structs.replace(head, layer=layer_id), layer


async def store_chain(driver: GuestDriver, heads: Heads, more: tuple[Change, ...]) -> None:
    """Store the new chain, before anything is written to it."""
    # known together, at every moment: what a layer stands on that is not known seems to be needed by nobody
    driver.house.shelf.layers.update({layer.id: layer for layer in heads.layers})
    change = driver.revise(volumes=tuple(heads.volumes))
    await driver.house.journal.commit(*map(PutLayer, heads.layers), change, *more)


async def take_back(driver: GuestDriver, before: GuestRecord, heads: Heads) -> None:
    """Give the guest its old chain again: nothing was written to the new heads."""
    driver.revise(volumes=before.volumes)
    with contextlib.suppress(SeraiError):  # else the longer chain stays, with the same content
        drops = [DropLayer(layer.id) for layer in heads.layers]
        await driver.house.journal.commit(PutGuest(driver.record), *drops)
        await asyncio.to_thread(_remove_heads, driver, heads)


def _remove_heads(driver: GuestDriver, heads: Heads) -> None:
    made = {layer.id for layer in heads.layers}
    for volume in heads.volumes:
        if volume.layer in made:
            drop_head(folder_of(driver, volume), volume)
    for layer in heads.layers:
        driver.house.shelf.layers.pop(layer.id, None)
        driver.house.pools.layers_of(layer).delete(layer.id)


async def drop_old_heads(driver: GuestDriver, before: GuestRecord) -> None:
    """Remove the old heads' own names; as layers they have others."""
    kept = {volume.head for volume in driver.record.volumes}
    for volume in before.volumes:
        if not volume.read_only and volume.head not in kept:
            await asyncio.to_thread(drop_head, folder_of(driver, volume), volume)


# -- what QEMU writes to ---------------------------------------------------------------------------


async def switch(driver: GuestDriver, instance: Instance, switched: Switched) -> None:
    """Have QEMU write to the new heads from now on."""
    now = {each.name: each.chain[0].path for each in instance.machine.drives if each.chain}
    wanted = wanted_heads(driver)
    heads = {name: head for name, head in wanted.items() if now.get(name, head.path) != head.path}
    if heads:
        switched.is_unsure = True
        try:
            await instance.switch_heads(heads, SWITCH_TIMEOUT)
        except HostFailure:
            switched.is_unsure = False
            raise
    switched.done, switched.is_unsure = True, False
    write_running(driver, instance)


async def is_dying(driver: GuestDriver) -> bool:
    """Tell whether QEMU has ended, or does just now: then nobody writes to any head."""
    instance = driver.instance
    if instance is None:
        return True
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DYING):
            await instance.process.wait()
    return instance.process.has_ended


async def settle_heads(driver: GuestDriver) -> None:
    """Have QEMU write to the heads that the record names, where nobody could say whether it does.

    Until then the old heads keep their own names: what they are as layers is not still.
    """
    instance = driver.instance
    if instance is None:
        return
    wanted = wanted_heads(driver)
    old = [
        drive.chain[0].path
        for drive in instance.machine.drives
        if drive.name in wanted and drive.chain[0].path != wanted[drive.name].path
    ]
    if not old:
        return
    await instance.finish_switch(wanted, SWITCH_TIMEOUT)
    write_running(driver, instance)
    for path in old:
        await asyncio.to_thread(Path(path).unlink, missing_ok=True)


def wanted_heads(driver: GuestDriver) -> dict[str, LayerFile]:
    """Return the head of each drive as the guest's record has it."""
    return {
        drive.name: drive.chain[0]
        for drive in machine_of(driver).drives
        if drive.chain and not drive.chain[0].read_only
    }
