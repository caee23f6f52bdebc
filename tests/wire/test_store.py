"""The store against a real database file: what is committed is there, whole or not at all."""

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from store_samples import a_guest, a_job, an_event, an_id, an_image

from serai.errors import Busy, Code, Conflict, Interrupted, Invalid, SeraiError
from serai.model.job import JobState
from serai.store import writer
from serai.store.changes import (
    AddEvent,
    DropGuest,
    DropImage,
    Prune,
    PutGuest,
    PutImage,
    PutJob,
)
from serai.store.database import Store, open_store

CALLERS = 50


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with open_store(tmp_path / "serai.db") as opened:
        yield opened


async def refused(store: Store, *changes) -> SeraiError:
    with pytest.raises(SeraiError) as caught:
        await store.commit(*changes)
    return caught.value


# -- what is put is there --------------------------------------------------------------------------


async def test_a_guest_comes_back_as_it_was(store: Store):
    await store.commit(PutGuest(a_guest(2)), PutGuest(a_guest(1, "web1")))
    assert await store.guests() == [a_guest(1, "web1"), a_guest(2)]


async def test_everything_is_there_after_opening_again(tmp_path: Path):
    path = tmp_path / "serai.db"
    job = a_job(1, key="k")
    async with open_store(path) as store:
        (event,) = await store.commit(
            PutGuest(a_guest(1)), PutImage(an_image("tiny")), PutJob(job), AddEvent(an_event())
        )
    async with open_store(path) as store:
        assert await store.guests() == [a_guest(1)]
        assert await store.images() == [an_image("tiny")]
        assert await store.job(job.id) == job
        assert await store.events() == [event]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["serai.db"]


async def test_a_guest_changes_in_place(store: Store):
    await store.commit(PutGuest(a_guest(1, "web1")))
    await store.commit(PutGuest(a_guest(1, "web2", version=2)))
    assert await store.guests() == [a_guest(1, "web2", version=2)]


async def test_dropping_is_never_an_error(store: Store):
    await store.commit(PutGuest(a_guest(1)), PutImage(an_image("tiny")))
    for _ in range(2):
        await store.commit(DropGuest(a_guest(1).id), DropImage("tiny"))
    assert await store.guests() == []
    assert await store.images() == []


async def test_an_image_is_replaced_only_if_that_was_wanted(store: Store):
    await store.commit(PutImage(an_image("tiny")))
    await store.commit(PutImage(an_image("tiny", "sha256:cd")))
    error = await refused(store, PutImage(an_image("tiny", "sha256:ef"), replace=False))
    assert (type(error), error.code) == (Conflict, Code.IMAGE_EXISTS)
    assert error.hint
    assert await store.images() == [an_image("tiny", "sha256:cd")]


async def test_text_that_no_json_can_hold_is_stored_all_the_same(store: Store):
    job = a_job(1, message="caf\udce9 \U0001f600 \0", phases=("a\ud800",))
    await store.commit(PutJob(job))
    found = await store.job(job.id)
    assert found is not None
    assert found.message == "caf\ufffd \U0001f600 \0"
    assert found.phases == ("a\ufffd",)


async def test_names_may_be_swapped_in_two_commits_but_not_stolen(store: Store):
    await store.commit(PutGuest(a_guest(1, "a")), PutGuest(a_guest(2, "b")))
    error = await refused(store, PutGuest(a_guest(2, "a")))
    assert (error.code, error.message) == (Code.GUEST_EXISTS, "there is a guest a already")
    await store.commit(PutGuest(a_guest(1, "c")), PutGuest(a_guest(2, "a")))
    assert [guest.spec.name for guest in await store.guests()] == ["c", "a"]


# -- jobs ------------------------------------------------------------------------------------------


async def test_jobs_are_listed_newest_first_in_pages(store: Store):
    for number in range(7):
        await store.commit(PutJob(a_job(number)))
    await store.commit(PutJob(a_job(2, JobState.RUNNING)))  # a change does not make it newer
    pages, before = [], ""
    while page := await store.jobs(limit=3, before=before):
        pages.append([job.subject for job in page])
        before = page[-1].id
    assert pages == [["g6", "g5", "g4"], ["g3", "g2", "g1"], ["g0"]]


async def test_jobs_of_one_state(store: Store):
    states = (JobState.DONE, JobState.RUNNING, JobState.QUEUED, JobState.DONE, JobState.FAILED)
    for number, state in enumerate(states):
        await store.commit(PutJob(a_job(number, state)))
    assert [job.subject for job in await store.jobs(JobState.DONE)] == ["g3", "g0"]
    assert [job.subject for job in await store.unfinished_jobs()] == ["g1", "g2"]


async def test_a_page_after_a_job_that_is_gone_is_refused(store: Store):
    with pytest.raises(Invalid) as caught:
        await store.jobs(before=an_id("nothing"))
    assert caught.value.code is Code.VALUE_INVALID


@pytest.mark.parametrize("untrusted", ["", "x", "\0", "\ud800", "'; drop table jobs", "x" * 10_000])
async def test_what_is_no_id_finds_nothing(store: Store, untrusted: str):
    await store.commit(PutJob(a_job(1)))
    assert await store.job(untrusted) is None
    assert await store.job_by_key(untrusted) is None


async def test_a_key_opens_one_job_only(store: Store):
    await store.commit(PutJob(a_job(1, key="k")), PutJob(a_job(2)), PutJob(a_job(3)))
    error = await refused(store, PutGuest(a_guest(1)), PutJob(a_job(4, key="k")))
    assert (type(error), error.code) == (Conflict, Code.IDEMPOTENCY_REUSED)
    assert await store.guests() == []
    assert await store.job_by_key("k") == a_job(1, key="k")
    await store.commit(PutJob(a_job(1, JobState.DONE, key="k")))


# -- events ----------------------------------------------------------------------------------------


async def test_events_are_numbered_in_order(store: Store):
    first = await store.commit(
        AddEvent(an_event("a")), PutGuest(a_guest(1)), AddEvent(an_event("b"))
    )
    second = await store.commit(AddEvent(an_event("c")))
    assert [(event.seq, event.subject) for event in (*first, *second)] == [
        (1, "a"),
        (2, "b"),
        (3, "c"),
    ]
    assert await store.events() == [*first, *second]
    assert await store.events(after=1, limit=1) == [first[1]]
    assert await store.last_seq() == 3
    assert await store.commit() == []


@pytest.mark.parametrize(
    ("after", "limit", "found"), [(-(10**30), 10, 1), (10**30, 10, 0), (0, -1, 0)]
)
async def test_absurd_numbers_are_no_error(store: Store, after: int, limit: int, found: int):
    await store.commit(AddEvent(an_event()))
    assert len(await store.events(after, limit)) == found


async def test_pruning_keeps_the_newest_and_what_is_under_way(store: Store):
    for number in range(10):
        state = JobState.RUNNING if number == 1 else JobState.DONE
        await store.commit(PutJob(a_job(number, state)), AddEvent(an_event(number)))
    await store.commit(Prune(events_kept=3, jobs_kept=2))
    assert [event.seq for event in await store.events()] == [8, 9, 10]
    assert [job.subject for job in await store.jobs()] == ["g9", "g8", "g1"]
    await store.commit(Prune(events_kept=100, jobs_kept=100))
    assert len(await store.events()) == 3


async def test_a_number_is_never_given_twice(tmp_path: Path):
    async with open_store(tmp_path / "serai.db") as store:
        await store.commit(AddEvent(an_event()), AddEvent(an_event()))
        await store.commit(Prune(events_kept=0, jobs_kept=0))
        assert await store.last_seq() == 0
    async with open_store(tmp_path / "serai.db") as store:
        (event,) = await store.commit(AddEvent(an_event()))
    assert event.seq == 3


# -- many at once ----------------------------------------------------------------------------------


async def test_of_a_hundred_with_one_name_one_wins(store: Store):
    commits = (
        store.commit(PutGuest(a_guest(number, "web1")), AddEvent(an_event(number)))
        for number in range(1, 101)
    )
    outcomes = await asyncio.gather(*commits, return_exceptions=True)
    won = [outcome for outcome in outcomes if isinstance(outcome, list)]
    lost = [outcome for outcome in outcomes if isinstance(outcome, Conflict)]
    assert (len(won), len(lost)) == (1, 99)
    assert {error.code for error in lost} == {Code.GUEST_EXISTS}
    assert len(await store.guests()) == 1
    assert await store.events() == won[0]


async def test_two_guests_never_have_one_number(store: Store):
    await store.commit(PutGuest(a_guest(1, "web1")))
    error = await refused(store, PutGuest(a_guest(1, "web2", id=an_id("other"))))
    assert (error.code, "web1" in error.message) == (Code.GUEST_EXISTS, True)


async def test_a_conflict_in_a_group_fails_only_its_caller(store: Store, groups: list[int]):
    await store.commit(PutGuest(a_guest(1, "taken")))
    commits = [
        store.commit(AddEvent(an_event(n)), PutGuest(a_guest(n, "taken" if n % 5 == 0 else "")))
        for n in range(2, CALLERS + 2)
    ]
    outcomes = await asyncio.gather(*commits, return_exceptions=True)
    lost = [n for n, outcome in enumerate(outcomes, 2) if isinstance(outcome, Conflict)]
    assert lost == list(range(5, CALLERS + 2, 5))
    stored = {event.subject for event in await store.events()}
    assert stored == {str(n) for n in range(2, CALLERS + 2) if n % 5}
    assert max(groups) > CALLERS / 2  # they were written together


async def test_a_bug_in_one_commit_fails_only_its_caller(store: Store, groups: list[int]):
    commits = [
        store.commit(PutGuest(a_guest(1 << 80 if n == 5 else n, f"x{n}"))) for n in range(1, 20)
    ]
    outcomes = await asyncio.gather(*commits, return_exceptions=True)
    failed = [outcome for outcome in outcomes if isinstance(outcome, SeraiError)]
    assert [error.code for error in failed] == [Code.BUG]
    assert len(await store.guests()) == 18
    assert max(groups) > 10


async def test_changes_that_contradict_each_other_are_a_bug(store: Store):
    error = await refused(store, PutGuest(a_guest(1, "a")), PutGuest(a_guest(2, "a")))
    assert error.code is Code.BUG
    assert await store.guests() == []


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Collect how many commits were written in each transaction."""
    sizes: list[int] = []
    write = writer.Writer._write_group

    def counting(self, group):
        sizes.append(len(group))
        return write(self, group)

    monkeypatch.setattr(writer.Writer, "_write_group", counting)
    return sizes


async def test_a_cancelled_caller_harms_nobody(store: Store):
    tasks = [
        asyncio.create_task(store.commit(PutGuest(a_guest(n)), AddEvent(an_event(n))))
        for n in range(1, CALLERS + 1)
    ]
    for turn in range(CALLERS):
        await asyncio.sleep(0)
        if turn % 2:
            tasks[turn].cancel()
    await asyncio.wait(tasks)
    known = {n for n, task in enumerate(tasks, 1) if not task.cancelled() and not task.exception()}
    stored = {guest.number for guest in await store.guests()}
    assert known
    assert known <= stored
    assert {int(event.subject) for event in await store.events()} == stored


class Gate:
    """Holds the writer's thread at the beginning of each transaction."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.entered, self.opened = threading.Event(), threading.Event()
        write = writer.Writer._write_group

        def gated(writer_itself, group):
            self.entered.set()
            assert self.opened.wait(10)
            return write(writer_itself, group)

        monkeypatch.setattr(writer.Writer, "_write_group", gated)

    async def wait_entered(self) -> None:
        assert await asyncio.to_thread(self.entered.wait, 10)


async def test_a_caller_cancelled_under_way_leaves_a_whole_change(
    store: Store, monkeypatch: pytest.MonkeyPatch
):
    gate = Gate(monkeypatch)
    under_way = asyncio.create_task(store.commit(PutGuest(a_guest(1)), AddEvent(an_event())))
    await gate.wait_entered()
    waiting = [asyncio.create_task(store.commit(PutGuest(a_guest(n)))) for n in (2, 3)]
    await asyncio.sleep(0)
    under_way.cancel()
    waiting[0].cancel()
    gate.opened.set()
    await asyncio.wait([under_way, *waiting])
    assert under_way.cancelled()
    assert [guest.number for guest in await store.guests()] == [1, 3]
    assert len(await store.events()) == 1


async def test_every_stored_event_is_told_in_order_also_when_its_caller_is_gone(
    store: Store, monkeypatch: pytest.MonkeyPatch
):
    told: list[int] = []
    store.listen(lambda event: told.append(event.seq))
    gate = Gate(monkeypatch)
    gone = asyncio.create_task(store.commit(AddEvent(an_event()), AddEvent(an_event())))
    await gate.wait_entered()
    gone.cancel()
    refused_one = store.commit(AddEvent(an_event()), PutGuest(a_guest(1 << 80)))
    gate.opened.set()
    outcomes = await asyncio.gather(
        *(store.commit(AddEvent(an_event())) for _ in range(CALLERS)),
        refused_one,
        return_exceptions=True,
    )
    assert isinstance(outcomes[-1], SeraiError)
    assert told == [event.seq for event in await store.events()] == list(range(1, CALLERS + 3))


async def test_a_writer_that_is_cancelled_leaves_nobody_waiting(
    store: Store, monkeypatch: pytest.MonkeyPatch
):
    gate = Gate(monkeypatch)
    under_way = asyncio.create_task(store.commit(PutGuest(a_guest(1))))
    await gate.wait_entered()
    waiting = asyncio.create_task(store.commit(PutGuest(a_guest(2))))
    await asyncio.sleep(0)
    (task,) = (task for task in asyncio.all_tasks() if task.get_name() == "store writer")
    task.cancel()
    outcomes = await asyncio.gather(under_way, waiting, return_exceptions=True)
    gate.opened.set()
    assert [type(outcome) for outcome in outcomes] == [Interrupted, Interrupted]


async def test_the_queue_has_an_end(store: Store, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(writer, "QUEUE_LIMIT", 10)
    commits = [store.commit(AddEvent(an_event())) for _ in range(30)]
    outcomes = await asyncio.gather(*commits, return_exceptions=True)
    refusals = [outcome for outcome in outcomes if isinstance(outcome, Busy)]
    assert {error.code for error in refusals} == {Code.QUEUE_FULL}
    assert len(refusals) == 20
    assert len(await store.events()) == 10


async def test_closing_writes_what_was_accepted_and_takes_no_more(tmp_path: Path):
    path = tmp_path / "serai.db"
    async with open_store(path) as store:
        accepted = [asyncio.create_task(store.commit(AddEvent(an_event()))) for _ in range(CALLERS)]
        await asyncio.sleep(0)
    assert [len(events) for events in await asyncio.gather(*accepted)] == [1] * CALLERS
    with pytest.raises(Busy) as caught:
        await store.commit(AddEvent(an_event()))
    assert caught.value.code is Code.DAEMON_STOPPING
    async with open_store(path) as store:
        assert await store.last_seq() == CALLERS


async def test_an_error_in_the_block_comes_out_as_it_is(tmp_path: Path):
    with pytest.raises(ZeroDivisionError):
        async with open_store(tmp_path / "serai.db") as store:
            await store.commit(PutGuest(a_guest(1)))
            raise ZeroDivisionError
