"""Jobs and their journal on a real store: durable, told once, ended together with their effect."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from serai.engine.ballast import SIZE, Ballast
from serai.engine.bus import Bus
from serai.engine.jobs import Jobs, error_of
from serai.engine.journal import Journal
from serai.errors import Code, Conflict, HostFailure, SeraiError
from serai.model.actions import StartGuest, StopGuest
from serai.model.event import EventKind
from serai.model.job import JobState
from serai.store.changes import Change
from serai.store.database import Store, open_store

ACTION = StartGuest(guest="web1")


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with open_store(tmp_path / "serai.db") as opened:
        yield opened


@pytest.fixture
def bus() -> Bus:
    return Bus()


@pytest.fixture
def ballast(tmp_path: Path) -> Ballast:
    return Ballast(tmp_path / "ballast", 0)


@pytest.fixture
def journal(store: Store, bus: Bus, ballast: Ballast) -> Journal:
    return Journal(store, bus, lambda: 1000.0, ballast)


@pytest.fixture
def jobs(journal: Journal) -> Jobs:
    numbers = iter(range(10_000))
    return Jobs(journal, lambda: f"job-{next(numbers):05}")


async def test_an_opened_job_is_durable(jobs: Jobs, store: Store) -> None:
    live = await jobs.open(ACTION, "web1", ("start",))
    stored = await store.job(live.id)
    assert stored == live.job
    assert stored is not None
    assert (stored.state, stored.phase) == (JobState.QUEUED, "start")


async def test_a_phase_is_stored_before_it_begins(jobs: Jobs, store: Store) -> None:
    live = await jobs.open(ACTION, "web1", ("stop", "start"))
    await live.enter("stop")
    stored = await store.job(live.id)
    assert stored is not None
    assert (stored.state, stored.phase) == (JobState.RUNNING, "stop")


async def test_a_job_is_shown_as_ended_only_when_that_is_stored(
    jobs: Jobs, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever looks meanwhile sees it on its way: what is shown as done must be there."""
    live = await jobs.open(ACTION, "web1", ("start",))
    commit, seen = journal.commit, list[JobState]()

    async def look_and_commit(*changes: Change, **more: object) -> None:
        seen.append((await jobs.find(live.id)).state)
        await commit(*changes, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(journal, "commit", look_and_commit)
    await live.finish(then=lambda: seen.append(live.job.state))
    assert seen == [JobState.QUEUED, JobState.QUEUED]
    assert live.job.state is JobState.DONE


async def test_waiters_are_told_after_the_end_is_stored(jobs: Jobs, store: Store) -> None:
    live = await jobs.open(ACTION, "web1", ("start",))
    waiting = asyncio.ensure_future(jobs.wait(live.id, 5))
    order: list[str] = []
    await live.finish(then=lambda: order.append("then"))
    job = await waiting
    assert order == ["then"]
    assert job.state is JobState.DONE
    assert await store.job(live.id) == job
    assert jobs.live(live.id) is None


async def test_nobody_sees_a_job_done_before_its_effect(jobs: Jobs, store: Store) -> None:
    """Also not who looks, or whose time is up, just while the end is stored."""
    live = await jobs.open(ACTION, "web1", ("start",))
    await live.enter("start")
    effect = asyncio.Event()
    ending = asyncio.ensure_future(live.finish(then=effect.set))
    looks = 0
    while not effect.is_set():
        seen = await jobs.wait(live.id, 0)
        assert seen.state is JobState.RUNNING or effect.is_set()
        looks += 1
    await ending
    assert looks and (await jobs.find(live.id)).state is JobState.DONE


async def test_waiting_gives_the_job_as_it_is_when_time_is_up(jobs: Jobs) -> None:
    live = await jobs.open(ACTION, "web1", ("start",))
    assert (await jobs.wait(live.id, 0.01)).state is JobState.QUEUED


async def test_a_failed_job_keeps_its_problem(jobs: Jobs) -> None:
    live = await jobs.open(ACTION, "web1", ("start",))
    await live.fail(Conflict(Code.GUEST_STATE, "no"))
    job = await jobs.find(live.id)
    assert job.state is JobState.FAILED
    assert job.problem is not None
    assert job.problem.code == Code.GUEST_STATE


async def test_a_cancelled_job_is_cancelled_not_failed(jobs: Jobs) -> None:
    live = await jobs.open(ACTION, "web1", ("start",))
    await live.fail(error_of(asyncio.CancelledError()))
    assert (await jobs.find(live.id)).state is JobState.CANCELLED


async def test_a_key_gives_the_job_of_the_first_time(jobs: Jobs) -> None:
    live = await jobs.open(ACTION, "web1", ("start",), key="k")
    assert await jobs.find_by_key("k", ACTION) == live.job
    with pytest.raises(SeraiError) as caught:
        await jobs.find_by_key("k", StopGuest(guest="web1"))
    assert caught.value.code is Code.IDEMPOTENCY_REUSED
    assert await jobs.find_by_key("other", ACTION) is None


async def test_a_key_in_use_leaves_no_live_job(jobs: Jobs) -> None:
    first = await jobs.open(ACTION, "web1", ("start",), key="k")
    with pytest.raises(SeraiError):
        await jobs.open(ACTION, "web1", ("start",), key="k")
    assert [job.id for job in await jobs.list(state=None, limit=10, before="")] == [first.id]


async def test_an_unknown_job_is_said_to_be(jobs: Jobs) -> None:
    with pytest.raises(SeraiError) as caught:
        await jobs.find("nope")
    assert caught.value.code is Code.JOB_NOT_FOUND


async def test_listing_shows_live_jobs_as_they_are(jobs: Jobs) -> None:
    live = await jobs.open(ACTION, "web1", ("start",))
    live.progress(5, 10, "half")
    (job,) = await jobs.list(state=None, limit=10, before="")
    assert (job.done, job.total, job.message) == (5, 10, "half")
    assert await jobs.list(state=JobState.DONE, limit=10, before="") == []


async def test_events_are_told_once_they_are_stored(journal: Journal, bus: Bus) -> None:
    with bus.subscribe() as watcher:
        await journal.commit(events=(journal.event(EventKind.GUEST_STATE, "web1", state="x"),))
        event = await asyncio.wait_for(watcher.take(), 5)
    assert event is not None
    assert event.seq > 0
    assert (await journal.store.events(after=0, limit=10)) == [event]


async def test_what_is_told_is_written_soon(journal: Journal, bus: Bus) -> None:
    running = asyncio.ensure_future(journal.run())
    try:
        with bus.subscribe() as watcher:
            journal.tell(journal.event(EventKind.GUEST_STATE, "web1"))
            event = await asyncio.wait_for(watcher.take(), 5)
        assert event is not None
    finally:
        running.cancel()


def test_what_a_step_raised_becomes_a_problem() -> None:
    assert error_of(OSError(28, "No space left on device", "/x")).code is Code.DISK_FULL
    assert error_of(HostFailure(Code.TOOL_FAILED, "x")).code is Code.TOOL_FAILED
    assert error_of(ZeroDivisionError("x")).code is Code.BUG


class FullDisk:
    """A store that finds no room ``times`` times, and then does."""

    def __init__(self, store: Store, times: int) -> None:
        self._store, self._times = store, times

    async def commit(self, *changes: Change) -> object:
        if self._times:
            self._times -= 1
            raise HostFailure(Code.DISK_FULL, "no space is left")
        return await self._store.commit(*changes)


def fill(journal: Journal, store: Store, times: int) -> None:
    journal.store = FullDisk(store, times)  # type: ignore[assignment]


async def test_an_end_that_could_not_be_stored_is_stored_later(
    journal: Journal, jobs: Jobs, store: Store
) -> None:
    """Else the next daemon would do again what was reported as failed long ago."""
    live = await jobs.open(ACTION, "web1", ("start",))
    fill(journal, store, 1)
    with pytest.raises(HostFailure):
        await live.finish()
    assert (await store.unfinished_jobs()) != []
    journal.store = store
    assert (await jobs.find(live.id)).state is JobState.FAILED
    await journal.settle()
    assert (await store.unfinished_jobs()) == []
    stored = await jobs.find(live.id)
    assert stored.problem is not None
    assert stored.problem.code == Code.DISK_FULL


async def test_an_owed_end_is_stored_before_anything_newer(
    journal: Journal, jobs: Jobs, store: Store
) -> None:
    live = await jobs.open(ACTION, "web1", ("start",))
    fill(journal, store, 1)
    with pytest.raises(HostFailure):
        await live.finish()
    journal.store = store
    newer = await jobs.open(StopGuest(guest="web1"), "web1", ("stop",))
    assert [job.id for job in await store.unfinished_jobs()] == [newer.id]


async def test_what_is_kept_back_makes_room_for_a_change(
    journal: Journal, jobs: Jobs, store: Store, ballast: Ballast, tmp_path: Path
) -> None:
    ballast.fill()
    assert os.stat(tmp_path / "ballast").st_blocks * 512 >= SIZE
    fill(journal, store, 1)
    live = await jobs.open(ACTION, "web1", ("start",))
    assert await store.job(live.id) == live.job
    assert 0 < (tmp_path / "ballast").stat().st_size < SIZE
    ballast.fill()
    assert (tmp_path / "ballast").stat().st_size == SIZE


async def test_what_is_kept_back_is_not_spent_on_events(
    journal: Journal, store: Store, ballast: Ballast, tmp_path: Path
) -> None:
    ballast.fill()
    fill(journal, store, 1)
    with pytest.raises(HostFailure):
        await journal.commit(events=(journal.event(EventKind.GUEST_STATE, "web1"),))
    assert (tmp_path / "ballast").stat().st_size == SIZE


async def test_a_disk_that_stays_full_is_said_to_be(
    journal: Journal, jobs: Jobs, store: Store, ballast: Ballast
) -> None:
    fill(journal, store, 100)
    with pytest.raises(HostFailure) as caught:
        await jobs.open(ACTION, "web1", ("start",))
    assert caught.value.code is Code.DISK_FULL
    assert not ballast.cut()


async def test_a_job_that_cannot_be_read_is_ended(jobs: Jobs, store: Store) -> None:
    live = await jobs.open(ACTION, "web1", ("start",))
    damaged = msgspec.structs.replace(live.job, action='{"kind":"dance"}')
    assert jobs.resume(damaged) is None
    await jobs.give_up(damaged)
    assert await store.unfinished_jobs() == []


async def test_what_is_held_is_broken_off_only_afterwards(jobs: Jobs) -> None:
    live = await jobs.open(ACTION, "web1", ("start",))
    done: list[str] = []

    async def work() -> None:
        with live.held():
            await asyncio.sleep(0.02)
            done.append("whole")
        done.append("more")

    task = asyncio.ensure_future(work())
    live.belongs_to(task)
    await asyncio.sleep(0)
    live.break_off()
    await asyncio.wait({task})
    assert (task.cancelled(), done) == (True, ["whole"])


async def test_a_job_is_broken_off_once(jobs: Jobs) -> None:
    """Its undoing is not broken off by the next who asks."""
    live = await jobs.open(ACTION, "web1", ("start",))
    done: list[str] = []

    async def work() -> None:
        try:
            await asyncio.sleep(10)
        finally:
            await asyncio.sleep(0.02)
            done.append("undone")

    task = asyncio.ensure_future(work())
    live.belongs_to(task)
    await asyncio.sleep(0)
    for _ in range(3):
        live.break_off()
        await asyncio.sleep(0.005)
    await asyncio.wait({task})
    assert done == ["undone"]
