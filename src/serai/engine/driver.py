"""The task that owns one guest.

Everybody else puts orders into its mailbox; what its QEMU reports comes first. It alone admits an
order (by the table in ``model.lifecycle``), changes the guest's state and record, and tells the
journal. While one order is carried out (``work``), others are refused, ignored or wait, as the
table says for the state they find; a forced stop overtakes whatever is under way.

How each verb is carried out is in ``procedures``; this file knows only that there is one.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from serai.engine.house import House
from serai.engine.jobs import LiveJob, error_of
from serai.engine.mailbox import ORDER_LIMIT, Errand, Mailbox, Order
from serai.errors import Busy, Code, Conflict, Problem, SeraiError
from serai.model.actions import Action, StartGuest
from serai.model.event import EventKind
from serai.model.guest import AgentState, ExitReason, Guest, GuestRecord
from serai.model.image import Image
from serai.model.job import Job
from serai.model.lifecycle import (
    ON_STATES,
    Accept,
    Deny,
    GuestState,
    Happening,
    Ignore,
    Verb,
    admit,
    after,
)
from serai.plan.admission import refusal
from serai.plan.restart import Leave, decide_restart
from serai.plan.view import view_guest
from serai.qemu.instance import Instance, InstanceEvent
from serai.store.changes import PutGuest

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class Work:
    """What is under way: its task and, unless it is the guest's own doing, its job."""

    task: asyncio.Task[None]
    job: LiveJob | None
    errand: Errand | None = None

    @property
    def is_own(self) -> bool:
        """True if nobody asked for it: the guest's own doing, such as what follows its end."""
        return self.job is None and self.errand is None


@dataclass(frozen=True, slots=True)
class WorkEnded:
    """A piece of work has ended: the one that was begun as number ``count``."""

    count: int


@dataclass(frozen=True, slots=True)
class RestartDue:
    """The restart policy's waiting time is over; ``turn`` tells an outdated one."""

    turn: int


@dataclass(frozen=True, slots=True)
class CancelJob:
    """Somebody wants this job to end."""

    job_id: str


@dataclass(frozen=True, slots=True)
class CallOff:
    """Who wanted this errand has gone away."""

    errand: Errand


@dataclass(frozen=True, slots=True)
class Beat:
    """The heartbeat's finding: the happening that it stands for."""

    happening: Happening


RESTARTS_KEPT = 100
ON_THE_WAY = frozenset({GuestState.STARTING, GuestState.STOPPING, GuestState.DELETING})
OVERTAKING = frozenset({Verb.KILL, Verb.DESTROY})

Message = InstanceEvent | WorkEnded | RestartDue | CancelJob | CallOff | Beat
Procedure = Callable[["GuestDriver", LiveJob], Awaitable[None]]
Reaction = Callable[["GuestDriver", Message], Coroutine[Any, Any, None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """How this kind of guest does things: a procedure for each verb, and what to do on events.

    ``phases`` names the steps of a verb's job. Given by ``procedures`` for virtual machines;
    containers will bring another.
    """

    procedures: Mapping[Verb, Procedure]
    phases: Mapping[Verb, tuple[str, ...]]
    start_by_policy: Procedure
    react: Reaction


class GuestDriver:
    """One guest: its record, what is observed of it, and the task that owns both.

    Read by everybody, changed only by its own task (and by ``procedures``, which run in it).
    """

    def __init__(
        self,
        record: GuestRecord,
        image: Image,
        house: House,
        script: Script,
        state: GuestState,
        on_gone: Callable[["GuestDriver"], None],
    ) -> None:
        self.record = record
        self.image = image
        self.house = house
        self.state = state
        self.instance: Instance | None = None
        self.agent_state = AgentState.UNKNOWN
        self.agent_answered = asyncio.Event()
        self.powered_off = asyncio.Event()
        self.exited = asyncio.Event()
        self.restarts: tuple[float, ...] = ()
        self.gone = asyncio.Event()
        self.mailbox: Mailbox[Message] = Mailbox()
        self.attached: list[asyncio.Task[None]] = []
        self.turn = 0
        self.is_being_frozen = False
        self.first_words: Callable[[], Awaitable[None]] | None = None
        self._script = script
        self._on_gone = on_gone
        self._work: Work | None = None
        self._begun = 0
        self._waiting: deque[Order | Errand] = deque()
        self._view: Guest | None = None

    # -- read by everybody -------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The guest's name."""
        return self.record.spec.name

    @property
    def job(self) -> LiveJob | None:
        """The job under way, if any."""
        return self._work.job if self._work else None

    @property
    def is_busy(self) -> bool:
        """True while something is done to the guest."""
        return self._work is not None

    def view(self) -> Guest:
        """Return the guest as it is shown; made anew only after a change."""
        if self._view is None:
            self._view = view_guest(
                self.record,
                self.image,
                self.state,
                machine=self.instance.machine if self.instance else None,
                accel=self.house.capabilities.accel,
                agent=self.agent_state,
                pid=self.instance.process.pid if self.instance else 0,
                started_at=self.instance.started_at if self.instance else 0.0,
                restarts=len(self.restarts),
                ports=self.house.fabric.brief(self.record.ports),
            )
        return self._view

    # -- asked by everybody ------------------------------------------------------------------

    async def ask(self, verb: Verb, action: Action, key: str = "") -> Job:
        """Hand an action to the guest's task; return its job once that is durable, or refuse."""
        order = Order(verb=verb, action=action, key=key)
        self.mailbox.ask(order)
        return await order.accepted

    async def do(self, verb: Verb, work: Callable[[], Awaitable[T]]) -> T:
        """Have ``work`` done in the guest's task, in its turn, if the state allows ``verb``.

        Returns or raises what it does. A caller that is cancelled leaves when ``work`` has ended;
        a forced stop of the guest cancels it too (Conflict ``job-cancelled``).
        """
        errand = Errand(verb, work)
        self.mailbox.ask(errand)
        result: T = await self._outcome(errand)
        return result

    async def _outcome(self, errand: Errand) -> Any:
        try:
            await asyncio.wait({errand.done})
        except asyncio.CancelledError:
            errand.called_off = True
            self.mailbox.tell(CallOff(errand))
            await asyncio.wait({errand.done})
            errand.done.exception()
            raise
        return errand.done.result()

    async def do_first(self, work: Callable[[], Awaitable[T]]) -> T:
        """Have ``work`` done as the first that a new guest does; nobody else knows of it yet."""
        errand = Errand(Verb.START, work)
        self._start_work(_carry_out_errand(errand), None, errand)
        result: T = await self._outcome(errand)
        return result

    def begin(self, job: LiveJob, procedure: Procedure) -> None:
        """Carry out a job that is already accepted (a launch, or one left by an earlier daemon)."""
        self._start_work(self._carry_out(job, procedure), job)

    def follow_up(self, own: Coroutine[Any, Any, None]) -> None:
        """Do something of the guest's own after the work under way, and before any order."""
        before = self._work.task if self._work else None
        self._start_work(_after(before, own), None)

    def _start_work(
        self, work: Coroutine[Any, Any, None], job: LiveJob | None, errand: Errand | None = None
    ) -> None:
        self._begun += 1
        count = self._begun
        task = self.house.supervisor.start(work, name=f"{self.name}: work {count}")
        task.add_done_callback(lambda _: self.mailbox.tell(WorkEnded(count)))
        if job is not None:
            job.belongs_to(task)
        self._work = Work(task, job, errand)

    # -- changed by the own task ---------------------------------------------------------------

    def changed(self) -> None:
        """Note that something shown has changed."""
        self._view = None

    def enter(self, state: GuestState) -> None:
        """Move to ``state`` and tell it."""
        if state is self.state:
            return
        before, self.state = self.state, state
        self.changed()
        self.tell(EventKind.GUEST_STATE, state=str(state), before=str(before))

    def happen(self, happening: Happening) -> None:
        """Move to the state that follows from ``happening``."""
        self.enter(after(self.state, happening))

    def tell(self, kind: EventKind, **data: str) -> None:
        """Tell the journal that something happened to this guest; of a spare nobody is told."""
        if self.record.is_spare:
            return
        journal = self.house.journal
        journal.tell(journal.event(kind, self.name, self.record.id, **data))

    def revise(self, **changes: object) -> PutGuest:
        """Change the record in memory and return the change for the store."""
        self.record = msgspec.structs.replace(
            self.record, version=self.record.version + 1, **changes
        )
        self.changed()
        return PutGuest(self.record)

    def leave(self) -> None:
        """Be gone: nobody finds this guest any more, and its task ends."""
        self.gone.set()
        self._on_gone(self)

    def complain(self, problem: Problem | None) -> None:
        """Show ``problem`` with the guest, without storing it."""
        self.record = msgspec.structs.replace(self.record, problem=problem)
        self.changed()

    def next_restart(self, reason: ExitReason, now: float) -> float | None:
        """Return in how many seconds the restart policy starts the guest again; None: never."""
        decision = decide_restart(self.record.spec.restart, reason, self.restarts, now)
        if isinstance(decision, Leave):
            return None
        self.restarts = (*self.restarts, now)[-RESTARTS_KEPT:]
        return decision.after

    async def start_again(self) -> None:
        """Start the guest by its policy, with a job that shows it."""
        action = StartGuest(guest=self.name)
        try:
            job = await self.house.jobs.open(action, self.name, self._script.phases[Verb.START])
        except SeraiError as error:
            log.warning("%s was not started again: %s", self.name, error.message)
            return
        self.enter(GuestState.STARTING)
        self.begin(job, self._script.start_by_policy)

    # -- the task ------------------------------------------------------------------------------

    async def run(self) -> None:
        """Own the guest until it is deleted or the daemon stops; the guest itself goes on."""
        try:
            while not self.gone.is_set():
                await self._handle_safely(await self.mailbox.take())
        finally:
            for order in (*self._waiting, *self.mailbox.close()):
                _refuse(order, Busy(Code.DAEMON_STOPPING, "the daemon stops, or the guest is gone"))

    async def _handle_safely(self, message: Message | Order | Errand) -> None:
        """Handle a message; what goes wrong then is its sender's, and the guest keeps its task."""
        try:
            await self._handle(message)
        except Exception as error:  # whatever it is, the next message must be read
            reported = error_of(error)
            log.error("%s: a message failed: %s", self.name, reported.message)
            if isinstance(message, Order | Errand):
                _refuse(message, reported)

    async def _handle(self, message: Message | Order | Errand) -> None:
        match message:
            case Order():
                await self._admit(message)
            case Errand():
                await self._admit_errand(message)
            case WorkEnded(count=count):
                await self._work_ended(count)
            case CancelJob(job_id=job_id):
                if self._work and self._work.job and self._work.job.id == job_id:
                    self._work.job.break_off()
            case CallOff(errand=errand):
                if self._work and self._work.errand is errand:
                    self._work.task.cancel()
            case _:
                await self._script.react(self, message)

    async def _work_ended(self, count: int) -> None:
        if count != self._begun:
            return  # it was overtaken, and other work is under way
        self._work = None
        waiting, self._waiting = self._waiting, deque()
        for order in waiting:
            await self._handle(order)

    async def _admit_errand(self, errand: Errand) -> None:
        move = admit(self.state, errand.verb)
        if errand.called_off:
            _refuse(errand, Conflict(Code.JOB_CANCELLED, "cancelled"))
        elif isinstance(move, Deny):
            _refuse(errand, refusal(self.name, self.state, errand.verb, move.reason))
        elif self._work is not None:
            self._wait(errand)
        else:
            self._start_work(_carry_out_errand(errand), None, errand)

    async def _admit(self, order: Order) -> None:
        match admit(self.state, order.verb):
            case Deny(reason=reason):
                _refuse(order, refusal(self.name, self.state, order.verb, reason))
            case Ignore():
                await self._ignore(order)
            case Accept(state=state):
                await self._accept(order, state)

    async def _ignore(self, order: Order) -> None:
        """It is so, or on its way already: answer with the job that does it, or an ended one.

        While the guest does something of its own about its end, that goes first: it may set the
        time of a restart, which a stop calls off.
        """
        if self.job is not None and self.state in ON_THE_WAY:
            _answer(order, self.job.job)
            return
        if self._work is not None and self._work.is_own:
            self._wait(order)
            return
        try:
            await self._call_off_restart(order)
            job = await self._open(order)
            await job.finish(message=f"nothing to do: {self.name} is {self.state}")
        except SeraiError as error:
            _refuse(order, error)
        else:
            _answer(order, job.job)

    async def _call_off_restart(self, order: Order) -> None:
        """A stop of a guest that waits for its restart policy means: don't."""
        if order.verb in (Verb.STOP, Verb.KILL) and self.state not in ON_STATES:
            self.turn += 1
            if self.record.wanted_on:
                await self.house.journal.commit(self.revise(wanted_on=False))

    async def _accept(self, order: Order, state: GuestState | None) -> None:
        if self._work is not None:
            if order.verb not in OVERTAKING:
                self._wait(order)
                return
            await self._overtake()
            await self._admit(order)  # what was under way may have led elsewhere
            return
        try:
            job = await self._open(order)
        except SeraiError as error:
            _refuse(order, error)
            return
        if state is not None:
            self.enter(state)
        _answer(order, job.job)
        self.begin(job, self._script.procedures[order.verb])

    def _wait(self, order: Order | Errand) -> None:
        if len(self._waiting) >= ORDER_LIMIT:
            _refuse(order, Busy(Code.QUEUE_FULL, f"too many requests wait for {self.name}"))
        else:
            self._waiting.append(order)

    async def _open(self, order: Order) -> LiveJob:
        phases = self._script.phases[order.verb]
        return await self.house.jobs.open(order.action, self.name, phases, key=order.key)

    async def _overtake(self) -> None:
        """End the work under way for a forced stop; what must be whole is waited for."""
        work, self._work = self._work, None
        if work is not None:
            if work.job is not None:
                work.job.break_off()
            await asyncio.wait({work.task})

    async def _carry_out(self, job: LiveJob, procedure: Procedure) -> None:
        """Run a procedure; whatever goes wrong in it ends its job, never the guest's task."""
        try:
            await procedure(self, job)
        except asyncio.CancelledError as error:
            if not self.house.closing.is_set():
                await self._fail(job, error)
        except Exception as error:  # the one place where a procedure's failure becomes an answer
            await self._fail(job, error)

    async def _fail(self, job: LiveJob, error: BaseException) -> None:
        reported = error_of(error)
        if job.ended.is_set():
            log.warning("%s: %s after the end of its job", self.name, reported.message)
            return
        try:
            await job.fail(reported, PutGuest(self.record))
        except SeraiError as worse:
            log.warning("the end of job %s was not stored: %s", job.id, worse.message)


async def _after(before: asyncio.Task[None] | None, own: Coroutine[Any, Any, None]) -> None:
    if before is not None:
        await asyncio.wait({before})
    await own


async def _carry_out_errand(errand: Errand) -> None:
    """Do the work of an errand; what it raises is its owner's."""
    try:
        result = await errand.work()
    except asyncio.CancelledError:
        _refuse(errand, Conflict(Code.JOB_CANCELLED, "it was cancelled, or overtaken by a stop"))
    except Exception as error:  # told to whoever sent it
        _refuse(errand, error)
    else:
        if not errand.done.done():
            errand.done.set_result(result)


def _answer(order: Order, job: Job) -> None:
    if not order.accepted.done():
        order.accepted.set_result(job)


def _refuse(order: Order | Errand, error: Exception) -> None:
    answer: asyncio.Future[Any] = order.done if isinstance(order, Errand) else order.accepted
    if not answer.done():
        answer.set_exception(error)
