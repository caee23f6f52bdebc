"""Events on their way to watchers: bounded, and nobody loses one without being told.

A watcher that is too slow loses the oldest events and gets one MISSED event instead, which carries
the number of the last one lost: then it reads the state again. Publishing never waits for anybody.
Not for: keeping events (the store does).
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from weakref import WeakSet

from serai.errors import Busy, Code
from serai.model.event import Event, EventKind

EVENT_LIMIT = 1024
WATCHER_LIMIT = 1000
PAGE = 500

ReadEvents = Callable[[int, int], Awaitable[list[Event]]]
"""``read(after, limit)``: stored events with a number above ``after``, the oldest first."""


class Watcher:
    """One bounded queue; made by ``Bus.subscribe``."""

    def __init__(self, limit: int) -> None:
        self._events: deque[Event] = deque()
        self._limit = limit
        self._last_lost: Event | None = None
        self._lost = 0
        self._closed = False
        self._bell = asyncio.Event()

    def put(self, event: Event) -> None:
        """Queue an event, or remember that the oldest was lost."""
        if len(self._events) >= self._limit:
            self._last_lost = self._events.popleft()
            self._lost += 1
        self._events.append(event)
        self._bell.set()

    def close(self) -> None:
        """Let ``take`` return None once all that waits is taken."""
        self._closed = True
        self._bell.set()

    async def take(self) -> Event | None:
        """Return the next event, MISSED before those that came after a loss; None at the end."""
        while not self._events and not self._closed:
            self._bell.clear()
            await self._bell.wait()
        if self._last_lost is not None:
            return self._tell_loss(self._last_lost)
        return self._events.popleft() if self._events else None

    def _tell_loss(self, last: Event) -> Event:
        missed = _missed(last.seq, last.at, self._lost)
        self._last_lost, self._lost = None, 0
        return missed


class Bus:
    """Publishes events to everybody who watches."""

    def __init__(self) -> None:
        self._watchers: WeakSet[Watcher] = WeakSet()
        self._closed = False

    def publish(self, event: Event) -> None:
        """Give ``event`` to all watchers; never waits for any of them."""
        for watcher in self._watchers:
            watcher.put(event)

    @contextmanager
    def subscribe(self, limit: int = EVENT_LIMIT) -> Iterator[Watcher]:
        """Watch within the block what is published from now on, with ``limit`` events unread."""
        watcher = self._open(limit)
        try:
            yield watcher
        finally:
            self._watchers.discard(watcher)

    def _open(self, limit: int) -> Watcher:
        """Add a watcher; it is forgotten when nobody holds it any more."""
        if len(self._watchers) >= WATCHER_LIMIT:
            raise Busy(Code.QUEUE_FULL, f"{WATCHER_LIMIT} clients follow the events already")
        watcher = Watcher(limit)
        if self._closed:
            watcher.close()
        self._watchers.add(watcher)
        return watcher

    def follow(self, read: ReadEvents, *, after: int | None) -> AsyncGenerator[Event, None]:
        """Give what was stored after number ``after``, then what is published; None: only that.

        The subscription begins with this call, before the history is read, and what comes twice is
        dropped, so nothing is lost between the two. When events after ``after`` are not kept any
        more, MISSED comes first. Ends when the bus is closed. Raises Busy (``queue-full``) with a
        thousand watchers.
        """
        return self._follow(self._open(EVENT_LIMIT), read, after)

    async def _follow(
        self, watcher: Watcher, read: ReadEvents, after: int | None
    ) -> AsyncGenerator[Event, None]:
        last = -1 if after is None else after
        try:
            while after is not None and (page := await read(last, PAGE)):
                if last == after and 0 < after < page[0].seq - 1:
                    yield _missed(page[0].seq - 1, page[0].at, page[0].seq - 1 - after)
                for event in page:
                    yield event
                last = page[-1].seq
            while (news := await watcher.take()) is not None:
                if news.seq > last:
                    yield news
        finally:
            self._watchers.discard(watcher)

    def close(self) -> None:
        """End all watchers, now and later; what they have not read yet still comes."""
        self._closed = True
        for watcher in self._watchers:
            watcher.close()


def _missed(last: int, at: float, count: int) -> Event:
    return Event(seq=last, at=at, kind=EventKind.MISSED, data={"lost": str(count)})
