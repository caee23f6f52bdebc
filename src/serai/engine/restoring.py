"""Putting a guest back to a snapshot, in place: a fork that takes the place of its guest.

Runs in the guest's own task. All that can fail is done before the present QEMU is ended: the files
are verified, the new heads made, and a second QEMU holds the snapshot's memory already.
"""

import asyncio
import contextlib
import logging
from collections.abc import Iterable

import msgspec

from serai.disk.volumes import drop_head
from serai.engine.births import (
    Told,
    fit_nics,
    make_files,
    same_self,
    see_told,
    take_up,
    tell,
    thaw,
)
from serai.engine.driver import GuestDriver
from serai.engine.jobs import LiveJob, error_of
from serai.engine.leading import open_forwards
from serai.engine.moments import Frozen
from serai.engine.plugging import give_back, keep_given_back
from serai.engine.procedures import start_cold
from serai.engine.running import (
    attach,
    detach,
    dismiss,
    folder_of,
    let_go,
    write_running,
)
from serai.errors import SeraiError
from serai.model.event import EventKind
from serai.model.guest import ExitReason, GuestRecord, Volume
from serai.model.image import Expect
from serai.model.lifecycle import ON_STATES, GuestState, Happening
from serai.model.snapshot import SnapshotRecord
from serai.plan.machine import UEFI_VARS_NAME
from serai.plan.volume import copies_over, entry_of, head_stem
from serai.qemu.instance import Instance
from serai.store.changes import PutGuest

log = logging.getLogger(__name__)

FIRMWARE_ASIDE = ".uefi-vars.*.aside"
"""Where a firmware's variables are meanwhile; the star is the version of the record they belong to."""


async def restore(
    driver: GuestDriver, job: LiveJob, snapshot: SnapshotRecord, loaded: Frozen
) -> None:
    """Put the guest back. It runs afterwards if the snapshot has memory, or if it ran before.

    Fails before phase ``swap``: nothing has changed. Interrupted later, it is done again.
    """
    before = driver.record
    was_on = driver.state in ON_STATES or before.wanted_on
    changes = _as_it_was(driver, snapshot)
    coming = msgspec.structs.replace(before, **changes)
    upcoming = None
    try:
        await asyncio.to_thread(_put_firmware_aside, driver)
        await make_files(driver, coming, loaded.uefi_vars)
        if loaded.moment is not None:
            upcoming, _ = await take_up(driver, coming, loaded.moment)
        job.hold()  # from here on it is done whole
        await job.enter("swap")
        await _end_present(driver)
        await _store(driver, changes, wanted_on=was_on or upcoming is not None)
    except BaseException:
        await _give_up(driver, before, coming, upcoming)
        raise
    gone = [each for each in before.volumes if each not in _given_up(before, coming)]
    try:
        await job.enter("start")
        quiesced = loaded.moment is not None and loaded.moment.quiesced
        await _go_on(driver, upcoming, was_on=was_on, quiesced=quiesced)
    finally:
        await asyncio.to_thread(_drop_heads, driver, gone)
        await asyncio.to_thread(tidy_firmware, driver)
    driver.tell(EventKind.GUEST_RESTORED, snapshot=snapshot.name)
    await job.finish(PutGuest(driver.record), message=f"{driver.name} is at {snapshot.name}")


async def _store(driver: GuestDriver, changes: dict[str, object], *, wanted_on: bool) -> None:
    """Store what the guest is from now on; on failure it is what it was."""
    before = driver.record
    change = driver.revise(
        **changes, wanted_on=wanted_on, last_exit=ExitReason.REQUESTED, problem=None
    )
    given_up = _given_up(before, driver.record)
    try:
        await driver.house.journal.commit(change, *give_back(driver.house, given_up))
    except SeraiError:
        driver.record = before
        driver.changed()
        raise
    keep_given_back(driver.house, given_up)


def _as_it_was(driver: GuestDriver, snapshot: SnapshotRecord) -> dict[str, object]:
    """Return what of the record changes: everything that the snapshot has, but the name."""
    house, frozen = driver.house, snapshot.guest
    unique = house.new_id()[:8]
    return {
        "spec": msgspec.structs.replace(frozen.spec, name=driver.name),
        "image_digest": frozen.image_digest,
        "machine_type": frozen.machine_type,
        "mac": frozen.mac,
        "medium": frozen.medium,
        "genid": house.new_id(),
        "volumes": _volumes_of(driver, snapshot, unique),
        "snapshot": snapshot.id,
    }


def _volumes_of(driver: GuestDriver, snapshot: SnapshotRecord, unique: str) -> tuple[Volume, ...]:
    """Return the guest's volumes over what was frozen.

    One that the guest has still stays the volume that it is, and goes back like the rest; of one that
    it gave away since, or that is gone, the guest gets a copy of its own.
    """
    copies = copies_over(snapshot.guest, snapshot.volumes, unique, driver.house.shelf.volumes)
    frozen = {each.name: each.id for each in snapshot.guest.volumes}
    found = []
    for copy in copies:
        volume_id = frozen[copy.name]
        still = entry_of(driver.record, volume_id) if volume_id and not copy.read_only else None
        if still is not None and not still.read_only:
            copy = msgspec.structs.replace(copy, id=still.id, pool=still.pool)
            copy = msgspec.structs.replace(copy, head=f"{head_stem(copy)}-{unique}.qcow2")
        found.append(copy)
    return tuple(found)


def _given_up(before: GuestRecord, now: GuestRecord) -> list[Volume]:
    """Return the volumes that lived by themselves before and that the guest has no more."""
    kept = {each.id for each in now.volumes}
    return [each for each in before.volumes if each.id and each.id not in kept]


def _drop_heads(driver: GuestDriver, volumes: Iterable[Volume]) -> None:
    for volume in volumes:
        if not volume.read_only:
            drop_head(folder_of(driver, volume), volume)


def _put_firmware_aside(driver: GuestDriver) -> None:
    """Keep the firmware's variables for the case that the present QEMU goes on with them."""
    folder = driver.house.places.guests / driver.record.id
    aside = FIRMWARE_ASIDE.replace("*", str(driver.record.version))
    with contextlib.suppress(FileNotFoundError):
        (folder / UEFI_VARS_NAME).rename(folder / aside)


def tidy_firmware(driver: GuestDriver) -> None:
    """Take back the firmware's variables that belong to the record as it is; drop others.

    For a restore that has ended, and when the daemon starts, for one that was interrupted.
    """
    folder = driver.house.places.guests / driver.record.id
    for path in folder.glob(FIRMWARE_ASIDE):
        if path.name == FIRMWARE_ASIDE.replace("*", str(driver.record.version)):
            path.rename(folder / UEFI_VARS_NAME)
        else:
            path.unlink()


async def _give_up(
    driver: GuestDriver, before: GuestRecord, coming: GuestRecord, upcoming: Instance | None
) -> None:
    """Leave everything as it was; a present QEMU that was ended already stays so."""
    if upcoming is not None:
        await upcoming.end(0.0)
        await dismiss(driver, upcoming)
    made = tuple(each for each in coming.volumes if each not in before.volumes)
    await asyncio.to_thread(_drop_heads, driver, made)
    await asyncio.to_thread(tidy_firmware, driver)


async def _end_present(driver: GuestDriver) -> None:
    if driver.instance is None:
        return
    driver.enter(GuestState.STOPPING)
    await driver.instance.end(0.0)
    await detach(driver)
    await let_go(driver)
    driver.happen(Happening.GONE)


async def _go_on(
    driver: GuestDriver, upcoming: Instance | None, *, was_on: bool, quiesced: bool
) -> None:
    """Let the guest run as it was, or start it from its disks where it ran before."""
    if upcoming is None:
        if was_on:
            driver.enter(GuestState.STARTING)
            await start_cold(driver)
        return
    driver.enter(GuestState.STARTING)
    write_running(driver, upcoming)
    attach(driver, upcoming)
    told = None if quiesced else tell(upcoming, same_self(driver))
    try:
        await upcoming.go_on()
    except BaseException as error:
        await _report_lost(driver, upcoming, error)
        raise
    await open_forwards(driver)
    driver.happen(Happening.UP)
    try:
        await fit_nics(driver)
    except SeraiError as error:
        log.warning("a port of %s comes with its next start: %s", driver.name, error.message)
    if quiesced:
        await thaw(driver, upcoming)
    if driver.image.agent is not Expect.NO:
        await _see_it_is_back(driver, upcoming, told)


async def _report_lost(driver: GuestDriver, upcoming: Instance, error: BaseException) -> None:
    """The QEMU that was to go on can't: the guest is stopped, at the snapshot's disks."""
    if driver.house.closing.is_set():
        return
    await upcoming.end(0.0)
    await detach(driver)
    await let_go(driver)
    driver.happen(Happening.START_FAILED)
    problem = error_of(error).problem()
    change = driver.revise(wanted_on=False, last_exit=ExitReason.START_FAILED, problem=problem)
    with contextlib.suppress(SeraiError):  # then the next daemon finds it without a process
        await driver.house.journal.commit(change)


async def _see_it_is_back(driver: GuestDriver, instance: Instance, told: Told | None) -> None:
    """See to it that the guest has the time and another seed; without an agent it keeps the snapshot's."""
    try:
        await see_told(driver, instance, told or tell(instance, same_self(driver)))
    except SeraiError as error:
        log.warning("the clock of %s was not set: %s", driver.name, error.message)
