"""Putting a guest back to a snapshot, in place: a fork that takes the place of its guest.

Runs in the guest's own task. All that can fail is done before the present QEMU is ended: the files
are verified, the new heads made, and a second QEMU holds the snapshot's memory already.
"""

import asyncio
import contextlib
import logging
import secrets

import msgspec

from serai.disk.volumes import drop_head
from serai.engine.births import SEED_BYTES, make_files, take_up, thaw
from serai.engine.driver import GuestDriver
from serai.engine.freezing import Frozen
from serai.engine.jobs import LiveJob
from serai.engine.procedures import start_cold
from serai.engine.running import attach, detach, let_go, note_agent, write_running
from serai.errors import SeraiError
from serai.model.event import EventKind
from serai.model.guest import AgentState, ExitReason, GuestRecord, Volume
from serai.model.image import Expect
from serai.model.lifecycle import ON_STATES, GuestState, Happening
from serai.model.snapshot import SnapshotRecord
from serai.model.talk import ExecRequest
from serai.plan.machine import UEFI_VARS_NAME
from serai.plan.reborn import back_words
from serai.plan.snapshot import volumes_over
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
    await driver.house.journal.commit(
        driver.revise(
            wanted_on=was_on or upcoming is not None,
            last_exit=ExitReason.REQUESTED,
            problem=None,
        )
    )
    await job.enter("start")
    quiesced = loaded.moment is not None and loaded.moment.quiesced
    await _go_on(driver, upcoming, was_on=was_on, quiesced=quiesced)
    await asyncio.to_thread(_drop_heads, driver, before.volumes)
    await asyncio.to_thread(_drop_firmware_aside, driver)
    driver.tell(EventKind.GUEST_RESTORED, snapshot=snapshot.name)
    await job.finish(PutGuest(driver.record), message=f"{driver.name} is at {snapshot.name}")


def _as_it_was(driver: GuestDriver, snapshot: SnapshotRecord) -> dict[str, object]:
    """Return what of the record changes: everything that the snapshot has, but the name."""
    house, frozen = driver.house, snapshot.guest
    unique = house.new_id()[:8]
    heads = {each.name: f"{each.name}-{unique}.qcow2" for each in snapshot.volumes}
    return {
        "spec": msgspec.structs.replace(frozen.spec, name=driver.name),
        "image_digest": frozen.image_digest,
        "machine_type": frozen.machine_type,
        "mac": frozen.mac,
        "genid": house.new_id(),
        "volumes": volumes_over(snapshot.volumes, heads),
        "snapshot": snapshot.id,
    }


def _drop_heads(driver: GuestDriver, volumes: tuple[Volume, ...]) -> None:
    folder = driver.house.places.guests / driver.record.id
    for volume in volumes:
        drop_head(folder, volume)


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
