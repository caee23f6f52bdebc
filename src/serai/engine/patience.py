"""How long a guest is waited for: a host that has no processor for it uses up none of that.

A limit in plain seconds means something else on each host: a Debian that boots within 30 s takes ten times
that beside enough others, and nothing is wrong with it. So what counts is the time that the guest could have run.
"""

import asyncio
import time

from serai.engine.driver import GuestDriver
from serai.host.procfs import kept_waiting

LONGEST = 10
"""However busy the host is: at most so many times the limit."""
LEAST = 0.1


class Patience:
    """A limit for one wait for a guest, in seconds in which its QEMU did not wait for a processor."""

    def __init__(self, driver: GuestDriver, limit: float) -> None:
        self._driver = driver
        self._limit = limit
        self._begun = time.monotonic()
        self._kept = self._count()

    def _count(self) -> float:
        instance = self._driver.instance
        return kept_waiting(instance.process.pid) if instance is not None else 0.0

    def left(self) -> float:
        """Return how many seconds are left; none or less when it is time to give up."""
        kept = max(0.0, self._count() - self._kept)
        end = min(self._limit + kept, self._limit * LONGEST)
        return self._begun + end - time.monotonic()

    async def until(self, *ends: asyncio.Event) -> None:
        """Wait until one of them is set, or the patience is at its end."""
        waits = [asyncio.ensure_future(each.wait()) for each in ends]
        try:
            while (left := self.left()) > 0 and not any(each.done() for each in waits):
                wanted = max(left, LEAST)
                await asyncio.wait(waits, timeout=wanted, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waits:
                each.cancel()
