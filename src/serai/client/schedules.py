# Made of schedules_async.py by scripts/make_blocking.py: change that file, then `make blocking`.
"""Schedules of snapshots, as the blocking SDK has them."""

from typing import Any, Self, Unpack

from msgspec.structs import asdict

from serai.client import snapshot_calls
from serai.client.blocking import Connection
from serai.client.words import Duration, ScheduleOptions, schedule_change_of
from serai.model.schedule import Judgement, Keep
from serai.model.schedule import Schedule as ScheduleView


class Schedule:
    """One schedule of a guest. ``info`` is how it was when it was last asked."""

    def __init__(self, connection: Connection, info: ScheduleView) -> None:
        self._connection = connection
        self.info = info

    def __repr__(self) -> str:
        return f"<Schedule {self.info.guest} {self.info.name}>"

    @property
    def id(self) -> str:
        """Its id, which never changes."""
        return self.info.id

    @property
    def name(self) -> str:
        """Its name, unique in its guest."""
        return self.info.name

    def refresh(self) -> Self:
        """Ask how it is."""
        self.info = self._connection.ask(snapshot_calls.show_schedule(self.info.guest_id, self.id))
        return self

    def set(self, every: Duration = "", at: str = "", **how: Unpack[ScheduleOptions]) -> Self:
        """Change it; what is not given stays as it is."""
        return self._change(every=every, at=at, **how)

    def pause(self) -> Self:
        """Hold what it does by itself."""
        return self._change(paused=True)

    def resume(self) -> Self:
        """Let it go on; what it missed is not caught up."""
        return self._change(paused=False)

    def _change(self, **change: Any) -> Self:
        call = snapshot_calls.set_schedule(
            self.info.guest_id, self.id, schedule_change_of(**change)
        )
        self._connection.finish(call)
        return self.refresh()

    def run(self) -> str:
        """Do now what it does when it is due; return what was done, in a sentence."""
        job = self._connection.finish(snapshot_calls.run_schedule(self.info.guest_id, self.id))
        return job.message

    def preview(self, keep: Keep | None = None) -> list[Judgement]:
        """Return which of its snapshots would stay, by its rules or by ``keep``; deletes nothing."""
        counts = {} if keep is None else asdict(keep)
        call = snapshot_calls.judge_schedule(self.info.guest_id, self.id, **counts)
        return self._connection.ask(call).items

    def delete(self) -> None:
        """Delete it; the snapshots that it made stay."""
        self._connection.finish(snapshot_calls.delete_schedule(self.info.guest_id, self.id))
