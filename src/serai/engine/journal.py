"""What happened, first durable and then told: the one way from the engine to store and bus.

Everything that changes is committed here together with its events; only after the commit do the
watchers hear of it, in the order of the store's numbers, and also when whoever committed is gone. Not for: deciding what happened.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable

from serai.engine.ballast import Ballast
from serai.engine.bus import Bus
from serai.errors import Code, SeraiError
from serai.model.event import Event, EventKind
from serai.model.job import Job
from serai.store.changes import AddEvent, Change, PutJob
from serai.store.database import Store

log = logging.getLogger(__name__)

PENDING_LIMIT = 10_000


class Journal:
    """Commits changes with their events and publishes them; ``clock`` gives seconds since epoch."""

    def __init__(
        self, store: Store, bus: Bus, clock: Callable[[], float], ballast: Ballast
    ) -> None:
        self.store = store
        self.ballast = ballast
        store.listen(bus.publish)
        self._clock = clock
        self._pending: deque[Event] = deque(maxlen=PENDING_LIMIT)
        self._wake = asyncio.Event()
        self._owed: dict[str, PutJob] = {}

    def now(self) -> float:
        """Return the time that records and events carry."""
        return self._clock()

    def event(self, kind: EventKind, subject: str, subject_id: str = "", **data: str) -> Event:
        """Make an event of this moment; its number comes from the store."""
        return Event(
            seq=0, at=self._clock(), kind=kind, subject=subject, subject_id=subject_id, data=data
        )

    async def commit(self, *changes: Change, events: tuple[Event, ...] = ()) -> None:
        """Make ``changes`` and ``events`` durable together; the watchers are told.

        On failure nothing of it is stored or told. A cancelled caller does not know the outcome.
        """
        owed = tuple(self._owed.values())
        everything = (*owed, *changes, *(AddEvent(event) for event in events))
        try:
            await self.store.commit(*everything)
        except SeraiError as error:
            if error.code is not Code.DISK_FULL or not changes or not self.ballast.cut():
                raise  # events alone are not worth it
            log.warning("the disk is full: a piece of what was kept back for that is used")
            await self.store.commit(*everything)
        for change in owed:
            if self._owed.get(change.job.id) is change:
                del self._owed[change.job.id]

    def owe(self, change: PutJob) -> None:
        """Store the end of a job, which could not be stored now, with what is stored next."""
        self._owed[change.job.id] = change

    def owed_job(self, job_id: str) -> Job | None:
        """Return a job as it ended, if that is not stored yet."""
        change = self._owed.get(job_id)
        return change.job if change else None

    async def settle(self) -> None:
        """Store what is owed, if anything is; it stays owed if it can't be stored now."""
        if self._owed:
            await self.commit()

    def tell(self, event: Event) -> None:
        """Store and publish ``event`` soon, without making the caller wait."""
        self._pending.append(event)
        self._wake.set()

    async def run(self) -> None:
        """Write what ``tell`` was given, until cancelled; a full disk loses events, not guests."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self.flush()

    async def flush(self) -> None:
        """Write all events that wait; those that can't be written are lost, and the log says so."""
        events = tuple(self._pending)
        self._pending.clear()
        if not events:
            return
        try:
            await self.commit(events=events)
        except SeraiError as error:
            log.warning("%d events were not stored: %s", len(events), error.message)
