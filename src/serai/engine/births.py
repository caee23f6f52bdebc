"""The birth of a guest from what was frozen: its disks over the same layers, its memory shared.

``bring_to_life`` runs as the first work of a new guest's own task: heads, a QEMU that waits, the
state loaded into it, and, before anybody may talk to it, the words that make it somebody of its own.
"""

import asyncio
import dataclasses
import logging
import secrets
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import msgspec

from serai.disk.files import naming_disk_problems, write_durably
from serai.disk.volumes import make_head
from serai.engine.driver import GuestDriver
from serai.engine.house import House
from serai.engine.moments import Moment, Promise, Template
from serai.engine.ports import plug, unplug
from serai.engine.procedures import start_cold
from serai.engine.running import (
    attach,
    confinement_of,
    dismiss,
    folder_of,
    machine_of,
    next_run_dir,
    note_agent,
    write_running,
)
from serai.engine.seeding import write_seed
from serai.errors import Busy, Code, HostFailure, SeraiError
from serai.host.supervise import Supervisor, whole
from serai.model.guest import POOL, AgentState, GuestRecord, GuestSpec
from serai.model.image import Expect
from serai.model.lifecycle import GuestState, Happening
from serai.model.machine import Machine
from serai.model.network import InBubble, Port, PortSpec
from serai.model.talk import ExecRequest
from serai.plan.machine import UEFI_VARS_NAME, USER_NIC, nic_of
from serai.plan.reborn import NewPort, NewSelf, as_line, as_script, macs_of, new_port, renewal_words
from serai.plan.snapshot import fork_record
from serai.plan.volume import copies_over
from serai.qemu.instance import Instance

log = logging.getLogger(__name__)

LOAD_TIMEOUT = 30.0
BIRTH_TIMEOUT = 20.0
LINE_TIMEOUT = 5.0
WAKING_LIMIT = 2.0
FILES_LIMIT = 60.0
SEED_BYTES = 32
NONCE_BYTES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What a guest was told, by a line that has the ``nonce`` in it."""

    new: NewSelf
    nonce: str


def new_record(
    house: House,
    template: Template,
    spec: GuestSpec,
    *,
    guest_id: str,
    origin: str,
    coming: str,
    ttl: float = 0.0,
    asked: tuple[PortSpec, ...] = (),
    seed: str = "",
    hostname: str = "",
    bubble: InBubble | None = None,
    same: bool = False,
) -> GuestRecord:
    """Return the record of a new guest like the template; it has a number and addresses from now on.

    Its ports are like those of the template, or those that are ``asked``, all in ``bubble``; there they
    have the ``same`` addresses if wished. ``seed`` "" means what its source was told, ``hostname`` "" its own
    name. Raises as ``Fabric.claim`` does.
    """
    ports = _claim_ports(house, template, (guest_id, spec.name), asked, bubble, same=same)
    random, now = house.new_id(), house.journal.now()
    # what nobody is shown is no reader of a volume either; the layer it has all the same
    known = () if coming == POOL else house.shelf.volumes
    return fork_record(
        msgspec.structs.replace(template.record, spec=spec, seed=seed or template.record.seed),
        guest_id=guest_id,
        number=house.names.claim_number(),
        name=spec.name,
        mac="52:54:00:" + ":".join(random[i : i + 2] for i in (0, 2, 4)),
        genid=house.new_id(),
        now=now,
        volumes=copies_over(template.record, template.volumes, "", known),
        origin=origin,
        expires_at=now + ttl if ttl else 0.0,
        coming=coming,
        ports=ports,
        hostname=hostname or spec.name,
    )


def _claim_ports(
    house: House,
    template: Template,
    owner: tuple[str, str],
    asked: tuple[PortSpec, ...],
    bubble: InBubble | None,
    *,
    same: bool,
) -> tuple[Port, ...]:
    """Take the ports of a new guest; the first that is asked is where the template has its first."""
    like = {house.new_id(): port for port in template.record.ports}
    if not asked:
        return house.fabric.claim_like(owner, like, bubble, same=same)
    own = [each.name for each in template.record.ports]
    taken = () if own else (USER_NIC,)
    specs = {house.new_id(): spec for spec in asked}
    return house.fabric.claim(owner, specs, taken, bubble, first=own)


def forget_record(house: House, record: GuestRecord) -> None:
    """Give back what a record has taken that was not stored."""
    house.names.release_number(record.number)
    house.fabric.release(record.ports)


async def bring_to_life(child: GuestDriver, template: Template, *, keep_identity: bool) -> None:
    """Let a new guest run, in its own task: from the moment, or from its disks where there is none.

    On failure no process of it is left; its folder and record are the caller's.
    """
    await make_files(child, child.record, template.uefi_vars)
    child.happen(Happening.CREATED)
    child.enter(GuestState.STARTING)
    if template.moment is None:
        await start_cold(child)
        if child.instance is not None and not keep_identity:
            _tell_first(child, child.instance, template.record, keep_identity=False)
        return
    try:
        await be_born(child, template.moment, parent=template.record, keep_identity=keep_identity)
        await fit_nics(child)
    except BaseException:
        child.happen(Happening.START_FAILED)
        raise


async def fit_nics(child: GuestDriver) -> None:
    """Plug in the ports that the guest had not when it was frozen; pull out the NICs that lead nowhere."""
    instance = child.instance
    if instance is None:
        return
    there, ports = instance.machine.nics, {port.name: port for port in child.record.ports}
    for nic in there:
        if nic.place and nic.name not in ports:
            try:
                await unplug(child, nic.name)
            except SeraiError as error:  # the guest keeps it, without a cable
                log.warning("%s of %s is left: %s", nic.name, child.name, error.message)
    for name, port in ports.items():
        if name not in {nic.name for nic in there}:
            await plug(child, port)


async def make_files(driver: GuestDriver, record: GuestRecord, uefi_vars: bytes) -> None:
    """Make the files of the guest: an empty head for each volume, and its firmware's variables.

    ``record`` is the guest's, or what that will be. Doing it again changes nothing but the latter.
    Nothing is made any more once it has returned or raised, also when cancelled.
    """
    folder = driver.house.places.guests / record.id
    making = asyncio.to_thread(_make_files, driver, folder, record, uefi_vars)
    await whole(making, patience=FILES_LIMIT)


def _make_files(driver: GuestDriver, folder: Path, record: GuestRecord, uefi_vars: bytes) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if uefi_vars:
        with naming_disk_problems("creating the UEFI variables"):
            write_durably(folder / UEFI_VARS_NAME, uefi_vars)
    for volume in record.volumes:
        if not volume.read_only:
            make_head(folder_of(driver, volume), volume)


async def take_up(
    driver: GuestDriver, record: GuestRecord, ahead: Moment | Promise
) -> tuple[Instance, Moment]:
    """Start a QEMU for the guest, and have it take the moment up; its processors are held still.

    ``record`` is the guest's, or what that will be. Returns the moment as it came. On failure nothing
    of it is left running.
    """
    with driver.house.shelf.openers.opening():
        instance = await _prepare(driver, record, ahead)
    try:
        moment = await _come(instance, ahead)
        if moment is not ahead:  # it has waited for long: does it still answer?
            await instance.status(timeout=WAKING_LIMIT)
        await instance.take_state(moment.state_fd, moment.pages_fd, LOAD_TIMEOUT)
    except BaseException:
        await instance.end(0.0)
        await dismiss(driver, instance)
        raise
    return instance, moment


async def _come(instance: Instance, ahead: Moment | Promise) -> Moment:
    """Wait for the moment; HostFailure (``guest-start-failed``) if the QEMU ends that waits for it."""
    coming = asyncio.ensure_future(ahead.come())
    ending = asyncio.ensure_future(instance.process.wait())
    try:
        await asyncio.wait({coming, ending}, return_when=asyncio.FIRST_COMPLETED)
        if not coming.done():
            raise HostFailure(
                Code.GUEST_START_FAILED, "QEMU ended before there was a moment to take up"
            )
        return coming.result()
    finally:
        coming.cancel()
        ending.cancel()


async def _prepare(driver: GuestDriver, record: GuestRecord, ahead: Moment | Promise) -> Instance:
    """Start a QEMU that waits for the moment."""
    house = driver.house
    base = await house.bases.find(ahead.base)
    machine = machine_from(driver, record, ahead.machine)
    await house.cabling.connect(record)
    run_dir = house.places.guests_run / driver.record.id
    run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    await write_seed(driver)
    present = driver.instance
    with _taps_of(present) as given, house.cabling.open_taps(record.ports, given) as taps:
        return await Instance.prepare(
            machine,
            memory_fd=base.fd,
            taps=taps,
            capabilities=house.capabilities,
            run_dir=run_dir if present is None else next_run_dir(driver),
            state_dir=house.places.guests / driver.record.id,
            confinement=confinement_of(driver, machine),
            timeout=house.settings.start_timeout,
        )


def _taps_of(present: Instance | None) -> AbstractContextManager[Mapping[str, int]]:
    """Share the taps of the QEMU that is there now; where there is none, they are opened by name."""
    return nullcontext({}) if present is None else present.tap_fds()


def machine_from(driver: GuestDriver, record: GuestRecord, frozen: Machine) -> Machine:
    """Return the frozen machine as this guest's: its own identity and drives, else the same."""
    own = machine_of(driver, record)
    return dataclasses.replace(
        frozen,
        id=own.id,
        name=own.name,
        genid=own.genid,
        nics=tuple(nic_of(nic, record) for nic in frozen.nics),
        drives=own.drives,
        uefi_vars=own.uefi_vars,
        ram_private=True,
    )


async def be_born(
    driver: GuestDriver, ahead: Moment | Promise, *, parent: GuestRecord, keep_identity: bool
) -> None:
    """Take the moment up and let the new guest run; it is RUNNING once it knows who it is.

    Until then it hears and says nothing: its cables are out. On failure no process of it is left;
    its folder and record are the caller's.
    """
    instance, moment = await take_up(driver, driver.record, ahead)
    write_running(driver, instance)
    answering = driver.image.agent is not Expect.NO
    attach(driver, instance, agent=AgentState.UNKNOWN)
    await instance.set_links(False)
    if driver.record.is_spare:
        await instance.set_user_links(False)
    new = _new_self(driver, parent, keep_identity=keep_identity)
    told = None if moment.quiesced else tell(instance, new)
    await instance.go_on()
    if moment.quiesced:  # before that, who writes to a file there would not come back
        await thaw(driver, instance)
    if answering:
        await _tell_who_it_is(driver, instance, told or tell(instance, new), parent)
    await instance.set_links(True)
    if answering and not keep_identity and driver.record.ports:
        await _renew_addresses(driver, instance)
    driver.happen(Happening.UP)


async def thaw(driver: GuestDriver, instance: Instance) -> None:
    """Let the file systems go on that were frozen for the moment that was taken up."""
    try:
        await instance.agent.thaw(timeout=BIRTH_TIMEOUT)
    except SeraiError as error:
        log.warning("the file systems of %s stay frozen: %s", driver.name, error.message)


async def _renew_addresses(driver: GuestDriver, instance: Instance) -> None:
    """Have the guest inside ask for its addresses, now that its cables are in: begun, not waited for."""
    argv, env = renewal_words(_new_ports(driver))
    request = ExecRequest(argv=argv, env=dict(env), timeout=BIRTH_TIMEOUT)
    try:
        pid = await instance.agent.begin(request)
    except SeraiError as error:
        log.warning("%s did not ask for its addresses: %s", driver.name, error.message)
        return
    seeing = _see_renewed(driver, instance, pid)
    driver.attached.append(driver.house.supervisor.start(seeing, name=f"{driver.name}: addresses"))


async def _see_renewed(driver: GuestDriver, instance: Instance, pid: int) -> None:
    try:
        done = await instance.agent.end_of(pid, BIRTH_TIMEOUT)
    except SeraiError as error:
        log.warning("%s may not have asked for its addresses: %s", driver.name, error.message)
    else:
        if done.code:
            log.warning("%s did not ask for its addresses: %r", driver.name, done.stderr[:200])


async def _tell_who_it_is(
    driver: GuestDriver, instance: Instance, told: Told, parent: GuestRecord
) -> None:
    """See to it that the guest inside is what it was told; without an agent it does without."""
    try:
        await see_told(driver, instance, told)
    except SeraiError as error:
        _tell_again(driver, instance, parent, error, keep_identity=not told.new.name)


def _tell_again(
    driver: GuestDriver,
    instance: Instance,
    parent: GuestRecord,
    error: SeraiError,
    *,
    keep_identity: bool,
) -> None:
    log.warning("%s is told who it is when its agent answers: %s", driver.name, error.message)
    _tell_first(driver, instance, parent, keep_identity=keep_identity)


def _tell_first(
    driver: GuestDriver, instance: Instance, parent: GuestRecord, *, keep_identity: bool
) -> None:
    """Have the guest told who it is as soon as its agent answers, before anybody else talks to it."""
    driver.first_words = lambda: _tell_late(driver, instance, parent, keep_identity=keep_identity)


def _new_self(driver: GuestDriver, parent: GuestRecord, *, keep_identity: bool) -> NewSelf:
    """Return what the guest inside is to be: with seed, clock, name and ids of its own.

    One that keeps its identity gets the first two only.
    """
    new, record = same_self(driver), driver.record
    if keep_identity:
        return new
    return dataclasses.replace(
        new,
        name=record.hostname or record.spec.name,
        machine_id=record.id,
        macs=macs_of(parent, record),
        ports=_new_ports(driver),
    )


def _new_ports(driver: GuestDriver) -> tuple[NewPort, ...]:
    networks = driver.house.fabric.networks
    ports = driver.record.ports
    return tuple(new_port(port, networks[port.network].spec) for port in ports)


def same_self(driver: GuestDriver) -> NewSelf:
    """Return what any copy of a guest needs: the time, and random numbers of its own."""
    return NewSelf(seed=secrets.token_hex(SEED_BYTES), now=driver.house.journal.now())


def tell(instance: Instance, new: NewSelf) -> Told:
    """Tell what waits for it in the guest; it may not run yet, then that is the first it does."""
    told = Told(new=new, nonce=secrets.token_hex(NONCE_BYTES))
    instance.say_reborn(as_line(new, told.nonce))
    return told


async def see_told(driver: GuestDriver, instance: Instance, told: Told) -> None:
    """Wait until the guest is what it was told; it is noted whether its agent answers.

    Where nothing waits for that in it, its agent runs a script to the same end. Raises as
    ``Agent.execute`` does.
    """
    async with Supervisor() as tasks:
        meeting = tasks.start(_meet_agent(driver, instance), name="meeting")
        hearing = tasks.start(_hear(driver, instance, told), name="hearing")
        await asyncio.wait({meeting, hearing}, return_when=asyncio.FIRST_COMPLETED)
        # with an agent that is awake, whatever is to be told is so too
        is_told = (hearing.done() or await _may_be_told(instance)) and await hearing
        problem = await meeting
    if is_told:
        return
    if problem is not None:
        raise problem
    await _tell_by_agent(driver, instance, told.new)


async def _may_be_told(instance: Instance) -> bool:
    """Tell whether something waits to be told; also True while QEMU does not say."""
    try:
        return await instance.waits_to_be_told()
    except SeraiError:
        return True


async def _hear(driver: GuestDriver, instance: Instance, told: Told) -> bool:
    """Hear that the guest is what it was told; False when it does not say so."""
    try:
        await instance.hear_reborn(told.nonce, LINE_TIMEOUT)
    except Busy:
        return False  # this image has no port for that
    except SeraiError as error:
        log.warning("%s is told who it is by its agent: %s", driver.name, error.message)
        return False
    return True


async def _meet_agent(driver: GuestDriver, instance: Instance) -> SeraiError | None:
    """Note that the agent answers; return why it does not. It is asked again when it opens its port."""
    try:
        await instance.agent.meet(timeout=BIRTH_TIMEOUT)
    except SeraiError as error:
        return error
    note_agent(driver, AgentState.ANSWERING)
    return None


async def _tell_by_agent(driver: GuestDriver, instance: Instance, new: NewSelf) -> None:
    argv, env = as_script(new)
    await instance.agent.execute(ExecRequest(argv=argv, env=dict(env), timeout=BIRTH_TIMEOUT))
    note_agent(driver, AgentState.ANSWERING)


async def _tell_late(
    driver: GuestDriver, instance: Instance, parent: GuestRecord, *, keep_identity: bool
) -> None:
    """Tell it once its agent is there, for a guest that was frozen before it was."""
    driver.first_words = None
    if driver.instance is not instance:
        return
    new = _new_self(driver, parent, keep_identity=keep_identity)
    try:
        async with instance.agent.quiet(BIRTH_TIMEOUT):  # so that no moment falls into it
            if await instance.waits_to_be_told():
                await instance.hear_reborn(tell(instance, new).nonce, LINE_TIMEOUT)
                return
    except SeraiError as error:
        log.info("%s is told who it is by its agent: %s", driver.name, error.message)
    try:
        await _tell_by_agent(driver, instance, new)
    except SeraiError as error:
        _tell_again(driver, instance, parent, error, keep_identity=keep_identity)
