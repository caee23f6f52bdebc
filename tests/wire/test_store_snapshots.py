"""Snapshots and layers in the store: kept, unique by guest, damaged without harm, migrated to."""

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa
from store_samples import a_guest, a_layer, a_snapshot, an_event

from serai.errors import Code, Conflict
from serai.model.guest import Volume
from serai.model.snapshot import SnapshotState
from serai.store import migrate
from serai.store.changes import (
    AddEvent,
    DropLayer,
    DropSnapshot,
    PutGuest,
    PutLayer,
    PutSnapshot,
)
from serai.store.database import Store, open_store
from serai.store.schema import CURRENT


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with open_store(tmp_path / "serai.db") as opened:
        yield opened


async def test_snapshots_and_layers_come_back_as_they_were(tmp_path: Path):
    path = tmp_path / "serai.db"
    snapshots = [a_snapshot(1), a_snapshot(2, state=SnapshotState.READY), a_snapshot(3, guest=2)]
    layers = [a_layer(1), a_layer(2, parent=1)]
    async with open_store(path) as store:
        await store.commit(*map(PutSnapshot, reversed(snapshots)), *map(PutLayer, layers))
    async with open_store(path) as store:
        assert await store.snapshots() == snapshots
        assert await store.layers() == sorted(layers, key=lambda layer: layer.id)


async def test_they_change_in_place_and_go_without_complaint(store: Store):
    await store.commit(PutSnapshot(a_snapshot(1)), PutLayer(a_layer(1)))
    changed = a_snapshot(1, "renamed", note="n", state=SnapshotState.READY)
    await store.commit(PutSnapshot(changed), PutLayer(a_layer(1, parent=7)))
    assert await store.snapshots() == [changed]
    assert await store.layers() == [a_layer(1, parent=7)]
    for _ in range(2):
        await store.commit(DropSnapshot(changed.id), DropLayer(a_layer(1).id))
    assert (await store.snapshots(), await store.layers()) == ([], [])


async def test_a_guest_keeps_its_volumes(store: Store):
    volume = Volume(name="root", head="root-2.qcow2", layer=a_layer(1).id, size=1 << 20)
    guest = a_guest(1, volumes=(volume,), snapshot="s", origin="o", expires_at=5.0)
    await store.commit(PutGuest(guest))
    assert await store.guests() == [guest]


async def test_a_name_is_unique_among_the_snapshots_of_its_guest(store: Store):
    await store.commit(PutSnapshot(a_snapshot(1, "x", guest=1)))
    await store.commit(PutSnapshot(a_snapshot(2, "x", guest=2)))
    for conflicting in (a_snapshot(3, "x", guest=1), a_snapshot(2, "x", guest=1)):
        with pytest.raises(Conflict) as caught:
            await store.commit(PutLayer(a_layer(1)), PutSnapshot(conflicting))
        assert caught.value.code is Code.SNAPSHOT_EXISTS
        assert caught.value.hint
    assert await store.layers() == []
    assert await store.snapshots() == [a_snapshot(1, "x", guest=1), a_snapshot(2, "x", guest=2)]


async def test_of_many_with_one_name_one_wins(store: Store):
    commits = (store.commit(PutSnapshot(a_snapshot(n, "x"))) for n in range(40))
    outcomes = await asyncio.gather(*commits, return_exceptions=True)
    assert sum(isinstance(outcome, list) for outcome in outcomes) == 1
    assert {e.code for e in outcomes if isinstance(e, Conflict)} == {Code.SNAPSHOT_EXISTS}


def change(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(statement)
        connection.commit()


async def test_damaged_ones_are_told_and_take_no_other_down(tmp_path: Path):
    path = tmp_path / "serai.db"
    async with open_store(path) as store:
        await store.commit(*(PutSnapshot(a_snapshot(number)) for number in (1, 2, 3)))
        await store.commit(*(PutLayer(a_layer(number)) for number in (1, 2)))
        change(path, "update snapshots set body = substr(body, 1, 90) where name = 's2'")
        change(path, f"update layers set body = 'x' where id = '{a_layer(1).id}'")
        assert [found.name for found in await store.snapshots()] == ["s1", "s3"]
        assert await store.layers() == [a_layer(2)]
        snapshot, layer = await store.damaged()
        assert (snapshot.table, snapshot.key, snapshot.name, snapshot.guest_id) == (
            "snapshots", a_snapshot(2).id, "s2", a_guest(1).id,
        )  # fmt: skip
        assert (layer.table, layer.key) == ("layers", a_layer(1).id)
        assert layer.reason
        await store.commit(DropSnapshot(snapshot.key), DropLayer(layer.key))
        assert await store.damaged() == []


async def test_a_thousand_snapshots_are_read_quickly(store: Store):
    await store.commit(*(PutSnapshot(a_snapshot(number)) for number in range(1000)))
    begun = time.process_time()  # whatever else the machine does meanwhile
    assert len(await store.snapshots()) == 1000
    assert time.process_time() - begun < 0.2  # 12 ms, measured


def old_database(path: Path) -> None:
    """Make a database as the first version made it."""
    engine = sa.create_engine(f"sqlite:///{path}")
    migrate.upgrade(engine, CURRENT.migrations, "0001")
    engine.dispose()


async def test_a_database_of_the_first_version_is_taken_over(tmp_path: Path):
    path = tmp_path / "serai.db"
    old_database(path)
    body = (
        '{"id":"i","number":1,"version":1,"created_at":1.5,"spec":{"image":"tiny","name":"g1"},'
        '"image_digest":"sha256:ab","machine_type":"pc-q35-7.2","mac":"m","genid":"x"}'
    )
    change(path, f"insert into guests (id, name, number, body) values ('i', 'g1', 1, '{body}')")
    async with open_store(path) as store:
        (guest,) = await store.guests()
        assert (guest.spec.name, guest.volumes, guest.snapshot) == ("g1", (), "")
        await store.commit(PutSnapshot(a_snapshot(1)), PutLayer(a_layer(1)), AddEvent(an_event()))
        assert len(await store.snapshots()) == 1
    assert (tmp_path / "serai.db.0001").exists()
