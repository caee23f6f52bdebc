"""Putting a guest back to a snapshot, in place: a fork that takes the place of its guest.

Runs in the guest's own task. All that can fail is done before the present QEMU is ended: the files
are verified, the new heads made, and a second QEMU holds the snapshot's memory already.
"""

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Iterable

import msgspec

from serai.disk.volumes import drop_head
from serai.engine.births import SEED_BYTES, make_files, take_up, thaw
from serai.engine.driver import GuestDriver
from serai.engine.freezing import Frozen
from serai.engine.jobs import LiveJob
from serai.engine.plugging import give_back, keep_given_back
from serai.engine.procedures import start_cold
from serai.engine.running import (
    attach,
    detach,
    folder_of,
    let_go,
    note_agent,
    write_running,
)
from serai.errors import SeraiError
from serai.model.event import EventKind
from serai.model.guest import AgentState, ExitReason, GuestRecord, Volume
from serai.model.image import Expect
from serai.model.lifecycle import ON_STATES, GuestState, Happening
from serai.model.snapshot import SnapshotRecord
from serai.model.talk import ExecRequest
from serai.plan.machine import UEFI_VARS_NAME
from serai.plan.reborn import back_words
from serai.plan.volume import copies_over, entry_of, head_stem
from serai.qemu.instance import Instance
from serai.store.changes import PutGuest

log = logging.getLogger(__name__)

CLOCK_TIMEOUT = 20.0
FIRMWARE_ASIDE = ".uefi-vars.aside"


async def restore(
    driver: GuestDriver, job: LiveJob, snapshot: SnapshotRecord, loaded: Frozen
) -> None:
    """Put the guest back. It runs afterwards if the snapshot has memory, or if it ran before.

    Fails before phase ``swap``: nothing has changed. Interrupted later, it is done again.
    """
    before, was_on = driver.record, driver.state in ON_STATES
    driver.revise(**_as_it_was(driver, snapshot))
    upcoming = None
    try:
        await asyncio.to_thread(_put_firmware_aside, driver)
        await make_files(driver, loaded.uefi_vars)
        if loaded.moment is not None:
            upcoming = await take_up(driver, loaded.moment)
        job.hold()  # from here on it is done whole
        await job.enter("swap")
    except BaseException:
        await _give_up(driver, before, upcoming)
        raise
    await _end_present(driver)
    given_up = _given_up(before, driver.record)
    await driver.house.journal.commit(
        driver.revise(
            wanted_on=was_on or upcoming is not None,
            last_exit=ExitReason.REQUESTED,
            problem=None,
        ),
        *give_back(driver.house, given_up),
    )
    keep_given_back(driver.house, given_up)
    await job.enter("start")
    quiesced = loaded.moment is not None and loaded.moment.quiesced
    await _go_on(driver, upcoming, was_on=was_on, quiesced=quiesced)
    gone = [each for each in before.volumes if each not in given_up]
    await asyncio.to_thread(_drop_heads, driver, gone)
    await asyncio.to_thread(_drop_firmware_aside, driver)
    driver.tell(EventKind.GUEST_RESTORED, snapshot=snapshot.name)
    await job.finish(PutGuest(driver.record), message=f"{driver.name} is at {snapshot.name}")


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
    with contextlib.suppress(FileNotFoundError):
        (folder / UEFI_VARS_NAME).rename(folder / FIRMWARE_ASIDE)


def _take_firmware_back(driver: GuestDriver) -> None:
    folder = driver.house.places.guests / driver.record.id
    with contextlib.suppress(FileNotFoundError):
        (folder / FIRMWARE_ASIDE).rename(folder / UEFI_VARS_NAME)


def _drop_firmware_aside(driver: GuestDriver) -> None:
    (driver.house.places.guests / driver.record.id / FIRMWARE_ASIDE).unlink(missing_ok=True)


async def _give_up(driver: GuestDriver, before: GuestRecord, upcoming: Instance | None) -> None:
    """Leave everything as it was."""
    if upcoming is not None:
        await upcoming.end(0.0)
        await upcoming.close()
    made, driver.record = driver.record.volumes, before
    driver.changed()
    await asyncio.to_thread(_drop_heads, driver, made)
    await asyncio.to_thread(_take_firmware_back, driver)


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
    await upcoming.go_on()
    driver.happen(Happening.UP)
    if quiesced:
        await thaw(driver, upcoming)
    if driver.image.agent is not Expect.NO:
        await _tell_it_is_back(driver, upcoming)


async def _tell_it_is_back(driver: GuestDriver, instance: Instance) -> None:
    """Give the guest the time and another seed; without an agent it keeps the snapshot's."""
    argv, env = back_words(seed=secrets.token_hex(SEED_BYTES), now=driver.house.journal.now())
    try:
        await instance.agent.execute(ExecRequest(argv=argv, env=dict(env), timeout=CLOCK_TIMEOUT))
    except SeraiError as error:
        log.warning("the clock of %s was not set: %s", driver.name, error.message)
        return
    note_agent(driver, AgentState.ANSWERING)
