"""The schedules of the engine in memory: what they are and say; none is ever due by itself."""

from serai.errors import Code, Conflict, NotFound
from serai.model.actions import CreateSchedule, DeleteSchedule, RunSchedule, SetSchedule
from serai.model.guest import Guest
from serai.model.schedule import Judgement, Keep, Rule, Schedule, ScheduleRecord
from serai.model.snapshot import Snapshot
from serai.plan.retention import to_keep
from serai.plan.schedule import (
    changed,
    check_name_as,
    check_when,
    pick_schedule_name,
    view_schedule,
)
from serai.units import check_schedule_name, shorten

OfSchedule = CreateSchedule | SetSchedule | RunSchedule | DeleteSchedule
LEAST = 60.0


class FakeTimetable:
    """All schedules by id, at a moment that stands still."""

    def __init__(self, now: float) -> None:
        self.all: dict[str, ScheduleRecord] = {}
        self._now = now
        self._made = 0

    def of(self, guest: Guest) -> list[Schedule]:
        own = [each for each in self.all.values() if each.guest_id == guest.id]
        return [view_schedule(each, guest.name, ()) for each in sorted(own, key=lambda e: e.name)]

    def find(self, guest: Guest, name_or_id: str) -> Schedule:
        for each in self.of(guest):
            if name_or_id in (each.name, each.id):
                return each
        raise NotFound(
            Code.SCHEDULE_NOT_FOUND,
            f"{guest.name} has no schedule {shorten(name_or_id)}",
            hint=f"See which it has: serai schedule list {guest.name}",
        )

    def judge(self, snapshots: list[Snapshot], keep: Keep) -> list[Judgement]:
        """Judge all snapshots of a guest, as if the schedule had made them."""
        kept = to_keep({each.id: each.created_at for each in snapshots}, keep, 4e9)
        return [
            Judgement(
                snapshot=each.name, id=each.id, created_at=each.created_at,
                stays=each.id in kept, rule=kept.get(each.id, Rule.NONE),
            )
            for each in reversed(snapshots)
        ]  # fmt: skip

    def apply(self, guest: Guest, action: OfSchedule) -> list[str]:
        """Do it; return the id of what was made."""
        if isinstance(action, CreateSchedule):
            return [self._create(guest, action)]
        found = self.all[self.find(guest, action.schedule).id]
        match action:
            case SetSchedule(change=change):
                after = changed(found, change, self._now)
                check_when(after.when, LEAST)
                check_name_as(after.name_as, after.name, self._now)
                self.all[found.id] = after
            case DeleteSchedule():
                del self.all[found.id]
        return []

    def _create(self, guest: Guest, action: CreateSchedule) -> str:
        taken = {each.name for each in self.of(guest)}
        name = check_schedule_name(action.name or pick_schedule_name(action.when, taken))
        check_when(action.when, LEAST)
        check_name_as(action.name_as, name, self._now)
        if name in taken:
            raise Conflict(Code.SCHEDULE_EXISTS, f"{guest.name} has a schedule {name} already")
        self._made += 1
        made = ScheduleRecord(
            id=f"5c{self._made:030x}", name=name, guest_id=guest.id, created_at=self._now,
            since=self._now, when=action.when, keep=action.keep, memory=action.memory,
            quiesce=action.quiesce, name_as=action.name_as,
        )  # fmt: skip
        self.all[made.id] = made
        return made.id
