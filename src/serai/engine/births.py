"""The birth of a guest from what was frozen: its disks over the same layers, its memory shared.

``bring_to_life`` runs as the first work of a new guest's own task: heads, a QEMU that waits, the
state loaded into it, and, before anybody may talk to it, the words that make it somebody of its own.
"""

import asyncio
import dataclasses
import logging
import secrets
from pathlib import Path

import msgspec

from serai.disk.files import naming_disk_problems, write_durably
from serai.disk.volumes import make_head
from serai.engine.driver import GuestDriver
from serai.engine.freezing import Frozen, Moment
from serai.engine.house import House
from serai.engine.procedures import start_cold
from serai.engine.running import (
    attach,
    confinement_of,
    machine_of,
    next_run_dir,
    note_agent,
    write_running,
)
from serai.errors import SeraiError
from serai.model.guest import AgentState, GuestRecord, GuestSpec
from serai.model.image import Expect
from serai.model.lifecycle import GuestState, Happening
from serai.model.machine import Machine
from serai.model.talk import ExecRequest
from serai.plan.machine import UEFI_VARS_NAME
from serai.plan.reborn import back_words, birth_words
from serai.plan.snapshot import fork_record, volumes_over
from serai.qemu.instance import Instance

log = logging.getLogger(__name__)

LOAD_TIMEOUT = 30.0
BIRTH_TIMEOUT = 20.0
SEED_BYTES = 32


def new_record(
    house: House,
    frozen: Frozen,
    spec: GuestSpec,
    *,
    guest_id: str,
    origin: str,
    coming: str,
    ttl: float = 0.0,
) -> GuestRecord:
    """Return the record of a new guest of what was frozen; it has a number from now on."""
    random, now = house.new_id(), house.journal.now()
    heads = {each.name: f"{each.name}.qcow2" for each in frozen.volumes}
    return fork_record(
        msgspec.structs.replace(frozen.record, spec=spec),
        guest_id=guest_id,
        number=house.names.claim_number(),
        name=spec.name,
        mac="52:54:00:" + ":".join(random[i : i + 2] for i in (0, 2, 4)),
        genid=house.new_id(),
        now=now,
        volumes=volumes_over(frozen.volumes, heads),
        origin=origin,
        expires_at=now + ttl if ttl else 0.0,
        coming=coming,
    )


async def bring_to_life(child: GuestDriver, frozen: Frozen, *, keep_identity: bool) -> None:
    """Let a new guest run, in its own task: from the moment, or from its disks where there is none.

    On failure no process of it is left; its folder and record are the caller's.
    """
    await make_files(child, frozen.uefi_vars)
    child.happen(Happening.CREATED)
    child.enter(GuestState.STARTING)
    if frozen.moment is None:
        await start_cold(child)
        return
    try:
        await be_born(child, frozen.moment, old_mac=frozen.record.mac, keep_identity=keep_identity)
    except BaseException:
        child.happen(Happening.START_FAILED)
        raise


async def make_files(driver: GuestDriver, uefi_vars: bytes) -> None:
    """Make the files of the guest: an empty head for each volume, and its firmware's variables.

    Doing it again changes nothing but the latter.
    """
    folder = driver.house.places.guests / driver.record.id
    await asyncio.to_thread(_make_files, driver, folder, uefi_vars)


def _make_files(driver: GuestDriver, folder: Path, uefi_vars: bytes) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if uefi_vars:
        with naming_disk_problems("creating the UEFI variables"):
            write_durably(folder / UEFI_VARS_NAME, uefi_vars)
    for volume in driver.record.volumes:
        make_head(folder, volume)


async def take_up(driver: GuestDriver, moment: Moment) -> Instance:
    """Start a QEMU for the guest that has taken the moment up; its processors are held still.

    On failure nothing of it is left running.
    """
    house = driver.house
    base = await house.bases.find(moment.base)
    machine = machine_from(driver, moment.machine)
    run_dir = house.places.guests_run / driver.record.id
    run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    instance = await Instance.prepare(
        machine,
        memory_fd=base.fd,
        capabilities=house.capabilities,
        run_dir=run_dir if driver.instance is None else next_run_dir(driver),
        state_dir=house.places.guests / driver.record.id,
        confinement=confinement_of(driver, machine),
        timeout=house.settings.start_timeout,
    )
    try:
        await instance.take_state(moment.state_fd, moment.pages_fd, LOAD_TIMEOUT)
    except BaseException:
        await instance.end(0.0)
        await instance.close()
        raise
    return instance


def machine_from(driver: GuestDriver, frozen: Machine) -> Machine:
    """Return the frozen machine as this guest's: its own identity and drives, else the same."""
    own = machine_of(driver)
    return dataclasses.replace(
        frozen,
        id=own.id,
        name=own.name,
        genid=own.genid,
        nics=own.nics,
        drives=own.drives,
        uefi_vars=own.uefi_vars,
        ram_private=True,
    )


async def be_born(
    driver: GuestDriver, moment: Moment, *, old_mac: str, keep_identity: bool
) -> None:
    """Take the moment up and let the new guest run; it is RUNNING once it knows who it is.

    On failure no process of it is left; its folder and record are the caller's.
    """
    instance = await take_up(driver, moment)
    write_running(driver, instance)
    answering = driver.image.agent is not Expect.NO
    attach(driver, instance, agent=AgentState.UNKNOWN)
    await instance.go_on()
    if moment.quiesced:
        await thaw(driver, instance)
    if answering:
        await _tell_who_it_is(driver, instance, old_mac, keep_identity=keep_identity)
    driver.happen(Happening.UP)


async def thaw(driver: GuestDriver, instance: Instance) -> None:
    """Let the file systems go on that were frozen for the moment that was taken up."""
    try:
        await instance.agent.thaw(timeout=BIRTH_TIMEOUT)
    except SeraiError as error:
        log.warning("the file systems of %s stay frozen: %s", driver.name, error.message)


async def _tell_who_it_is(
    driver: GuestDriver, instance: Instance, old_mac: str, *, keep_identity: bool
) -> None:
    """Give the guest inside its own seed, clock, name and ids; without an agent it does without.

    One that keeps its identity gets the first two only.
    """
    record, now = driver.record, driver.house.journal.now()
    seed = secrets.token_hex(SEED_BYTES)
    if keep_identity:
        argv, env = back_words(seed=seed, now=now)
    else:
        argv, env = birth_words(
            name=record.spec.name,
            machine_id=record.id,
            old_mac=old_mac,
            mac=record.mac,
            seed=seed,
            now=now,
        )
    request = ExecRequest(argv=argv, env=dict(env), timeout=BIRTH_TIMEOUT)
    try:
        await instance.agent.execute(request)
    except SeraiError as error:
        log.warning("%s was not told who it is: %s", driver.name, error.message)
        return
    note_agent(driver, AgentState.ANSWERING)
