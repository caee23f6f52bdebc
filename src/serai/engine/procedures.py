"""How each verb is carried out for a virtual machine: one short procedure a verb.

All run inside the guest's own task (``driver``), one at a time. A procedure ends its job itself,
together with the changes that belong to it; if it raises, the driver ends the job with what was
raised. What holds after a failure stands in each docstring. Phases: ``PHASES``.
"""

import asyncio
import contextlib
import shutil
from collections.abc import Awaitable, Callable, Mapping

import msgspec

from serai.disk.volumes import create_uefi_vars, create_volumes, grow_volume
from serai.engine.collecting import collect, collect_seeds, drop_all_of, forget_all_of
from serai.engine.driver import GuestDriver, Procedure
from serai.engine.first_boot import wait_cloud_init, wait_ssh
from serai.engine.jobs import LiveJob, error_of
from serai.engine.leading import open_forwards
from serai.engine.patience import Patience
from serai.engine.plugging import drop_made, forget_made, give_back, keep_given_back
from serai.engine.running import (
    attach,
    detach,
    folder_of,
    follow_policy,
    let_go,
    open_instance,
)
from serai.errors import Code, Conflict, Interrupted, SeraiError
from serai.model.actions import (
    CreateGuest,
    LaunchGuest,
    RenameGuest,
    RestartGuest,
    SetGuest,
    StopGuest,
)
from serai.model.event import EventKind
from serai.model.firstboot import WaitFor
from serai.model.guest import AgentState, ExitReason, Firmware, GuestChange
from serai.model.image import Expect, Image
from serai.model.lifecycle import GuestState, Happening, Verb
from serai.model.volume import VolumeWish
from serai.plan.bubbles import renamed
from serai.plan.change import changed_spec
from serai.qemu.instance import InstanceEvent, InstanceEventKind
from serai.store.changes import DropGuest

PHASES: Mapping[Verb, tuple[str, ...]] = {
    Verb.START: ("start",),
    Verb.STOP: ("stop",),
    Verb.KILL: ("stop",),
    Verb.RESTART: ("stop", "start"),
    Verb.PAUSE: ("pause",),
    Verb.RESUME: ("resume",),
    Verb.DELETE: ("delete",),
    Verb.DESTROY: ("delete",),
    Verb.RENAME: ("rename",),
    Verb.SET: ("set",),
}
LAUNCH_PHASES = ("volumes", "start")
CREATE_PHASES = ("volumes",)

QUIT_TIMEOUT = 2.0
POWER_OFF_ASK_TIMEOUT = 2.0
CPU_TIMEOUT = 3.0


Furnish = Callable[[GuestDriver, tuple[VolumeWish, ...]], Awaitable[None]]


async def unfurnished(driver: GuestDriver, wishes: tuple[VolumeWish, ...]) -> None:
    """Attach nothing."""


# -- creating ------------------------------------------------------------------------------------


async def create(driver: GuestDriver, job: LiveJob, furnish: Furnish = unfurnished) -> None:
    """Make the volumes of a new guest and leave it stopped. On failure nothing is left of it."""
    try:
        with job.held():
            await _make_volumes(driver, job, furnish)
    except BaseException as error:
        await undo_creation(driver, job, error)
        return
    driver.happen(Happening.CREATED)
    await job.finish(driver.revise())


async def launch(driver: GuestDriver, job: LiveJob, furnish: Furnish = unfurnished) -> None:
    """Make a new guest's volumes, start it, wait for what is to be waited for.

    ``furnish`` attaches the volumes that it asked for.
    Fails before QEMU runs: nothing is left. Fails later (the agent stays silent, cloud-init had
    errors): the guest runs.
    """
    action = job.action
    assert isinstance(action, LaunchGuest)
    try:
        if driver.state is GuestState.CREATING:
            with job.held():
                await _make_volumes(driver, job, furnish)
            driver.happen(Happening.CREATED)
        if driver.instance is None:
            await job.enter("start")
            driver.enter(GuestState.STARTING)
            await start_cold(driver)
    except BaseException as error:
        await undo_creation(driver, job, error)
        return
    if action.wait:
        for each in waits_of(action.wait_for, driver.image):
            await job.enter(str(each))
            await wait_inside(driver, job, each)
    await job.finish()


def launch_phases(action: LaunchGuest, image: Image) -> tuple[str, ...]:
    """Return the phases of a launch."""
    waits = waits_of(action.wait_for, image) if action.wait else ()
    return (*LAUNCH_PHASES, *map(str, waits))


def waits_of(wait_for: WaitFor, image: Image) -> tuple[WaitFor, ...]:
    """Return what has to be waited for, one after the other, until ``wait_for`` is so."""
    agent = () if image.agent is Expect.NO else (WaitFor.AGENT,)
    match wait_for:
        case WaitFor.AGENT:
            return agent
        case WaitFor.SSH:
            return (WaitFor.SSH,)
        case WaitFor.CLOUD_INIT:
            return (*agent, WaitFor.CLOUD_INIT)


async def wait_inside(driver: GuestDriver, job: LiveJob, wait_for: WaitFor) -> None:
    """Wait for what comes up in a guest that runs."""
    match wait_for:
        case WaitFor.AGENT:
            await wait_agent(driver)
        case WaitFor.SSH:
            await wait_ssh(driver)
        case WaitFor.CLOUD_INIT:
            await wait_cloud_init(driver, job)


async def _make_volumes(driver: GuestDriver, job: LiveJob, furnish: Furnish) -> None:
    await job.enter("volumes")
    house, record = driver.house, driver.record
    folder = house.places.guests / record.id
    await asyncio.to_thread(_make_folder, driver)
    volumes = await asyncio.to_thread(
        create_volumes, folder, driver.image, house.images.folder(driver.image), record.spec.disk
    )
    if volumes:  # those that it was stored with, an imported guest's, come behind
        own = tuple(each for each in record.volumes if each.port)
        await house.journal.commit(driver.revise(volumes=(*volumes, *own)))
    if record.spec.firmware is Firmware.UEFI:
        await asyncio.to_thread(create_uefi_vars, folder, house.capabilities.uefi_vars)
    action = job.action
    assert isinstance(action, LaunchGuest | CreateGuest)
    await furnish(driver, action.volumes)


def _make_folder(driver: GuestDriver) -> None:
    folder = driver.house.places.guests / driver.record.id
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)


async def undo_creation(driver: GuestDriver, job: LiveJob, error: BaseException) -> None:
    """Remove all traces of a guest that could not be created, then report ``error``.

    If that can't be stored (a full disk) the guest is still there, stopped, to be deleted.
    """
    if driver.house.closing.is_set():
        raise error
    job.hold()
    await _end_process(driver)
    driver.enter(GuestState.DELETING)
    await asyncio.to_thread(_remove_folders, driver)
    try:
        given = driver.record.volumes
        guest_id = driver.record.id
        drops = (DropGuest(guest_id), *forget_made(driver.house, guest_id, given))
        await job.fail(error_of(error), *drops, then=driver.leave)
        drop_made(driver.house, guest_id, given)
    except SeraiError:
        driver.enter(GuestState.STOPPED)
        raise
    await driver.house.cabling.detach(driver.record.ports)
    collect_seeds(driver.house)


async def wait_agent(driver: GuestDriver) -> None:
    """Wait until the guest's agent has answered once since its start."""
    timeout = driver.house.settings.agent_timeout
    await Patience(driver, timeout).until(driver.agent_answered, driver.exited)
    if driver.exited.is_set():
        raise Conflict(
            Code.GUEST_STATE,
            f"{driver.name} ended before its agent answered",
            hint=f"See what it printed: serai log {driver.name}",
        )
    if not driver.agent_answered.is_set():
        raise Interrupted(
            Code.AGENT_TIMEOUT,
            f"{driver.name} runs, but its agent has not answered within {timeout:.0f} s",
            hint=f"See what it prints: serai log {driver.name}",
        )


# -- starting and stopping -------------------------------------------------------------------------


async def start(driver: GuestDriver, job: LiveJob) -> None:
    """Start QEMU. On failure the guest is stopped as before, and says why."""
    await _start_or_report(driver)
    await job.finish(driver.revise(wanted_on=True, problem=None))


async def _start_or_report(driver: GuestDriver) -> None:
    if driver.instance is not None:
        return
    try:
        await start_cold(driver)
    except BaseException as error:
        if not driver.house.closing.is_set():
            driver.revise(
                wanted_on=False,
                last_exit=ExitReason.START_FAILED,
                problem=error_of(error).problem(),
            )
        raise


async def start_cold(driver: GuestDriver) -> None:
    """Start QEMU from the guest's disks; a failure leaves it stopped."""
    try:
        instance = await open_instance(driver)
    except BaseException:
        driver.happen(Happening.START_FAILED)
        raise
    attach(driver, instance)
    await open_forwards(driver)
    driver.happen(Happening.UP)


async def start_by_policy(driver: GuestDriver, job: LiveJob) -> None:
    """Start a guest by its restart policy; one that can't be started is tried again later."""
    try:
        await start(driver, job)
    except SeraiError as error:
        driver.follow_up(follow_policy(driver, ExitReason.CRASHED, error.problem()))
        raise


async def stop(driver: GuestDriver, job: LiveJob) -> None:
    """Stop gracefully within the time limit, then by force. A cancelled stop leaves it running."""
    action = job.action
    assert isinstance(action, StopGuest | RestartGuest)
    await _stop(driver, job, force=action.force, timeout=action.timeout)
    await job.finish(driver.revise(wanted_on=False, last_exit=ExitReason.REQUESTED, problem=None))


async def _stop(driver: GuestDriver, job: LiveJob, *, force: bool, timeout: float) -> None:
    """Stop the guest's QEMU. Broken off, or not able to, it leaves the guest as it then is."""
    try:
        if not force:
            await _power_off(driver, timeout or driver.house.settings.stop_timeout)
        with job.held():
            await _end_process(driver)
            driver.happen(Happening.GONE)
    except BaseException:
        if driver.instance is not None:
            driver.happen(Happening.STILL_UP)
            _tell_end_again(driver)
        raise


def _tell_end_again(driver: GuestDriver) -> None:
    """Have the guest's own end followed up, which was left to a stop that is over."""
    ends = (
        (InstanceEventKind.POWERED_OFF, driver.powered_off),
        (InstanceEventKind.EXITED, driver.exited),
    )
    for kind, event in ends:
        if event.is_set():
            driver.mailbox.tell(InstanceEvent(kind))


async def _power_off(driver: GuestDriver, timeout: float) -> None:
    """Ask the guest to power off and wait for it, at most ``timeout`` seconds.

    One that boots may not notice its power button yet: its agent is asked as soon as it is there.
    """
    instance = driver.instance
    if instance is None or driver.powered_off.is_set():
        return
    try:
        async with asyncio.timeout(timeout):
            await instance.go_on()
            if not await _ask_agent_to_power_off(driver):
                await instance.press_power()
                if not driver.agent_answered.is_set():
                    await _either(driver.powered_off, driver.exited, driver.agent_answered)
                    await _ask_agent_to_power_off(driver)
            await _either(driver.powered_off, driver.exited)
    except (TimeoutError, SeraiError):
        pass  # then by force: the caller goes on to end the process


async def _ask_agent_to_power_off(driver: GuestDriver) -> bool:
    if driver.agent_state is not AgentState.ANSWERING or driver.instance is None:
        return False
    try:
        await driver.instance.agent.shutdown("powerdown", timeout=POWER_OFF_ASK_TIMEOUT)
    except SeraiError:
        return False
    return True


async def _either(*events: asyncio.Event) -> None:
    """Wait until one of ``events`` is set."""
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()


async def _end_process(driver: GuestDriver) -> None:
    """End the guest's QEMU, whatever state it is in, and let go of all that it had."""
    instance = driver.instance
    if instance is None:
        return
    await instance.end(QUIT_TIMEOUT)
    await detach(driver)
    await let_go(driver)


async def restart(driver: GuestDriver, job: LiveJob) -> None:
    """Stop as ``stop`` does, then start. A stopped guest is started."""
    action = job.action
    assert isinstance(action, RestartGuest)
    if driver.instance is not None:
        await _stop(driver, job, force=action.force, timeout=action.timeout)
    await job.enter("start")
    driver.enter(GuestState.STARTING)
    await start(driver, job)


# -- the rest --------------------------------------------------------------------------------------


async def pause(driver: GuestDriver, job: LiveJob) -> None:
    """Hold the virtual CPUs."""
    if driver.instance is not None:
        await driver.instance.hold()
        driver.happen(Happening.HELD)
    await job.finish()


async def resume(driver: GuestDriver, job: LiveJob) -> None:
    """Let a paused guest, or one held by a full disk, go on."""
    if driver.instance is not None:
        await driver.instance.go_on()
        driver.happen(Happening.WENT_ON)
        driver.complain(None)
    await job.finish()


async def delete(driver: GuestDriver, job: LiveJob) -> None:
    """Remove a guest and all that it had. Interrupted at any point, it is done again.

    If that can't be stored (a full disk) the guest is still there, stopped, to be deleted again.
    """
    job.hold()
    await _end_process(driver)
    driver.enter(GuestState.DELETING)
    await asyncio.to_thread(_remove_folders, driver)
    house, guest_id = driver.house, driver.record.id
    deleted = house.journal.event(EventKind.GUEST_DELETED, driver.name, guest_id)
    given = driver.record.volumes
    drops = (DropGuest(guest_id), *give_back(house, given), *drop_all_of(house, guest_id))
    try:
        await house.journal.commit(*drops, events=(deleted,))
    except SeraiError:
        driver.enter(GuestState.STOPPED)
        raise
    keep_given_back(house, given)
    driver.leave()
    await house.cabling.detach(driver.record.ports)
    await forget_all_of(house, guest_id)
    await job.finish()


async def remove_guest(driver: GuestDriver) -> None:
    """Remove all traces of a guest that nobody was promised yet; it must not be at work."""
    await _end_process(driver)
    await asyncio.to_thread(_remove_folders, driver)
    driver.enter(GuestState.DELETING)
    house, given = driver.house, driver.record.volumes
    await house.journal.commit(DropGuest(driver.record.id), *give_back(house, given))
    keep_given_back(house, given)
    driver.leave()
    await driver.house.cabling.detach(driver.record.ports)
    await collect(driver.house)


def _remove_folders(driver: GuestDriver) -> None:
    places, guest_id = driver.house.places, driver.record.id
    driver.house.cgroups.remove(guest_id)
    for folder in (places.guests_run / guest_id, places.guests / guest_id):
        shutil.rmtree(folder, ignore_errors=True)


async def rename(driver: GuestDriver, job: LiveJob) -> None:
    """Give the guest its new name, also in its bubble if it is known by its own there.

    Conflict (``guest-exists``) when another has it, here or in there.
    """
    action = job.action
    assert isinstance(action, RenameGuest)
    old, names, journal = driver.record, driver.house.names, driver.house.journal
    ports = renamed(old.ports, driver.name, action.name)
    for port in ports:
        if port.bubble is not None and port.bubble.known_as == action.name:
            driver.house.fabric.check_known_as(port.bubble, action.name, old.id)
    names.claim(action.name, old.id)
    event = journal.event(EventKind.GUEST_RENAMED, action.name, old.id, before=driver.name)
    change = driver.revise(spec=msgspec.structs.replace(old.spec, name=action.name), ports=ports)
    try:
        await job.finish(change, events=(event,))
    except SeraiError:
        driver.record = old
        driver.changed()
        names.release(action.name, old.id)
        raise
    if action.name != old.spec.name:
        names.release(old.spec.name, old.id)
    driver.house.fabric.hold(old.id, action.name, ports)
    if ports:
        await driver.house.cabling.refresh()


async def set_guest(driver: GuestDriver, job: LiveJob) -> None:
    """Change size, policy or labels: live where it can be, else from the next start."""
    action = job.action
    assert isinstance(action, SetGuest)
    if action.version and action.version != driver.record.version:
        raise Conflict(
            Code.VERSION_CONFLICT,
            f"{driver.name} is at version {driver.record.version}, not {action.version}",
            hint="Somebody changed it meanwhile: read it again, then decide.",
        )
    spec = changed_spec(driver.record.spec, action.change, driver.image, driver.house.capabilities)
    await _change_disk(driver, action.change)
    await _change_running(driver, action.change)
    journal = driver.house.journal
    event = journal.event(EventKind.GUEST_CHANGED, driver.name, driver.record.id)
    await job.finish(driver.revise(spec=spec), events=(event,))


async def _change_disk(driver: GuestDriver, change: GuestChange) -> None:
    """Grow the root disk; the record in memory says so, and is stored at the end of the job."""
    if change.disk is msgspec.UNSET or change.disk == driver.view().disk:
        return
    root, *others = driver.record.volumes
    if driver.instance is not None:
        await driver.instance.resize_drive(root.name, change.disk)
        root = msgspec.structs.replace(root, size=change.disk)
    else:
        folder = folder_of(driver, root)
        root = await asyncio.to_thread(grow_volume, folder, root, change.disk)
    driver.revise(volumes=(root, *others))


async def _change_running(driver: GuestDriver, change: GuestChange) -> None:
    instance = driver.instance
    if instance is None:
        return
    if change.memory is not msgspec.UNSET:
        await instance.set_balloon(min(change.memory, instance.machine.memory))
    if change.cpus is not msgspec.UNSET and change.cpus > driver.record.spec.cpus:
        count = min(change.cpus, instance.machine.max_cpus)
        await instance.plug_cpus(count)
        if driver.agent_state is AgentState.ANSWERING:
            with contextlib.suppress(
                SeraiError
            ):  # it has them; when it uses them is its own business
                await instance.agent.online_cpus(count, timeout=CPU_TIMEOUT)


PROCEDURES: Mapping[Verb, Procedure] = {
    Verb.START: start,
    Verb.STOP: stop,
    Verb.KILL: stop,
    Verb.RESTART: restart,
    Verb.PAUSE: pause,
    Verb.RESUME: resume,
    Verb.DELETE: delete,
    Verb.DESTROY: delete,
    Verb.RENAME: rename,
    Verb.SET: set_guest,
}
