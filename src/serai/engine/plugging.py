"""Volumes of a guest that come and go: runs in the guest's own task.

What is stored comes first: from the commit on the guest has the volume, whatever its QEMU knows of it
yet, and a daemon that takes the guest up plugs in what is missing and unplugs what is too much. Only
letting go is the other way round: the record gives a volume back when QEMU has closed its files, so
that there are never two that write to it.
"""

import msgspec

from serai.disk.volumes import drop_head
from serai.engine.driver import GuestDriver
from serai.engine.house import House
from serai.engine.running import machine_of, write_running
from serai.errors import Code, Conflict, HostFailure
from serai.model.guest import Volume
from serai.model.lifecycle import GuestState
from serai.model.machine import Drive
from serai.model.volume import Limits, VolumeRecord
from serai.plan.volume import (
    attached,
    check_attach,
    check_detachable,
    find_entry,
    pick_port,
    released,
)
from serai.qemu.instance import Instance
from serai.store.changes import Change, DropVolume, PutVolume

PLUG_TIMEOUT = 10.0
UNPLUG_TIMEOUT = 10.0


def drive_name(entry: Volume) -> str:
    """Return what the drive of a volume is called in its machine."""
    return f"vol-{entry.name}" if entry.port else entry.name


async def plug_in(
    driver: GuestDriver, volume: VolumeRecord, *, read_only: bool, boot: int
) -> Volume:
    """Give the guest a volume, now and from now on; return it as the guest has it.

    On failure nobody has it, unless QEMU does not say (Interrupted). Raises Conflict (``volume-in-use``, ``no-port``), HostFailure.
    """
    house, instance = driver.house, driver.instance
    check_attach(volume, list(house.shelf.guests()), driver.record, read_only=read_only)
    busy = await instance.busy_ports() if instance is not None else set[str]()
    port = pick_port(driver.record, instance.machine if instance else None, busy)
    entry = attached(volume, port=port, read_only=read_only, boot=boot)
    holder = "" if read_only else driver.record.id
    taken = msgspec.structs.replace(volume, attached_to=holder, version=volume.version + 1)
    before = driver.record.volumes
    change = driver.revise(volumes=(*before, entry))
    try:
        await house.journal.commit(change, PutVolume(taken))
    except BaseException:
        driver.revise(volumes=before)
        raise
    house.shelf.volumes[volume.id] = taken
    if instance is not None:
        try:
            with house.shelf.openers.opening():
                await instance.plug_drive(_drive_of(driver, entry), PLUG_TIMEOUT)
        except HostFailure:  # after Interrupted nobody knows: then the guest has it
            if not await instance.has_drive(drive_name(entry)):
                await _take_out(driver, entry)
            raise
        write_running(driver, instance)
    return entry


def _drive_of(driver: GuestDriver, entry: Volume) -> Drive:
    name = drive_name(entry)
    return next(each for each in machine_of(driver).drives if each.name == name)


async def pull_out(driver: GuestDriver, name_or_id: str) -> Volume:
    """Take a volume from the guest; return it as the guest had it.

    A running guest has to let it go. On failure (Conflict ``volume-is-root``, ``volume-held``) the
    guest has it as before.
    """
    entry = find_entry(driver.record, name_or_id)
    check_detachable(driver.record, entry)
    if driver.instance is not None:
        if driver.state is not GuestState.RUNNING:
            raise Conflict(
                Code.VOLUME_HELD,
                f"{driver.name} is {driver.state}, so it can't let {entry.name} go",
                hint=f"Let it go on first: serai resume {driver.name}; or stop it.",
            )
        await driver.instance.unplug_drive(drive_name(entry), UNPLUG_TIMEOUT)
        write_running(driver, driver.instance)
    await _take_out(driver, entry)
    return entry


async def _take_out(driver: GuestDriver, entry: Volume) -> None:
    """Store that the guest has the volume no more."""
    rest = tuple(each for each in driver.record.volumes if each.name != entry.name)
    given = give_back(driver.house, (entry,))
    before = driver.record.volumes
    try:
        await driver.house.journal.commit(driver.revise(volumes=rest), *given)
    except BaseException:
        driver.revise(volumes=before)
        raise
    keep_given_back(driver.house, (entry,))


def give_back(house: House, entries: tuple[Volume, ...] | list[Volume]) -> tuple[PutVolume, ...]:
    """Return the changes that give volumes back which their guest has no more."""
    return tuple(PutVolume(record) for record in _released(house, entries))


def keep_given_back(house: House, entries: tuple[Volume, ...] | list[Volume]) -> None:
    """Know what ``give_back`` has stored."""
    for record in _released(house, entries):
        house.shelf.volumes[record.id] = record


def forget_made(house: House, guest_id: str, entries: tuple[Volume, ...]) -> tuple[Change, ...]:
    """Return the changes for the volumes of a guest whose launch is undone: made for it, they go too."""
    made = [each for each in entries if _is_made_for(house, guest_id, each)]
    others = tuple(each for each in entries if each not in made)
    return (*(DropVolume(each.id) for each in made), *give_back(house, others))


def drop_made(house: House, guest_id: str, entries: tuple[Volume, ...]) -> None:
    """Know what ``forget_made`` has stored, and remove the files of what is gone. Blocking, quick."""
    for each in entries:
        if _is_made_for(house, guest_id, each):
            del house.shelf.volumes[each.id]
            drop_head(house.pools.heads(each.pool), each)
        else:
            keep_given_back(house, (each,))


def _is_made_for(house: House, guest_id: str, entry: Volume) -> bool:
    volume = house.shelf.volumes.get(entry.id)
    return volume is not None and volume.made_for == guest_id


def _released(house: House, entries: tuple[Volume, ...] | list[Volume]) -> list[VolumeRecord]:
    known = house.shelf.volumes
    return [
        released(known[each.id], each)
        for each in entries
        if each.id in known and not each.read_only
    ]


async def change_entry(driver: GuestDriver, entry: Volume) -> None:
    """Store a volume as the guest has it now."""
    volumes = tuple(entry if each.name == entry.name else each for each in driver.record.volumes)
    await driver.house.journal.commit(driver.revise(volumes=volumes))


async def limit_here(driver: GuestDriver, name: str, limits: Limits) -> None:
    """Let the guest's disk do so much a second, now and from now on; on failure neither."""
    entry = find_entry(driver.record, name)
    if driver.instance is not None:
        await driver.instance.limit_drive(drive_name(entry), limits)
        write_running(driver, driver.instance)
    await change_entry(driver, msgspec.structs.replace(entry, limits=limits))


async def finish_plugging(driver: GuestDriver, instance: Instance) -> str:
    """Bring the disks of a running guest to what its record says, after a daemon's end.

    What was written down beside the guest may be older than what its QEMU has: that is asked. Returns
    what was done, as the end of a sentence.
    """
    if not driver.record.volumes and not instance.machine.drives:
        return ""
    with driver.house.shelf.openers.opening():
        return await _finish_plugging(driver, instance)


async def _finish_plugging(driver: GuestDriver, instance: Instance) -> str:
    wanted = {each.name: each for each in machine_of(driver).drives if each.port}
    known = {each.name for each in instance.machine.drives if each.port}
    plugged = await instance.plugged_drives()
    if known == plugged == wanted.keys():
        return ""
    for name in (known | plugged) - (wanted.keys() & plugged):
        await instance.unplug_drive(name, UNPLUG_TIMEOUT)
    for name, drive in wanted.items():
        if name not in known & plugged:
            await instance.plug_drive(drive, PLUG_TIMEOUT)
    write_running(driver, instance)
    return "; its volumes were plugged in or out"
