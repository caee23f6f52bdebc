"""What is on the timetable: every schedule by id, as the store has them, and when each is due.

Read by everybody; changed only together with a commit, by ``ScheduleKeeper`` and by whoever deletes a
guest.
"""

import asyncio
from collections.abc import Iterable

from serai.errors import Code, NotFound
from serai.model.guest import GuestRecord
from serai.model.schedule import ScheduleRecord
from serai.plan.schedule import due_time
from serai.units import shorten


class Timetable:
    """All schedules. ``changed`` is set whenever a due time may have changed."""

    def __init__(self) -> None:
        self.changed = asyncio.Event()
        self.schedules: dict[str, ScheduleRecord] = {}
        self.due: dict[str, float] = {}

    def put(self, schedule: ScheduleRecord) -> None:
        """Keep a schedule, new or changed."""
        self.schedules[schedule.id] = schedule
        self.due.pop(schedule.id, None)
        if not schedule.paused:
            self.due[schedule.id] = due_time(schedule)
        self.changed.set()

    def drop(self, schedule: ScheduleRecord) -> None:
        """Forget a schedule; one that is not there is forgotten already."""
        self.schedules.pop(schedule.id, None)
        self.due.pop(schedule.id, None)
        self.changed.set()

    def of(self, guest_id: str) -> Iterable[ScheduleRecord]:
        """Return the schedules of a guest, by name."""
        own = [each for each in self.schedules.values() if each.guest_id == guest_id]
        return sorted(own, key=lambda each: each.name)

    def names(self, guest_id: str) -> set[str]:
        """Return the names that a guest's schedules have."""
        return {each.name for each in self.of(guest_id)}

    def find(self, guest: GuestRecord, name_or_id: str) -> ScheduleRecord:
        """Return a schedule of ``guest``; NotFound (``schedule-not-found``), also for a foreign one."""
        for each in self.of(guest.id):
            if name_or_id in (each.name, each.id):
                return each
        raise NotFound(
            Code.SCHEDULE_NOT_FOUND,
            f"{guest.spec.name} has no schedule {shorten(name_or_id)}",
            hint=f"See which it has: serai schedule list {guest.spec.name}",
        )
