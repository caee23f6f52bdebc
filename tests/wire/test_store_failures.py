"""The store when its disk is full, when somebody else holds it, and when rows are damaged."""

import asyncio
import logging
import os
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa
from store_samples import a_guest, a_job, an_event, an_image

from serai.errors import Code, Conflict, HostFailure
from serai.model.event import EventKind
from serai.model.job import JobState
from serai.store import database
from serai.store.changes import AddEvent, DropGuest, Prune, PutGuest, PutImage, PutJob
from serai.store.database import Store, explain_failure, open_store
from serai.units import KIB, MIB


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "serai-test", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, timeout=10).returncode:
        pytest.skip("only root can mount a small file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True, timeout=10)


def fill(folder: Path) -> Path:
    """Leave not one byte free."""
    path = folder / "filler"
    with path.open("wb", buffering=0) as file:
        for size in (64 * KIB, 4 * KIB, 1):
            try:
                while True:
                    file.write(b"\0" * size)
            except OSError:
                continue
    return path


async def commit_until_full(store: Store) -> tuple[list[int], HostFailure]:
    """Commit guests until one is refused; return those that were acknowledged, and the refusal."""
    acknowledged = []
    for number in range(1, 10_000):
        try:
            await store.commit(PutGuest(a_guest(number)), AddEvent(an_event(number)))
        except HostFailure as error:
            return acknowledged, error
        acknowledged.append(number)
    raise AssertionError("the disk was never full")


async def numbers(store: Store) -> list[int]:
    return [guest.number for guest in await store.guests()]


async def test_a_full_disk_refuses_and_forgets_nothing(small_disk: Path):
    path = small_disk / "serai.db"
    async with open_store(path) as store:
        filler = fill(small_disk)
        acknowledged, error = await commit_until_full(store)
        assert error.code is Code.DISK_FULL
        assert error.hint
        assert await numbers(store) == acknowledged
        assert len(await store.events()) == len(acknowledged)
        filler.unlink()
        await store.commit(PutGuest(a_guest(9_999)))
        assert await numbers(store) == [*acknowledged, 9_999]
    async with open_store(path) as store:
        assert await numbers(store) == [*acknowledged, 9_999]
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("pragma integrity_check").fetchall() == [("ok",)]


async def test_a_commit_too_large_for_the_disk_fails_alone(small_disk: Path):
    async with open_store(small_disk / "serai.db") as store:
        large = PutJob(a_job(1, message="x" * 4 * MIB))
        small = [store.commit(PutGuest(a_guest(number))) for number in range(1, 20)]
        outcomes = await asyncio.gather(
            *small[:9], store.commit(large), *small[9:], return_exceptions=True
        )
        failed = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
        assert [getattr(error, "code", error) for error in failed] == [Code.DISK_FULL], failed
        assert await numbers(store) == list(range(1, 20))


async def test_a_disk_too_full_for_a_new_database_says_so(small_disk: Path):
    filler = fill(small_disk)
    with pytest.raises(HostFailure) as caught:
        async with open_store(small_disk / "serai.db"):
            pass
    assert caught.value.code is Code.DISK_FULL
    filler.unlink()
    async with open_store(small_disk / "serai.db") as store:
        await store.commit(PutGuest(a_guest(1)))


async def test_a_database_that_somebody_holds_is_told_and_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(database, "PRAGMAS", (*database.PRAGMAS, "busy_timeout=50"))
    path = tmp_path / "serai.db"
    async with open_store(path) as store:
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("begin immediate")
            commits = [store.commit(PutGuest(a_guest(number))) for number in range(1, 101)]
            async with asyncio.timeout(3):  # they wait together, not one after the other
                outcomes = await asyncio.gather(*commits, return_exceptions=True)
            assert {getattr(error, "code", error) for error in outcomes} == {Code.DATABASE_FAILED}
            assert await store.guests() == []
        await store.commit(PutGuest(a_guest(1)))
        assert await numbers(store) == [1]


def test_failed_writing_on_a_full_disk_is_a_full_disk(small_disk: Path):
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = sqlite3.SQLITE_IOERR_WRITE
    assert explain_failure(small_disk / "serai.db", error).code is Code.DATABASE_FAILED
    fill(small_disk)
    assert explain_failure(small_disk / "serai.db", error).code is Code.DISK_FULL


def corrupt(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(statement)
        connection.commit()


@pytest.mark.parametrize("body", ["substr(body, 1, 40)", "cast(x'7b92' as text)"])
async def test_a_damaged_guest_is_told_and_takes_no_other_down(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, body: str
):
    path = tmp_path / "serai.db"
    async with open_store(path) as store:
        await store.commit(*(PutGuest(a_guest(number)) for number in (1, 2, 3)))
        corrupt(path, f"update guests set body = {body} where number = 2")
        with caplog.at_level(logging.ERROR):
            assert await numbers(store) == [1, 3]
        assert a_guest(2).id in caplog.text
        (damaged,) = await store.damaged()
        told = (damaged.table, damaged.key, damaged.name, damaged.number)
        assert told == ("guests", a_guest(2).id, "g2", 2)
        assert damaged.reason
        with pytest.raises(Conflict):
            await store.commit(PutGuest(a_guest(4, "g2")))
        await store.commit(DropGuest(damaged.key))
        assert await store.damaged() == []


async def test_damaged_images_jobs_and_events_are_told(tmp_path: Path):
    path = tmp_path / "serai.db"
    async with open_store(path) as store:
        await store.commit(*(PutImage(an_image(name)) for name in ("a", "b")))
        await store.commit(*(PutJob(a_job(number, key=f"k{number}")) for number in (1, 2, 3)))
        await store.commit(*(AddEvent(an_event(number)) for number in (1, 2, 3)))
        corrupt(path, "update images set body = '{}' where name = 'a'")
        corrupt(path, "update jobs set body = x'00ff' where seq = 2")
        corrupt(path, "update events set body = '[' where seq = 2")
        assert [image.name for image in await store.images()] == ["b"]
        assert [job.subject for job in await store.unfinished_jobs()] == ["g1", "g3"]
        assert [(d.table, d.key) for d in await store.damaged()] == [
            ("images", "a"),
            ("jobs", a_job(2).id),
        ]
        assert [event.kind is EventKind.MISSED for event in await store.events()] == [
            False,
            True,
            False,
        ]
        assert [event.seq for event in await store.events()] == [1, 2, 3]
        for job in (
            (await store.jobs())[1],
            await store.job(a_job(2).id),
            await store.job_by_key("k2"),
        ):
            assert job is not None
            assert (job.id, job.state) == (a_job(2).id, JobState.FAILED)
            assert job.problem is not None
            assert job.problem.code == Code.DATABASE_FAILED
        await store.commit(Prune(events_kept=1, jobs_kept=1))


async def test_a_torn_file_is_reported_and_not_a_crash(tmp_path: Path):
    path = tmp_path / "serai.db"
    async with open_store(path) as store:
        await store.commit(*(PutGuest(a_guest(number)) for number in range(1, 200)))
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (size - 4096))
    with pytest.raises(HostFailure) as caught:
        async with open_store(path) as store:
            await store.guests()
    assert caught.value.code is Code.DATABASE_FAILED
    assert caught.value.hint


@pytest.mark.parametrize(
    ("cause", "code"),
    [
        (OSError(28, "No space left on device"), Code.DISK_FULL),
        (OSError(122, "Disk quota exceeded"), Code.DISK_FULL),
        (PermissionError(13, "Permission denied"), Code.DATABASE_FAILED),
        (sqlite3.OperationalError("no such table: guests"), Code.DATABASE_FAILED),
        (sa.exc.OperationalError("x", {}, sqlite3.OperationalError("y")), Code.DATABASE_FAILED),
        (OverflowError("too large"), Code.BUG),
    ],
)
def test_each_failure_is_explained(tmp_path: Path, cause: Exception, code: Code):
    explained = explain_failure(tmp_path / "serai.db", cause)
    assert explained.code is code
    assert explained.__cause__ is cause
    assert explain_failure(tmp_path, explained) is explained
