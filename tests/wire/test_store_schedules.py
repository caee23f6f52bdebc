"""Schedules in the store: kept, unique by guest, damaged without harm, migrated to."""

import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa
from store_samples import a_guest, a_schedule, a_snapshot

from serai.errors import Code, Conflict, NotFound
from serai.store import migrate
from serai.store.changes import DropSchedule, PutGuest, PutSchedule, PutSnapshot
from serai.store.database import Store, open_store
from serai.store.schema import CURRENT


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with open_store(tmp_path / "serai.db") as opened:
        yield opened


async def test_they_come_back_as_they_were_change_and_go(tmp_path: Path):
    problem = NotFound(Code.GUEST_NOT_FOUND, "gone").problem()
    wanted = sorted(
        [a_schedule(1), a_schedule(2, paused=True, problem=problem)], key=lambda s: s.id
    )
    async with open_store(tmp_path / "serai.db") as store:
        await store.commit(*map(PutSchedule, reversed(wanted)))
    async with open_store(tmp_path / "serai.db") as store:
        assert await store.schedules() == wanted
        changed = a_schedule(1, said="it ran", ran_at=5.0)
        await store.commit(PutSchedule(changed))
        assert changed in await store.schedules()
        for _ in range(2):
            await store.commit(*(DropSchedule(each.id) for each in wanted))
        assert await store.schedules() == []


async def test_a_name_is_unique_among_the_schedules_of_its_guest(store: Store):
    await store.commit(PutSchedule(a_schedule(1, "x")), PutSchedule(a_schedule(2, "x", guest=2)))
    for conflicting in (a_schedule(3, "x"), a_schedule(2, "x")):
        with pytest.raises(Conflict) as caught:
            await store.commit(PutSnapshot(a_snapshot(1)), PutSchedule(conflicting))
        assert (caught.value.code, bool(caught.value.hint)) == (Code.SCHEDULE_EXISTS, True)
    assert len(await store.schedules()) == 2
    assert await store.snapshots() == []


def change(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(statement)
        connection.commit()


async def test_a_damaged_one_is_told_and_takes_no_other_down(tmp_path: Path):
    path = tmp_path / "serai.db"
    async with open_store(path) as store:
        await store.commit(PutSchedule(a_schedule(1)), PutSchedule(a_schedule(2)))
        change(path, "update schedules set body = '{}' where name = 's2'")
        assert await store.schedules() == [a_schedule(1)]
        [found] = await store.damaged()
    assert (found.table, found.key, found.name, found.guest_id) == (
        "schedules", a_schedule(2).id, "s2", a_guest(1).id,
    )  # fmt: skip


@pytest.mark.parametrize("version", ["0001", "0002"])
async def test_a_database_of_an_earlier_version_is_taken_over(tmp_path: Path, version: str):
    path = tmp_path / "serai.db"
    engine = sa.create_engine(f"sqlite:///{path}")
    migrate.upgrade(engine, CURRENT.migrations, version)
    engine.dispose()
    async with open_store(path) as store:
        await store.commit(PutGuest(a_guest(1)), PutSchedule(a_schedule(1)))
        assert await store.schedules() == [a_schedule(1)]
    assert (tmp_path / f"serai.db.{version}").exists()
