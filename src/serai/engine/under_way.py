"""What somebody is at work on: where records and files need not agree for the moment.

A layer that is being frozen has a file before it has a record; one that is being deleted has a file
when its record is gone. Whoever does such a thing says so here, and whoever compares records with
files leaves these out, or waits.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


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
