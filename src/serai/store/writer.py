"""The one writer: everybody's commits, gathered into one transaction after the other.

    commit() ──▶ waiting (bounded) ──▶ run() takes all that wait ──▶ the writer's thread:
                                                                     BEGIN
                                                                     SAVEPOINT one caller RELEASE
                                                                     SAVEPOINT another    RELEASE
                                                                     COMMIT (one fsync for all)

While one group is on its way to the disk, the next one gathers; nobody waits for company. Within a
group each caller's changes are all or nothing, and a conflict fails only its own caller. A group
that fails as a whole over something that one of them may have caused (a full disk, a value that
can't be bound) is tried again one by one.

A caller that is cancelled before its group began is left out; after that its changes are written
like any other, and only it does not know. The thread can't be interrupted, so no half of anything
is ever written.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import sqlalchemy as sa

from serai.errors import Busy, Code, Interrupted, SeraiError
from serai.model.event import Event
from serai.store.apply import apply_steps
from serai.store.conflicts import find_conflict
from serai.store.reader import Explain
from serai.store.rows import Step

QUEUE_LIMIT = 8192
GROUP_LIMIT = 256
DRAIN_TIMEOUT = 30.0

Steps = Sequence[Step]
Outcome = list[Event] | SeraiError


@dataclass(frozen=True, slots=True, eq=False)
class Commit:
    """One caller's changes; ``done`` gets their events, or the error."""

    steps: Steps
    done: asyncio.Future[list[Event]]


class Writer:
    """Owns the writing connection and its thread. ``run`` is the task that serves ``commit``."""

    def __init__(self, engine: sa.Engine, thread: ThreadPoolExecutor, explain: Explain) -> None:
        self._engine = engine
        self._thread = thread
        self._explain = explain
        self._waiting: deque[Commit] = deque()
        self._bell = asyncio.Event()
        self._ended = asyncio.Event()
        self._closing = False
        self._listener: Callable[[Event], None] = _nobody

    def listen(self, listener: Callable[[Event], None]) -> None:
        """Have ``listener`` told of every event that was stored from now on.

        It is called in the order of the events' numbers, before the committer knows, and also when
        the committer was cancelled meanwhile. It must neither wait nor raise.
        """
        self._listener = listener

    async def commit(self, steps: Steps) -> list[Event]:
        """Write ``steps`` as one; durable when this returns. Their events come with numbers.

        Raises Conflict for what is not unique, HostFailure (``disk-full``, ``database-failed``):
        then nothing of it is stored. Busy (``queue-full``) with 8,192 commits waiting. When the
        caller is cancelled, or the daemon ends meanwhile (Interrupted), the outcome is unknown.
        """
        if self._closing:
            raise Busy(Code.DAEMON_STOPPING, "the daemon stops; nothing more is stored")
        if len(self._waiting) >= QUEUE_LIMIT:
            raise Busy(
                Code.QUEUE_FULL,
                f"{QUEUE_LIMIT} changes wait for the disk",
                hint="Try again in a moment.",
            )
        done: asyncio.Future[list[Event]] = asyncio.get_running_loop().create_future()
        self._waiting.append(Commit(steps, done))
        self._bell.set()
        return await done

    async def run(self) -> None:
        """Write until closed and nothing waits any more."""
        try:
            while self._waiting or not self._closing:
                await self._bell.wait()
                self._bell.clear()
                while group := self._take_group():
                    await self._write(group)
        finally:
            self._closing = True
            self._ended.set()
            for commit in self._waiting:
                _settle(commit, _unknown())

    async def close(self) -> None:
        """Take nothing more and write what waits, 30 s at most."""
        self._closing = True
        self._bell.set()
        try:
            async with asyncio.timeout(DRAIN_TIMEOUT):
                await self._ended.wait()
        except TimeoutError:
            pass  # the disk hangs: whoever still waits is told that the outcome is unknown

    def _take_group(self) -> list[Commit]:
        group: list[Commit] = []
        while self._waiting and len(group) < GROUP_LIMIT:
            commit = self._waiting.popleft()
            if not commit.done.done():
                group.append(commit)
        return group

    async def _write(self, group: list[Commit]) -> None:
        all_steps = [commit.steps for commit in group]
        outcomes: list[Outcome] = [_unknown()] * len(group)
        try:
            loop = asyncio.get_running_loop()
            outcomes = await loop.run_in_executor(self._thread, self._write_group, all_steps)
            self._tell(outcomes)
        finally:
            for commit, outcome in zip(group, outcomes, strict=True):
                _settle(commit, outcome)

    def _tell(self, outcomes: list[Outcome]) -> None:
        for outcome in outcomes:
            if not isinstance(outcome, SeraiError):
                for event in outcome:
                    self._listener(event)

    # -- in the writer's thread ------------------------------------------------------------------

    def _write_group(self, group: Sequence[Steps]) -> list[Outcome]:
        try:
            with self._engine.begin() as connection:
                return [_write_one(connection, steps) for steps in group]
        except Exception as error:  # whatever it is, each caller gets an answer
            explained = self._explain(error)
        if len(group) > 1 and explained.code in (Code.DISK_FULL, Code.BUG):
            return [self._write_group([steps])[0] for steps in group]
        return [explained] * len(group)


def _write_one(connection: sa.Connection, steps: Steps) -> Outcome:
    """Write one caller's steps within the group's transaction, or nothing and say why.

    Only after a conflict is there a savepoint to go back to: after a graver error the database has
    dropped the whole transaction by itself.
    """
    savepoint = connection.begin_nested()
    try:
        events = apply_steps(connection, steps)
    except sa.exc.IntegrityError as error:
        savepoint.rollback()
        conflict = find_conflict(connection, steps)
        conflict.__cause__ = error
        return conflict
    savepoint.commit()
    return events


def _nobody(_: Event) -> None:
    """Listen to nothing."""


def _settle(commit: Commit, outcome: Outcome) -> None:
    if commit.done.done():
        return
    if isinstance(outcome, SeraiError):
        commit.done.set_exception(outcome)
    else:
        commit.done.set_result(outcome)


def _unknown() -> Interrupted:
    return Interrupted(
        Code.DAEMON_STOPPING,
        "the daemon ended before the change was known to be stored",
        hint="Look again when it is back.",
    )
