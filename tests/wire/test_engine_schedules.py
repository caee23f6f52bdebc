"""The keeper of schedules over a real store, with a clock of its own and snapshots that are only rows.

What a test moves is the clock; the keeper is woken by the timetable, so nothing here waits for time.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
from store_samples import a_guest, a_schedule, a_snapshot

from serai.engine.ballast import Ballast
from serai.engine.bus import Bus
from serai.engine.driver import GuestDriver
from serai.engine.house import House
from serai.engine.jobs import Jobs
from serai.engine.journal import Journal
from serai.engine.schedules import ScheduleKeeper
from serai.engine.shelf import Shelf
from serai.engine.snapshots import SnapshotKeeper
from serai.engine.timetable import Timetable
from serai.errors import Busy, Code, Conflict, HostFailure, SeraiError
from serai.host.supervise import Supervisor
from serai.model.actions import (
    Action,
    CreateSchedule,
    CreateSnapshot,
    DeleteSchedule,
    DeleteSnapshot,
    RunSchedule,
    SetSchedule,
)
from serai.model.event import EventKind
from serai.model.job import Job, JobState
from serai.model.lifecycle import GuestState
from serai.model.schedule import Every, Keep, ScheduleChange, ScheduleRecord, When
from serai.model.snapshot import SnapshotState
from serai.store.changes import PutSchedule
from serai.store.database import Store, open_store

GUEST = a_guest(1, "web1")
BEGIN = 1_700_000_000.0
HOUR, DAY = 3600.0, 86400.0
HOURLY = When(every=Every.HOURLY)


class Scene:
    """A keeper, a guest that runs, and what stands for everything around them."""

    def __init__(self, store: Store, supervisor: Supervisor, folder: Path, now: float) -> None:
        self.now = now
        self.store = store
        self.bus = Bus()
        self.shelf, self.timetable = Shelf(), Timetable()
        self.actions: list[Action] = []
        self.failure: SeraiError | None = None
        self.gate: asyncio.Event | None = None
        self.numbers = count()
        self.driver = SimpleNamespace(
            name="web1", record=GUEST, state=GuestState.RUNNING, instance=object()
        )
        journal = Journal(store, self.bus, lambda: self.now, Ballast(folder / "ballast", 0))
        house = SimpleNamespace(
            settings=SimpleNamespace(schedule_interval=60.0), journal=journal,
            jobs=Jobs(journal, self.new_id), shelf=self.shelf, timetable=self.timetable,
            supervisor=supervisor, new_id=self.new_id, closing=asyncio.Event(),
        )  # fmt: skip
        self.house = cast(House, house)
        self.snapshots = SnapshotKeeper(self.house, lambda _: self.as_driver)
        self.keeper = ScheduleKeeper(
            self.house, {GUEST.id: self.as_driver}.get, self.snapshots, self.submit
        )

    @property
    def as_driver(self) -> GuestDriver:
        return cast(GuestDriver, self.driver)

    def new_id(self) -> str:
        return f"id-{next(self.numbers):04}"

    async def submit(self, action: Action) -> Job:
        """Do it to the shelf; wait at the gate, if there is one."""
        self.actions.append(action)
        if self.failure is not None:
            raise self.failure
        job = await self.house.jobs.open(action, "web1", ())
        if self.gate is not None:
            await self.gate.wait()
        if isinstance(action, CreateSnapshot):
            made = a_snapshot(
                next(self.numbers), action.name, created_at=self.now, state=SnapshotState.READY,
                schedule=action.schedule, schedule_id=action.schedule_id,
            )  # fmt: skip
            self.shelf.put(made)
            await job.finish(results=(made.id,))
        else:
            assert isinstance(action, DeleteSnapshot)
            self.shelf.drop(self.shelf.snapshots[action.snapshot])
            await job.finish()
        return job.job

    async def do(self, action: Any) -> Job:
        """Have it done, and raise what ended it."""
        job = await self.keeper.take(self.as_driver, action, "")
        job = await self.house.jobs.wait(job.id, 10)
        assert job.is_final
        return job

    async def create(self, name: str = "x", keep: Keep = Keep(), when: When = HOURLY) -> None:  # noqa: B008
        await self.do(CreateSchedule(guest="web1", name=name, when=when, keep=keep))

    def the(self, name: str = "x") -> ScheduleRecord:
        return self.timetable.find(GUEST, name)

    @property
    def made(self) -> list[str]:
        return sorted(each.name for each in self.shelf.of(GUEST.id))

    async def at(self, moment: float) -> None:
        """Let it be that time, and wait until the keeper has done all that it does then."""
        self.now = moment
        self.timetable.changed.set()
        await self.settle()

    async def settle(self) -> None:
        await until(lambda: not self.timetable.changed.is_set() and not self.keeper._busy)


async def until(check: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not check():
            await asyncio.sleep(0)


@asynccontextmanager
async def playing(tmp_path: Path, now: float = BEGIN) -> AsyncIterator[Scene]:
    async with open_store(tmp_path / "serai.db") as store, Supervisor() as supervisor:
        scene = Scene(store, supervisor, tmp_path, now)
        await scene.keeper.take_up_all({GUEST.id})
        supervisor.start(scene.keeper.run(), name="schedules")
        yield scene


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    async with playing(tmp_path) as made:
        yield made


async def test_it_runs_when_it_is_due_and_deletes_only_its_own(scene: Scene) -> None:
    scene.shelf.put(a_snapshot(900, "mine", created_at=BEGIN, state=SnapshotState.READY))
    same_name = a_snapshot(
        901, "old", created_at=BEGIN, state=SnapshotState.READY, schedule="x", schedule_id="gone"
    )
    scene.shelf.put(same_name)
    await scene.create(keep=Keep(last=2))
    await scene.settle()
    assert scene.made == ["mine", "old"]
    for hour in range(1, 6):
        await scene.at(BEGIN + hour * HOUR)
    assert scene.made == ["mine", "old", "x-20231115-021320", "x-20231115-031320"]
    assert scene.the().said.endswith("and deleted x-20231115-011320; 2 are kept")
    told = [each for each in await scene.store.events() if each.kind is EventKind.SCHEDULE_RAN]
    assert len(told) == 5
    assert (told[-1].subject, told[-1].data["said"]) == ("web1", scene.the().said)
    assert await scene.store.schedules() == [scene.the()]


async def test_what_was_missed_is_caught_up_once(tmp_path: Path) -> None:
    async with playing(tmp_path) as scene:
        await scene.create()
    async with playing(tmp_path, BEGIN + 7 * DAY) as scene:
        await scene.settle()
        await scene.at(BEGIN + 7 * DAY + 60)
        assert len(scene.made) == 1


async def test_a_snapshot_whose_turn_was_cut_short_is_not_made_again(tmp_path: Path) -> None:
    async with playing(tmp_path) as scene:
        await scene.create()
        schedule = scene.the()
    async with open_store(tmp_path / "serai.db") as store, Supervisor() as supervisor:
        scene = Scene(store, supervisor, tmp_path, BEGIN + HOUR)
        known = a_snapshot(
            1,
            "made",
            created_at=BEGIN + HOUR - 5,
            state=SnapshotState.READY,
            schedule_id=schedule.id,
        )
        scene.shelf.put(known)
        await scene.keeper.take_up_all({GUEST.id})
        supervisor.start(scene.keeper.run(), name="schedules")
        await scene.settle()
        assert scene.actions == []
        await scene.at(BEGIN + 2 * HOUR)
        assert len(scene.actions) == 1


async def test_schedules_of_guests_that_are_gone_are_dropped(tmp_path: Path) -> None:
    async with open_store(tmp_path / "serai.db") as store:
        await store.commit(PutSchedule(a_schedule(1, guest=1)), PutSchedule(a_schedule(2, guest=2)))
        await store.commit(PutSchedule(a_schedule(3, guest=3)))
    async with open_store(tmp_path / "serai.db") as store, Supervisor() as supervisor:
        scene = Scene(store, supervisor, tmp_path, BEGIN)
        said = await scene.keeper.take_up_all({GUEST.id, a_guest(3).id})  # 3 can't be read
        assert said == ["the schedule s2 was of a guest that is gone"]
        assert {each.name for each in await store.schedules()} == {"s1", "s3"}
        assert [each.name for each in scene.timetable.schedules.values()] == ["s1"]


async def test_of_one_that_is_kept_it_says_is(scene: Scene) -> None:
    await scene.create(keep=Keep(last=1))
    await scene.at(BEGIN + HOUR)
    assert scene.the().said.endswith("; 1 is kept")


async def test_a_failure_is_its_problem_and_tried_when_it_is_due_again(scene: Scene) -> None:
    await scene.create(keep=Keep(last=1))
    await scene.at(BEGIN + HOUR)
    scene.failure = HostFailure(Code.AGENT_UNAVAILABLE, "no agent")
    await scene.at(BEGIN + 2 * HOUR)
    await scene.at(BEGIN + 2 * HOUR + 60)
    assert [type(each) for each in scene.actions] == [
        CreateSnapshot,
        CreateSnapshot,
    ]  # none deleted
    problem = scene.the().problem
    assert problem is not None
    assert problem.code == Code.AGENT_UNAVAILABLE
    assert scene.the().said == "x of web1 failed: no agent"
    assert (await scene.store.schedules())[0].problem == problem
    assert len(scene.made) == 1
    scene.failure = None
    await scene.at(BEGIN + 3 * HOUR)
    assert scene.the().problem is None
    assert scene.made == ["x-20231115-011320"]


async def test_a_slow_snapshot_delays_and_does_not_pile_up(scene: Scene) -> None:
    await scene.create()
    scene.gate = asyncio.Event()
    scene.now = BEGIN + HOUR
    scene.timetable.changed.set()
    await until(lambda: bool(scene.actions))
    for hour in range(2, 6):
        scene.now = BEGIN + hour * HOUR
        scene.timetable.changed.set()
        await until(lambda: not scene.timetable.changed.is_set())
    assert len(scene.actions) == 1
    scene.gate.set()
    await scene.settle()
    assert len(scene.actions) == 1  # it has ended now: the next is due in the next hour
    await scene.at(BEGIN + 6 * HOUR)
    assert len(scene.actions) == 2


async def test_one_that_is_run_by_hand_does_not_overlap(scene: Scene) -> None:
    await scene.create()
    scene.gate = asyncio.Event()
    scene.now = BEGIN + HOUR
    scene.timetable.changed.set()
    await until(lambda: bool(scene.actions))
    by_hand = asyncio.create_task(scene.do(RunSchedule(guest="web1", schedule="x")))
    await until(lambda: len(scene.snapshots._under_way) == 1)
    change = ScheduleChange(memory=False)  # stored after all that the run by hand stores before
    await scene.do(SetSchedule(guest="web1", schedule="x", change=change))
    await scene.store.commit()
    assert len(scene.actions) == 1
    scene.gate.set()
    job = await by_hand
    assert (job.state, len(job.results)) == (JobState.DONE, 1)
    assert job.message == "x of web1 made the snapshot x-20231114-231320-2; 2 are kept"
    scene.failure = Busy(Code.MEMORY_SHORT, "no memory")
    job = await scene.do(RunSchedule(guest="web1", schedule="x"))
    assert job.problem is not None
    assert (job.state, job.problem.code) == (JobState.FAILED, Code.MEMORY_SHORT)


async def test_a_clock_that_is_set_back_keeps_it_running(scene: Scene) -> None:
    await scene.create()
    await scene.at(BEGIN + 365 * DAY)
    assert len(scene.actions) == 1
    await scene.at(BEGIN + HOUR)  # back in the right year
    assert len(scene.actions) == 1
    await scene.at(BEGIN + 2 * HOUR)
    assert len(scene.actions) == 2
    await scene.at(BEGIN + 2 * HOUR - 60)  # a little only: none twice
    await scene.at(BEGIN + 2 * HOUR + 60)
    assert len(scene.actions) == 2


async def test_paused_changed_and_deleted(scene: Scene) -> None:
    await scene.create()
    pause = SetSchedule(guest="web1", schedule="x", change=ScheduleChange(paused=True))
    await scene.do(pause)
    await scene.at(BEGIN + HOUR)
    assert scene.actions == []
    resume = SetSchedule(guest="web1", schedule="x", change=ScheduleChange(paused=False))
    await scene.do(resume)
    await scene.settle()
    assert scene.actions == []
    await scene.at(BEGIN + 2 * HOUR)
    assert len(scene.actions) == 1
    await scene.do(DeleteSchedule(guest="web1", schedule="x"))
    await scene.at(BEGIN + 9 * HOUR)
    assert (len(scene.actions), len(scene.made)) == (1, 1)
    assert await scene.store.schedules() == []


async def test_a_change_during_a_turn_is_not_lost(scene: Scene) -> None:
    await scene.create()
    scene.gate = asyncio.Event()
    scene.now = BEGIN + HOUR
    scene.timetable.changed.set()
    await until(lambda: bool(scene.actions))
    change = ScheduleChange(keep=Keep(last=5), memory=False)
    await scene.do(SetSchedule(guest="web1", schedule="x", change=change))
    scene.gate.set()
    await scene.settle()
    [stored] = await scene.store.schedules()
    assert (stored.keep, stored.memory, bool(stored.said)) == (Keep(last=5), False, True)


async def test_a_schedule_that_is_deleted_during_its_turn_stays_deleted(scene: Scene) -> None:
    await scene.create()
    scene.gate = asyncio.Event()
    scene.now = BEGIN + HOUR
    scene.timetable.changed.set()
    await until(lambda: bool(scene.actions))
    await scene.do(DeleteSchedule(guest="web1", schedule="x"))
    scene.gate.set()
    await scene.settle()
    assert await scene.store.schedules() == []
    assert scene.timetable.due == {}


async def test_of_many_with_one_name_one_wins(scene: Scene) -> None:
    wanted = CreateSchedule(guest="web1", name="x", when=HOURLY)
    jobs = await asyncio.gather(*(scene.keeper.take(scene.as_driver, wanted, "") for _ in range(5)))
    ended = [await scene.house.jobs.wait(job.id, 10) for job in jobs]
    assert sorted(str(job.state) for job in ended) == ["done", *["failed"] * 4]
    assert {job.problem.code for job in ended if job.problem} == {Code.SCHEDULE_EXISTS}
    assert len(await scene.store.schedules()) == 1


async def test_a_guest_that_is_being_deleted_gets_no_schedule_and_keeps_none(scene: Scene) -> None:
    await scene.create()
    scene.driver.state = GuestState.DELETING
    job = await scene.do(CreateSchedule(guest="web1", name="y", when=HOURLY))
    assert job.problem is not None
    assert job.problem.code == Code.GUEST_STATE
    scene.failure = Conflict(Code.GUEST_STATE, "it is being deleted")
    before = await scene.store.schedules()
    await scene.at(BEGIN + HOUR)
    assert await scene.store.schedules() == before  # nothing is written that may come after the end
    assert len(scene.actions) == 1


async def test_of_many_that_are_due_a_few_run_at_once(scene: Scene) -> None:
    for number in range(200):
        scene.timetable.put(a_schedule(number, since=BEGIN, when=HOURLY))
    scene.gate = asyncio.Event()
    scene.now = BEGIN + HOUR
    scene.timetable.changed.set()
    await until(lambda: len(scene.actions) >= 4)
    await until(lambda: not scene.timetable.changed.is_set())
    assert len(scene.actions) == 4
    scene.gate.set()
    await scene.settle()
    assert len(scene.made) == 200


async def test_what_cannot_be_stored_is_not_begun_again_at_once(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    await scene.create()
    commit = scene.house.journal.commit

    async def fail(*changes: object, **more: Any) -> None:
        if any(isinstance(each, PutSchedule) for each in changes):
            raise HostFailure(Code.DISK_FULL, "full")
        await commit(*changes, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(scene.house.journal, "commit", fail)
    await scene.at(BEGIN + HOUR)
    await scene.at(BEGIN + HOUR + 60)
    assert len(scene.actions) == 1


def test_snapshots_of_a_schedule_survive_what_later_fields_bring() -> None:
    """A snapshot from before schedules had ids belongs to nobody."""
    stored = msgspec.to_builtins(a_snapshot(1, schedule="x"))
    del stored["schedule_id"]
    assert msgspec.convert(stored, type(a_snapshot(1))).schedule_id == ""
