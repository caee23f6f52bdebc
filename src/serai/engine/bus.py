"""Events on their way to watchers: bounded, and nobody is lost without being told.

A watcher that is too slow loses the oldest events and gets one MISSED event instead: then it reads
the state again. Not for: keeping events (the store does).
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager

from serai.model.event import Event, EventKind

WATCHER_LIMIT = 1024
PAGE = 500

ReadEvents = Callable[[int, int], Awaitable[list[Event]]]
"""``read(after, limit)``: stored events with a number above ``after``, the oldest first."""


class Watcher:
    """One bounded queue; made by ``Bus.subscribe``."""

    def __init__(self, limit: int) -> None:
        self._events: deque[Event] = deque()
        self._limit = limit
        self._missed: Event | None = None
        self._closed = False
        self._bell = asyncio.Event()

    def put(self, event: Event) -> None:
        """Queue an event, or remember that the oldest was lost."""
        if len(self._events) >= self._limit:
            self._missed = self._events.popleft()
        self._events.append(event)
        self._bell.set()

    def close(self) -> None:
        """Let ``take`` return None once all that waits is taken."""
        self._closed = True
        self._bell.set()

    async def take(self) -> Event | None:
        """Return the next event; None when the bus was closed."""
        while not self._events and self._missed is None and not self._closed:
            self._bell.clear()
            await self._bell.wait()
        if self._missed is not None:
            lost, self._missed = self._missed, None
            return Event(seq=lost.seq, at=lost.at, kind=EventKind.MISSED)
        return self._events.popleft() if self._events else None


class Bus:
    """Publishes events to everybody who watches."""

    def __init__(self) -> None:
        self._watchers: set[Watcher] = set()
        self._closed = False

    def publish(self, event: Event) -> None:
        """Give ``event`` to all watchers; never waits for any of them."""
        for watcher in self._watchers:
            watcher.put(event)

    @contextmanager
    def subscribe(self, limit: int = WATCHER_LIMIT) -> Iterator[Watcher]:
        """Watch within the block."""
        watcher = Watcher(limit)
        if self._closed:
            watcher.close()
        self._watchers.add(watcher)
        try:
            yield watcher
        finally:
            self._watchers.discard(watcher)

    async def follow(self, read: ReadEvents, *, after: int | None) -> AsyncIterator[Event]:
        """Give what was stored after number ``after``, then what is published; None: only that.

        The subscription begins before the history is read, and what comes twice is dropped, so
        nothing is lost between the two. Ends when the bus is closed.
        """
        with self.subscribe() as watcher:
            last = -1 if after is None else after
            while after is not None and (page := await read(last, PAGE)):
                for event in page:
                    yield event
                last = page[-1].seq
            while (news := await watcher.take()) is not None:
                if news.seq > last or news.kind is EventKind.MISSED:
                    yield news

    def close(self) -> None:
        """End all watchers, now and later."""
        self._closed = True
        for watcher in self._watchers:
            watcher.close()
