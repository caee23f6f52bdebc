"""Everything around a guest's live QEMU: opening it, watching it, letting it go.

``attach`` starts the watchers of an instance (its events, a heartbeat, the agent, the VNC
listener); they only tell the guest's mailbox or set its events. ``react`` is what the guest's
task does about what they told. Not for: carrying out verbs (``procedures``).
"""

import asyncio
import logging
import shutil
import socket
from pathlib import Path

import msgspec

from serai.disk.volumes import chain_of
from serai.engine.driver import Beat, GuestDriver, Message, RestartDue
from serai.engine.jobs import disk_full
from serai.engine.leading import open_forwards
from serai.engine.seeding import write_seed
from serai.errors import Code, Conflict, Problem, SeraiError
from serai.host.process import Confinement
from serai.host.sockets import bind_unix
from serai.model.event import EventKind
from serai.model.guest import AgentState, ExitReason, GuestRecord, Volume
from serai.model.image import Expect
from serai.model.lifecycle import ON_STATES, Deny, GuestState, Happening, Verb, admit
from serai.model.machine import LayerFile, Machine
from serai.plan.admission import refusal
from serai.plan.layers import chain
from serai.plan.machine import plan_machine, uid_of
from serai.qemu.instance import Instance, InstanceEvent, InstanceEventKind, RunState

log = logging.getLogger(__name__)

AGENT_KNOCK_TIMEOUT = 5.0
GUEST_MEMORY_SLACK = 512 << 20
COPIES = 3
"""How often a guest on a base may have its memory at most: the base, which is charged to it where it was
frozen; what it has changed; and what it will have, while it is being put back to a snapshot."""


class Running(msgspec.Struct, frozen=True, kw_only=True):
    """What stands beside a running guest, so that the next daemon can adopt it.

    ``sockets`` is the folder in the guest's run folder where its QEMU listens, "" for that itself.
    """

    boot_id: str
    started_at: float
    machine: Machine
    sockets: str = ""


def running_file(driver: GuestDriver) -> Path:
    """Return where a guest's ``Running`` is kept."""
    return driver.house.places.guests_run / driver.record.id / "running.json"


def read_running(driver: GuestDriver) -> Running | None:
    """Return what an earlier daemon left beside the guest; None if nothing readable is there."""
    try:
        return msgspec.json.decode(running_file(driver).read_bytes(), type=Running)
    except (OSError, msgspec.DecodeError):
        return None


def held_mark(driver: GuestDriver) -> Path:
    """Return where it is noted that a guest is held by us, only for a moment."""
    return driver.house.places.guests_run / driver.record.id / "held"


def quiet_mark(driver: GuestDriver) -> Path:
    """Return where it is noted that a guest's file systems are frozen, only for a moment."""
    return driver.house.places.guests_run / driver.record.id / "quiet"


def forget_running(driver: GuestDriver) -> None:
    """Remove what stands beside a running guest: it does not run any more."""
    for path in (running_file(driver), held_mark(driver), quiet_mark(driver)):
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("%s can't be removed: %s", path, error.strerror)


def write_running(driver: GuestDriver, instance: Instance) -> None:
    """Say beside the guest what runs and where, for the next daemon."""
    _write_running(driver, instance.machine, instance.run_dir, instance.started_at)


def _write_running(driver: GuestDriver, machine: Machine, run_dir: Path, started_at: float) -> None:
    path = running_file(driver)
    beside = Running(
        boot_id=driver.house.boot_id,
        started_at=started_at,
        machine=machine,
        sockets="" if run_dir == path.parent else run_dir.name,
    )
    temporary = path.with_name(".running.json.new")
    temporary.write_bytes(msgspec.json.encode(beside))
    temporary.rename(path)


def next_run_dir(driver: GuestDriver) -> Path:
    """Make a run folder for a QEMU that is to go on in the present one's place."""
    folder = driver.house.places.guests_run / driver.record.id / driver.house.new_id()[:8]
    folder.mkdir(mode=0o700)
    return folder


def machine_of(driver: GuestDriver, record: GuestRecord | None = None) -> Machine:
    """Describe the machine that the guest's record asks for now, with memory and volumes.

    ``record`` is what it will be, where that is not stored yet.
    """
    record = record or driver.record
    image_folder = driver.house.images.folder(driver.image)
    volumes = tuple(_chain(driver, volume, image_folder) for volume in record.volumes)
    return describe_machine(driver, volumes, record)


def describe_machine(
    driver: GuestDriver,
    volumes: tuple[tuple[LayerFile, ...], ...],
    record: GuestRecord | None = None,
) -> Machine:
    """Describe the machine of the guest's record with these volumes; looks at no file."""
    house = driver.house
    return plan_machine(
        record or driver.record,
        driver.image,
        volumes,
        capabilities=house.capabilities,
        image_folder=house.images.folder(driver.image),
        guest_folder=house.places.guests / driver.record.id,
        ram=house.new_id(),
    )


def folder_of(driver: GuestDriver, volume: Volume) -> Path:
    """Return the folder where a volume of the guest has its head."""
    house = driver.house
    return house.pools.heads(volume.pool) if volume.pool else house.places.guests / driver.record.id


def _chain(driver: GuestDriver, volume: Volume, image_folder: Path) -> tuple[LayerFile, ...]:
    house = driver.house
    return chain_of(
        folder_of(driver, volume),
        volume,
        chain(house.shelf.layers, volume.layer),
        house.pools.layers_of,
        None if volume.port else driver.image,
        image_folder,
    )


def confinement_of(driver: GuestDriver, machine: Machine) -> Confinement:
    """Make the guest's control group and return what its QEMU is confined to."""
    house, record = driver.house, driver.record
    return Confinement(
        uid=uid_of(record, house.capabilities, house.settings.uid_base),
        setpriv=house.capabilities.setpriv_path,
        cgroup=house.cgroups.create(record.id, memory=_most_memory(machine)),
    )


def _most_memory(machine: Machine) -> int:
    """Return what the guest's control group may hold, in bytes; beyond it the kernel ends its QEMU."""
    return machine.memory * (COPIES if machine.ram_private else 1) + GUEST_MEMORY_SLACK


def check_talk(driver: GuestDriver) -> Instance:
    """Return the guest's live QEMU; Conflict when the guest's state does not let anybody talk to it."""
    admission = admit(driver.state, Verb.TALK)
    if isinstance(admission, Deny):
        raise refusal(driver.name, driver.state, Verb.TALK, admission.reason)
    if driver.instance is None:
        raise Conflict(Code.GUEST_STATE, f"{driver.name} is {driver.state}")
    return driver.instance


async def open_instance(driver: GuestDriver) -> Instance:
    """Start the guest's QEMU, from its disks. On failure nothing of it is left running."""
    with driver.house.shelf.openers.opening():
        return await _open_instance(driver)


async def _open_instance(driver: GuestDriver) -> Instance:
    house, record = driver.house, driver.record
    machine = machine_of(driver)
    run_dir = house.places.guests_run / record.id
    run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    await house.cabling.connect(record)
    await write_seed(driver)
    _write_running(driver, machine, run_dir, house.journal.now())
    try:
        with house.cabling.open_taps(record.ports, {}) as taps:
            return await Instance.start(
                machine,
                taps=taps,
                capabilities=house.capabilities,
                run_dir=run_dir,
                state_dir=house.places.guests / record.id,
                confinement=confinement_of(driver, machine),
                timeout=house.settings.start_timeout,
            )
    except BaseException:
        house.cgroups.remove(record.id)
        forget_running(driver)
        raise


def attach(
    driver: GuestDriver,
    instance: Instance,
    *,
    adopted: bool = False,
    agent: AgentState = AgentState.UNKNOWN,
) -> None:
    """Make ``instance`` the guest's and begin to watch it.

    A new guest's agent is asked when it opens its port; an adopted one's may have it open already.
    ``agent`` is what is known of it where the guest only changes its QEMU.
    """
    driver.instance = instance
    driver.agent_state = agent
    for event in (driver.powered_off, driver.exited, driver.agent_answered):
        event.clear()
    if agent is AgentState.ANSWERING:
        driver.agent_answered.set()
    driver.changed()
    start = driver.house.supervisor.start
    name = driver.name
    driver.attached = [
        start(_pump(driver, instance), name=f"{name}: events"),
        start(_heartbeat(driver, instance), name=f"{name}: heartbeat"),
        start(_serve_vnc(driver, instance), name=f"{name}: vnc"),
    ]
    if adopted and driver.image.agent is not Expect.NO:
        knock_at_agent(driver)


async def detach(driver: GuestDriver) -> None:
    """Stop watching; what happens to the instance from now on is not told."""
    tasks, driver.attached = driver.attached, []
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)


async def dismiss(driver: GuestDriver, instance: Instance) -> None:
    """Close an instance that has ended; the run folder goes with it, if that is its own."""
    await instance.close()
    if instance.run_dir.parent == driver.house.places.guests_run / driver.record.id:
        await asyncio.to_thread(shutil.rmtree, instance.run_dir, ignore_errors=True)


async def let_go(driver: GuestDriver) -> None:
    """Give back all that an ended instance had."""
    instance, driver.instance = driver.instance, None
    if instance is not None:
        await dismiss(driver, instance)
    driver.agent_state = AgentState.UNKNOWN
    driver.first_words = None
    driver.exited.set()
    driver.house.cgroups.remove(driver.record.id)
    forget_running(driver)
    driver.changed()


# -- watchers ------------------------------------------------------------------------------------


async def _pump(driver: GuestDriver, instance: Instance) -> None:
    """Pass the instance's events on until its process has ended."""
    while True:
        event = await instance.next_event()
        if event.kind is InstanceEventKind.POWERED_OFF:
            driver.powered_off.set()
        elif event.kind is InstanceEventKind.EXITED:
            driver.exited.set()
        elif event.kind is InstanceEventKind.AGENT_OPENED:
            knock_at_agent(driver)
        driver.mailbox.tell(event)
        if event.kind is InstanceEventKind.EXITED:
            return


def knock_at_agent(driver: GuestDriver) -> None:
    """Find out, in a task of its own, whether the agent answers."""
    instance = driver.instance
    if instance is not None:
        knock = _knock(driver, instance)
        driver.attached.append(driver.house.supervisor.start(knock, name=f"{driver.name}: agent"))


async def _knock(driver: GuestDriver, instance: Instance) -> None:
    try:
        await instance.agent.meet(timeout=AGENT_KNOCK_TIMEOUT)
    except SeraiError:
        return  # the port opens once an agent is there: then we knock again
    if driver.first_words is not None:
        await driver.first_words()
    note_agent(driver, AgentState.ANSWERING)


def note_agent(driver: GuestDriver, state: AgentState) -> None:
    """Note what is known of the agent now."""
    if state is AgentState.ANSWERING:
        driver.agent_answered.set()
    if driver.agent_state is not state:
        driver.agent_state = state
        driver.changed()
        driver.tell(EventKind.GUEST_AGENT, agent=str(state))


async def _heartbeat(driver: GuestDriver, instance: Instance) -> None:
    """Ask QEMU regularly whether it is there, and free a guest that waited for disk space."""
    settings = driver.house.settings
    while True:
        await asyncio.sleep(settings.heartbeat)  # a period, not a wait for something
        try:
            state = await instance.status(timeout=settings.monitor_timeout)
        except SeraiError:
            driver.mailbox.tell(Beat(Happening.SILENT))
            continue
        if state is RunState.IO_ERROR and _has_room(driver):
            await _go_on_after_full_disk(driver, instance)
        elif state in SEEN_ENDS:  # told already, unless the monitor was away just then
            driver.mailbox.tell(InstanceEvent(SEEN_ENDS[state]))
        elif state is RunState.PAUSED and driver.is_being_frozen:
            continue
        elif happening := _meaning(driver.state, state):
            driver.mailbox.tell(Beat(happening))


SEEN_ENDS = {
    RunState.POWERED_OFF: InstanceEventKind.POWERED_OFF,
    RunState.PANICKED: InstanceEventKind.PANICKED,
}


def _meaning(state: GuestState, seen: RunState) -> Happening | None:
    """Return what a run state seen by the heartbeat says that ``state`` does not."""
    silent = state is GuestState.UNRESPONSIVE
    match seen:
        case RunState.RUNNING:
            if silent:
                return Happening.ANSWERED_RUNNING
            return Happening.WENT_ON if state in (GuestState.PAUSED, GuestState.IO_ERROR) else None
        case RunState.PAUSED:
            if silent:
                return Happening.ANSWERED_PAUSED
            return Happening.HELD if state is GuestState.RUNNING else None
        case RunState.IO_ERROR:
            return Happening.DISK_FULL if state is not GuestState.IO_ERROR else None
        case _:
            return None


def _has_room(driver: GuestDriver) -> bool:
    free = shutil.disk_usage(driver.house.places.guests).free
    return free > driver.house.settings.disk_reserve


async def _go_on_after_full_disk(driver: GuestDriver, instance: Instance) -> None:
    try:
        await instance.go_on()
    except SeraiError as error:
        log.warning("%s can't go on after a full disk: %s", driver.name, error.message)
    else:
        driver.mailbox.tell(Beat(Happening.WENT_ON))


async def _serve_vnc(driver: GuestDriver, instance: Instance) -> None:
    """Accept viewers on the guest's VNC socket and hand each to QEMU."""
    path = driver.house.places.guests_run / driver.record.id / "vnc.sock"
    listener = bind_unix(path, mode=0o600)
    loop = asyncio.get_running_loop()
    try:
        while True:
            viewer, _ = await loop.sock_accept(listener)
            await _hand_over(instance, viewer)
    finally:
        listener.close()
        path.unlink(missing_ok=True)


async def _hand_over(instance: Instance, viewer: socket.socket) -> None:
    try:
        await instance.add_vnc_client(viewer)
    except SeraiError as error:
        log.warning("a VNC viewer was turned away: %s", error.message)
    finally:
        viewer.close()


# -- what the guest's task does about it -----------------------------------------------------------


async def react(driver: GuestDriver, message: Message) -> None:
    """Change the guest's state after something was observed, and begin what follows from it."""
    match message:
        case InstanceEvent():
            await _react_to_event(driver, message)
        case Beat(happening=happening):
            _react_to_beat(driver, happening)
        case RestartDue(turn=turn):
            await _restart_if_due(driver, turn)
        case _:
            pass


def _react_to_beat(driver: GuestDriver, happening: Happening) -> None:
    before = driver.state
    driver.happen(happening)
    if driver.state is before:
        return
    driver.complain(_complaint(driver))


def _complaint(driver: GuestDriver) -> Problem | None:
    """Return what is wrong with a guest in its state; None if nothing is."""
    match driver.state:
        case GuestState.UNRESPONSIVE:
            return _unresponsive(driver)
        case GuestState.IO_ERROR:
            return _held_by_full_disk(driver)
        case _:
            return None


async def _react_to_event(driver: GuestDriver, event: InstanceEvent) -> None:
    match event.kind:
        case InstanceEventKind.RESET:
            driver.agent_answered.clear()
            driver.agent_state = AgentState.UNKNOWN
            driver.changed()
            driver.tell(EventKind.GUEST_RESET, by=event.detail)
        case InstanceEventKind.AGENT_CLOSED:
            note_agent(driver, AgentState.SILENT)
        case InstanceEventKind.DISK_FULL:
            _react_to_beat(driver, Happening.DISK_FULL)
        case InstanceEventKind.LOST:
            _react_to_beat(driver, Happening.SILENT)
        case InstanceEventKind.RESTART_WANTED:
            _react_to_reset(driver)
        case InstanceEventKind.POWERED_OFF | InstanceEventKind.PANICKED | InstanceEventKind.EXITED:
            _react_to_end(driver, event)
        case _:
            pass


ENDS = {
    InstanceEventKind.POWERED_OFF: (Happening.POWERED_OFF, ExitReason.POWERED_OFF),
    InstanceEventKind.PANICKED: (Happening.PANICKED, ExitReason.PANICKED),
    InstanceEventKind.EXITED: (Happening.EXITED, ExitReason.CRASHED),
}


def _react_to_end(driver: GuestDriver, event: InstanceEvent) -> None:
    if driver.state is GuestState.STOPPING or driver.state not in ON_STATES:
        return  # somebody is ending it already, and waits for this
    happening, reason = ENDS[event.kind]
    if reason is not ExitReason.POWERED_OFF:
        driver.revise(last_exit=reason, problem=_crash(driver, reason, event.detail))
    driver.happen(happening)
    driver.follow_up(end_by_itself(driver, reason))


def _react_to_reset(driver: GuestDriver) -> None:
    """A guest that was forked resets itself: its QEMU has nothing to boot, so another one starts."""
    if driver.state is GuestState.STOPPING or driver.state not in ON_STATES:
        return
    driver.tell(EventKind.GUEST_RESET, by="guest")
    driver.happen(Happening.POWERED_OFF)
    driver.follow_up(_boot_anew(driver))


async def _boot_anew(driver: GuestDriver) -> None:
    if driver.instance is not None:
        await driver.instance.end(timeout=2.0)
        await detach(driver)
        await let_go(driver)
    driver.happen(Happening.GONE)
    driver.enter(GuestState.STARTING)
    try:
        instance = await open_instance(driver)
    except SeraiError as error:
        driver.happen(Happening.START_FAILED)
        await follow_policy(driver, ExitReason.CRASHED, error.problem())
        return
    attach(driver, instance)
    await open_forwards(driver)
    driver.happen(Happening.UP)


async def end_by_itself(driver: GuestDriver, reason: ExitReason) -> None:
    """Tidy up after a guest that ended without being asked, and follow its restart policy."""
    if driver.instance is not None:
        await driver.instance.end(timeout=2.0)
        await detach(driver)
        await let_go(driver)
    if reason is ExitReason.POWERED_OFF:
        driver.revise(last_exit=reason, problem=None)
    driver.happen(Happening.GONE)
    await follow_policy(driver, reason, driver.record.problem)


async def follow_policy(driver: GuestDriver, reason: ExitReason, problem: Problem | None) -> None:
    """Store why the guest ended; have it started again if its policy says so."""
    house = driver.house
    wait = driver.next_restart(reason, house.journal.now())
    change = driver.revise(last_exit=reason, problem=problem, wanted_on=wait is not None)
    try:
        await house.journal.commit(change)
    except SeraiError as error:
        log.warning("the end of %s was not stored: %s", driver.name, error.message)
    if wait is not None:
        driver.turn += 1
        due = RestartDue(driver.turn)
        asyncio.get_running_loop().call_later(wait, driver.mailbox.tell, due)


async def _restart_if_due(driver: GuestDriver, turn: int) -> None:
    if turn != driver.turn or driver.state not in (GuestState.STOPPED, GuestState.CRASHED):
        return
    await driver.start_again()


def _crash(driver: GuestDriver, reason: ExitReason, detail: str) -> Problem:
    what = "its kernel panicked" if reason is ExitReason.PANICKED else "its QEMU ended"
    return Conflict(
        Code.GUEST_STATE,
        f"{driver.name} crashed: {what}{f' ({detail})' if detail else ''}",
        hint=f"See what it printed: serai log {driver.name}",
    ).problem()


def _unresponsive(driver: GuestDriver) -> Problem:
    return Conflict(
        Code.GUEST_UNRESPONSIVE,
        f"the QEMU of {driver.name} runs, but does not answer its monitor",
        hint=f"It may come back by itself; else: serai stop --force {driver.name}",
    ).problem()


def _held_by_full_disk(driver: GuestDriver) -> Problem:
    full = disk_full(str(driver.house.places.guests))
    return msgspec.structs.replace(full.problem(), message=f"{driver.name} is held: {full.message}")
