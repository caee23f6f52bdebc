"""Schedules of snapshots, as the async SDK has them."""

from typing import Any, Self, Unpack

from msgspec.structs import asdict

from serai.client import snapshot_calls
from serai.client.async_connection import AsyncConnection
from serai.client.words import Duration, ScheduleOptions, schedule_change_of
from serai.model.schedule import Judgement, Keep
from serai.model.schedule import Schedule as ScheduleView


class AsyncSchedule:
    """One schedule of a guest. ``info`` is how it was when it was last asked."""

    def __init__(self, connection: AsyncConnection, info: ScheduleView) -> None:
        self._connection = connection
        self.info = info

    def __repr__(self) -> str:
        return f"<AsyncSchedule {self.info.guest} {self.info.name}>"

    @property
    def id(self) -> str:
        """Its id, which never changes."""
        return self.info.id

    @property
    def name(self) -> str:
        """Its name, unique in its guest."""
        return self.info.name

    async def refresh(self) -> Self:
        """Ask how it is."""
        self.info = await self._connection.ask(
            snapshot_calls.show_schedule(self.info.guest_id, self.id)
        )
        return self

    async def set(self, every: Duration = "", at: str = "", **how: Unpack[ScheduleOptions]) -> Self:
        """Change it; what is not given stays as it is."""
        return await self._change(every=every, at=at, **how)

    async def pause(self) -> Self:
        """Hold what it does by itself."""
        return await self._change(paused=True)

    async def resume(self) -> Self:
        """Let it go on; what it missed is not caught up."""
        return await self._change(paused=False)

    async def _change(self, **change: Any) -> Self:
        call = snapshot_calls.set_schedule(
            self.info.guest_id, self.id, schedule_change_of(**change)
        )
        await self._connection.finish(call)
        return await self.refresh()

    async def run(self) -> str:
        """Do now what it does when it is due; return what was done, in a sentence."""
        job = await self._connection.finish(
            snapshot_calls.run_schedule(self.info.guest_id, self.id)
        )
        return job.message

    async def preview(self, keep: Keep | None = None) -> list[Judgement]:
        """Return which of its snapshots would stay, by its rules or by ``keep``; deletes nothing."""
        counts = {} if keep is None else asdict(keep)
        call = snapshot_calls.judge_schedule(self.info.guest_id, self.id, **counts)
        return (await self._connection.ask(call)).items

    async def delete(self) -> None:
        """Delete it; the snapshots that it made stay."""
        await self._connection.finish(snapshot_calls.delete_schedule(self.info.guest_id, self.id))
