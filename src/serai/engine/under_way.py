"""What somebody is at work on: where records and files need not agree for the moment.

A layer that is being frozen has a file before it has a record; one that is being deleted has a file
when its record is gone. Whoever does such a thing says so here, and whoever compares records with
files leaves these out, or waits.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


class Openers:
    """Who has looked up which layers there are, and is about to open their files.

    Two layers may be made one meanwhile: what was looked up is still right as long as the files that
    are not needed any more stay until it is done.
    """

    def __init__(self) -> None:
        self._now: set[asyncio.Event] = set()

    @contextmanager
    def opening(self) -> Iterator[None]:
        """Say that what is looked up in the block is open when it is left."""
        over = asyncio.Event()
        self._now.add(over)
        try:
            yield
        finally:
            self._now.remove(over)
            over.set()

    async def done(self) -> None:
        """Wait for all that have begun by now."""
        for each in list(self._now):
            await each.wait()


class UnderWay:
    """The ids of layers, memories and guests that somebody is at work on."""

    def __init__(self) -> None:
        self._work: dict[str, list[asyncio.Event]] = {}

    @contextmanager
    def on(self, *ids: str) -> Iterator[None]:
        """Say that somebody is at work on these until this is left."""
        over = asyncio.Event()
        for each in ids:
            self._work.setdefault(each, []).append(over)
        try:
            yield
        finally:
            over.set()
            for each in ids:
                self._work[each].remove(over)
                if not self._work[each]:
                    del self._work[each]

    def ids(self) -> frozenset[str]:
        """Return all that somebody is at work on."""
        return frozenset(self._work)

    async def over(self, each: str) -> None:
        """Wait until nobody is at work on it."""
        while work := self._work.get(each):
            await work[0].wait()
