"""Several guests frozen at one moment: each does its part in its own task, and they meet twice.

    ready   all that takes time is prepared, and nobody is held yet
    held    nobody runs: what one of them says after this, none of them heard before

So no guest of the group remembers a word that another has not said yet. One that can't come breaks the
meeting off for all, and every guest goes on as it was.
"""

import asyncio

from serai.errors import Busy, Code

READY_LIMIT, HELD_LIMIT = 30.0, 5.0


class Meeting:
    """A meeting of so many ``parties``; alone one never waits."""

    def __init__(self, parties: int) -> None:
        self._ready = asyncio.Barrier(parties)
        self._held = asyncio.Barrier(parties)

    async def wait_ready(self) -> None:
        """Wait until all can be held; Busy (``moment-missed``) when one of them can't."""
        await self._wait(self._ready, READY_LIMIT)

    async def wait_held(self) -> None:
        """Wait until all are held; Busy (``moment-missed``) when one of them is not."""
        await self._wait(self._held, HELD_LIMIT)

    async def _wait(self, barrier: asyncio.Barrier, limit: float) -> None:
        if barrier.parties == 1:
            return
        try:
            async with asyncio.timeout(limit):
                await barrier.wait()
        except (asyncio.BrokenBarrierError, TimeoutError) as error:
            await self.break_off()
            raise Busy(
                Code.MOMENT_MISSED,
                "not all of the guests could be held at one moment",
                hint="One of them is busy or did not answer: try again.",
            ) from error

    async def break_off(self) -> None:
        """Let nobody wait any more: one of the group does not come."""
        await self._ready.abort()
        await self._held.abort()


ALONE = Meeting(1)
