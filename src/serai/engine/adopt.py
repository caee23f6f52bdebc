"""At the daemon's start: what should be, what is, and what to do about the difference.

An earlier daemon may have ended at any moment. Its guests run on; work that was under way is
finished or undone. Each guest's turn returns a sentence that says what was found and done; the
sentences are the log, and the total is in the event that tells of the daemon's start.
"""

import asyncio
import logging
from collections.abc import Mapping
from signal import SIGKILL

from serai.engine.driver import GuestDriver, Procedure
from serai.engine.freezing import finish_freeze
from serai.engine.jobs import Jobs, LiveJob, error_of, interrupted
from serai.engine.leftovers import sweep_beside
from serai.engine.procedures import (
    PROCEDURES,
    create,
    launch,
    undo_creation,
)
from serai.engine.running import (
    attach,
    describe_machine,
    dismiss,
    end_by_itself,
    follow_policy,
    forget_running,
    read_running,
)
from serai.errors import SeraiError
from serai.host.process import Process, read_memory
from serai.model.actions import AnyAction, DeleteGuest, StopGuest
from serai.model.event import EventKind
from serai.model.guest import ExitReason, GuestRecord
from serai.model.job import Job
from serai.model.lifecycle import Accept, GuestState, Happening, Verb, admit
from serai.qemu.instance import Instance, RunState, memory_name

log = logging.getLogger(__name__)

MONITOR_TIMEOUT = 1.0
KILL_LIMIT = 10.0

DECIDING = frozenset({"launch", "start", "stop", "restart", "delete", "snapshot-restore"})
"""Kinds of jobs whose end says whether the guest runs."""

VERBS: Mapping[str, Verb] = {
    "start": Verb.START,
    "stop": Verb.STOP,
    "restart": Verb.RESTART,
    "pause": Verb.PAUSE,
    "resume": Verb.RESUME,
    "delete": Verb.DELETE,
    "rename": Verb.RENAME,
    "set": Verb.SET,
}


def state_at_rest(record: GuestRecord) -> GuestState:
    """Return the state of a guest that has no process and had none."""
    crashed = record.last_exit in (ExitReason.CRASHED, ExitReason.PANICKED)
    return GuestState.CRASHED if crashed else GuestState.STOPPED


def verb_of(action: AnyAction) -> Verb:
    """Return the verb that an action on a guest stands for."""
    if isinstance(action, StopGuest) and action.force:
        return Verb.KILL
    if isinstance(action, DeleteGuest) and action.force:
        return Verb.DESTROY
    return VERBS[str(action.__struct_config__.tag)]


async def take_up(
    driver: GuestDriver, pids: list[int], unfinished: list[Job], jobs: Jobs, *, decided: bool
) -> str:
    """Bring one guest to where it should be; never raises, whatever it finds.

    ``decided``: what was under way says whether it is to run, not its policy.
    """
    try:
        found = await _find_state(driver, pids, decided=decided)
        await asyncio.to_thread(sweep_beside, driver)
        done = await _take_up_jobs(driver, unfinished, jobs)
    except Exception as error:  # one guest that can't be taken up keeps no other from it
        return f"{driver.name}: {error_of(error).message}"
    return f"{driver.name}: {found}{done}"


async def _find_state(driver: GuestDriver, pids: list[int], *, decided: bool) -> str:
    process = await _tell_apart(driver, pids)
    if process is not None and (found := await _adopt(driver, process)):
        return found
    driver.house.cgroups.remove(driver.record.id)
    if decided:
        forget_running(driver)
        driver.state = GuestState.STOPPED
        return "has no process"
    if not driver.record.wanted_on:
        return f"is {driver.state}"
    return await _missing(driver)


async def _tell_apart(driver: GuestDriver, pids: list[int]) -> Process | None:
    """Return the guest's process. A second one that was to go on in its place is ended.

    The badge of each holds the name of its run folder; ``running.json`` says whose folder counts.
    Without that the only one is the guest's.
    """
    guest_id = driver.record.id
    running = read_running(driver)
    folder = (running.sockets or guest_id) if running else ""
    found = None
    for pid in pids:
        process = Process.attach(pid, "-uuid", guest_id, holds=memory_name(guest_id))
        if process is None:
            continue
        counts = _folder_of(pid, guest_id) == folder if folder else len(pids) == 1
        if found is None and counts:
            found = process
            continue
        process.signal(SIGKILL)
        async with asyncio.timeout(KILL_LIMIT):
            await process.wait()
        process.close()
    return found


def _folder_of(pid: int, guest_id: str) -> str:
    untrusted = read_memory(pid, memory_name(guest_id)) or b""
    return untrusted.decode(errors="replace")


async def _adopt(driver: GuestDriver, process: Process) -> str:
    """Take the running guest as it is; "" for a QEMU without one, which is ended."""
    house, guest_id = driver.house, driver.record.id
    running = read_running(driver)
    folder = _folder_of(process.pid, guest_id)
    run_dir = house.places.guests_run / guest_id
    instance = await Instance.adopt(
        running.machine if running else describe_machine(driver, ()),
        process,
        started_at=running.started_at if running else house.journal.now(),
        run_dir=run_dir if folder in ("", guest_id) else run_dir / folder,
        state_dir=house.places.guests / guest_id,
        timeout=MONITOR_TIMEOUT,
    )
    if running is None and await _is_unborn(driver, instance):
        await instance.end(0.0)
        await dismiss(driver, instance)
        return ""
    driver.state = GuestState.RUNNING
    attach(driver, instance, adopted=True)
    driver.tell(EventKind.GUEST_ADOPTED, pid=str(process.pid))
    state = await _seen_state(driver, instance)
    silent = driver.state is GuestState.UNRESPONSIVE
    more = "" if silent else await finish_freeze(driver, instance)
    return f"runs on as process {process.pid} ({state}){more}"


async def _is_unborn(driver: GuestDriver, instance: Instance) -> bool:
    """Tell whether a QEMU was to take up a moment for a guest that is off, and has not gone on yet."""
    try:
        seen = await instance.status(timeout=MONITOR_TIMEOUT)
    except SeraiError:
        return False
    return seen is RunState.WAITING or (seen is RunState.PAUSED and not driver.record.wanted_on)


async def _seen_state(driver: GuestDriver, instance: Instance) -> str:
    try:
        seen = await instance.status(timeout=MONITOR_TIMEOUT)
    except SeraiError:
        driver.happen(Happening.SILENT)
        return "its monitor does not answer"
    match seen:
        case RunState.PAUSED:
            driver.happen(Happening.HELD)
        case RunState.IO_ERROR:
            driver.happen(Happening.DISK_FULL)
        case RunState.POWERED_OFF:
            driver.happen(Happening.POWERED_OFF)
            driver.follow_up(end_by_itself(driver, ExitReason.POWERED_OFF))
        case RunState.PANICKED:
            driver.happen(Happening.PANICKED)
            driver.follow_up(end_by_itself(driver, ExitReason.PANICKED))
        case _:
            pass
    return str(seen)


async def _missing(driver: GuestDriver) -> str:
    """A guest that should run has no process: it crashed, or the host went down under it."""
    running = read_running(driver)
    rebooted = running is None or running.boot_id != driver.house.boot_id
    reason = ExitReason.HOST_RESTARTED if rebooted else ExitReason.CRASHED
    forget_running(driver)
    driver.state = GuestState.STOPPED if rebooted else GuestState.CRASHED
    await follow_policy(driver, reason, None)
    return f"was {reason} while no daemon was there"


async def _take_up_jobs(driver: GuestDriver, unfinished: list[Job], jobs: Jobs) -> str:
    said = ""
    for job in unfinished:
        live = jobs.resume(job)
        if live is None:
            await jobs.give_up(job)
            said += f"; {job.kind} was given up: it can't be read"
            continue
        said += f"; {job.kind} " + await _take_up_job(driver, live)
    return said


async def _take_up_job(driver: GuestDriver, job: LiveJob) -> str:
    kind, phase = job.job.kind, job.job.phase
    if kind in ("launch", "create"):
        return await _take_up_launch(driver, job, kind, phase)
    if driver.job is not None:
        await job.fail(interrupted(job))
        return "was undone"
    action: AnyAction = job.action  # type: ignore[assignment]
    verb = verb_of(action)
    move = admit(driver.state, verb)
    if isinstance(move, Accept) and move.state is not None:
        driver.enter(move.state)
    driver.begin(job, PROCEDURES[verb])
    return "goes on"


async def _take_up_launch(driver: GuestDriver, job: LiveJob, kind: str, phase: str) -> str:
    procedure: Procedure = launch if kind == "launch" else create
    if phase == "volumes" or procedure is create:
        driver.state = GuestState.CREATING
        await undo_creation(driver, job, interrupted(job))
        return "was undone"
    driver.begin(job, procedure)
    return "goes on"


async def take_up_all(
    drivers: list[GuestDriver],
    pids: Mapping[str, list[int]],
    unfinished: list[Job],
    jobs: Jobs,
    others: list[Job],
) -> list[str]:
    """Take up all guests at once; return a sentence for each.

    ``others`` are unfinished jobs that are about guests, too, but that somebody else takes up.
    """
    decided = {job.subject for job in (*unfinished, *others) if job.kind in DECIDING}
    by_subject: dict[str, list[Job]] = {}
    for job in unfinished:
        by_subject.setdefault(job.subject, []).append(job)
    sentences = await asyncio.gather(
        *(
            take_up(
                driver,
                pids.get(driver.record.id, []),
                by_subject.pop(driver.name, []),
                jobs,
                decided=driver.name in decided,
            )
            for driver in drivers
        )
    )
    for job in [job for left in by_subject.values() for job in left]:
        live = jobs.resume(job) if job.kind == "delete" else None
        if live is not None:  # all of it is done but to say so
            await live.finish()
            sentences.append(f"{job.subject}: {job.kind} was finished")
            continue
        await jobs.give_up(job)
        sentences.append(f"{job.subject}: {job.kind} was undone")
    return sentences
