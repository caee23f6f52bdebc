"""Opening the store: new, current, older, newer and foreign databases."""

import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from store_samples import a_guest, an_event

from serai.errors import Code, HostFailure
from serai.store import migrate
from serai.store.changes import AddEvent, PutGuest
from serai.store.database import open_store
from serai.store.schema import CURRENT, METADATA, VERSION, Schema

NEXT_STEP = """
import sqlalchemy as sa
from alembic import op

revision = "{revision}"
down_revision = "{before}"

def upgrade():
    op.add_column("guests", sa.Column("colour", sa.String(8), server_default="red"))
    {more}
"""


def next_schema(tmp_path: Path, more: str = "pass") -> Schema:
    """Return the schema of a program that is one step ahead of this one."""
    folder = tmp_path / "a 100% odd folder" / "migrations"
    shutil.copytree(CURRENT.migrations, folder)
    revision = f"{int(VERSION) + 1:04}"
    step = NEXT_STEP.format(revision=revision, before=VERSION, more=more)
    (folder / "versions" / f"{revision}_colour.py").write_text(step)
    return Schema(version=revision, migrations=folder)


def query(path: Path, sql: str) -> list[tuple]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(sql).fetchall()


def tables_of(path: Path) -> dict[str, list[tuple]]:
    """Return what SQLite itself says of all tables and indexes."""
    found = {}
    for name, kind in query(path, "select name, type from sqlite_master"):
        pragma = "table_xinfo" if kind == "table" else "index_xinfo"
        found[name] = query(path, f"pragma {pragma}({name})")
    found["unique"] = sorted(
        row[2:] for name in METADATA.tables for row in query(path, f"pragma index_list({name})")
    )
    return found


async def failure_of(path: Path, schema: Schema = CURRENT) -> HostFailure:
    with pytest.raises(HostFailure) as caught:
        async with open_store(path, schema=schema):
            pass
    assert caught.value.code is Code.DATABASE_FAILED
    return caught.value


async def test_a_new_database_is_made_for_its_owner_only(tmp_path: Path):
    path = tmp_path / "serai.db"
    async with open_store(path) as store:
        await store.commit(PutGuest(a_guest(1)))
        modes = {file.name: file.stat().st_mode & 0o777 for file in tmp_path.iterdir()}
    assert modes == dict.fromkeys(("serai.db", "serai.db-wal", "serai.db-shm"), 0o600)


async def test_commits_are_synchronised_with_the_disk(tmp_path: Path, monkeypatch):
    """FULL is 2: with less, a power cut may take what was acknowledged."""
    async with open_store(tmp_path / "serai.db") as store:
        engine = store._writer._engine
        with engine.connect() as connection:
            names = ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
            values = [connection.exec_driver_sql(f"pragma {name}").scalar() for name in names]
    assert values == ["wal", 2, 1, 5000]


def test_the_tables_and_the_steps_that_make_them_agree(tmp_path: Path):
    """A new database is made from schema.py, an old one by the steps: they must be the same."""
    made, stepped = tmp_path / "made.db", tmp_path / "stepped.db"
    METADATA.create_all(sa.create_engine(f"sqlite:///{made}"))
    engine = sa.create_engine(f"sqlite:///{stepped}")
    migrate.upgrade(engine, CURRENT.migrations, "head")
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, METADATA) == []
    del (found := tables_of(stepped))["alembic_version"]
    found.pop("sqlite_autoindex_alembic_version_1", None)
    assert found == tables_of(made)


def test_the_version_is_the_newest_step():
    config = Config()
    config.set_main_option("script_location", str(CURRENT.migrations))
    assert ScriptDirectory.from_config(config).get_heads() == [VERSION]


def test_a_current_database_is_opened_without_alembic(tmp_path: Path):
    program = f"""
import asyncio, sys
from pathlib import Path
from serai.store.database import open_store

async def main():
    for _ in range(2):
        async with open_store(Path({str(tmp_path / "serai.db")!r})):
            pass

asyncio.run(main())
print([name for name in ("alembic", "sqlalchemy.orm") if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")


async def test_an_older_database_is_migrated_and_a_copy_kept(tmp_path: Path):
    path = tmp_path / "serai.db"
    async with open_store(path) as store:
        await store.commit(PutGuest(a_guest(1)), AddEvent(an_event()))
    schema = next_schema(tmp_path)
    async with open_store(path, schema=schema) as store:
        assert await store.guests() == [a_guest(1)]
        assert await store.last_seq() == 1
    assert query(path, "select version_num, colour from alembic_version, guests") == [
        (schema.version, "red")
    ]
    copy = tmp_path / f"serai.db.{VERSION}"
    assert copy.stat().st_mode & 0o777 == 0o600
    async with open_store(copy) as store:
        assert await store.guests() == [a_guest(1)]
    async with open_store(path, schema=schema) as store:
        assert await store.guests() == [a_guest(1)]


async def test_a_step_that_fails_changes_nothing(tmp_path: Path):
    path = tmp_path / "serai.db"
    async with open_store(path) as store:
        await store.commit(PutGuest(a_guest(1)))
    before = tables_of(path)
    error = await failure_of(path, next_schema(tmp_path, more="op.drop_table('nothing')"))
    assert f"serai.db.{VERSION}" in error.hint
    assert tables_of(path) == before
    async with open_store(path) as store:
        assert await store.guests() == [a_guest(1)]


async def test_a_newer_database_is_refused_untouched(tmp_path: Path):
    path = tmp_path / "serai.db"
    async with open_store(path):
        pass
    schema = next_schema(tmp_path)
    async with open_store(path, schema=schema):
        pass
    before = {file: file.read_bytes() for file in tmp_path.glob("serai.db*")}
    path.with_name(f"{path.name}.{VERSION}").unlink()
    error = await failure_of(path)
    assert f"version {schema.version}" in error.message
    assert error.hint
    assert {file: file.read_bytes() for file in tmp_path.glob("serai.db*")} == {path: before[path]}


@pytest.mark.parametrize(
    "prepare",
    [
        "create table other (x)",
        "create table alembic_version (version_num text)",
        "create table alembic_version (version_num text); insert into alembic_version values ('x')",
    ],
)
async def test_a_foreign_database_is_refused(tmp_path: Path, prepare: str):
    path = tmp_path / "serai.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(prepare)
    error = await failure_of(path)
    assert "not made by serai" in error.message
    assert error.hint
    assert not [
        name for (name,) in query(path, "select name from sqlite_master") if name == "guests"
    ]


@pytest.mark.parametrize("content", [b"#!/bin/sh\n" * 1000, b"SQLite format 3\0" + b"\xff" * 5000])
async def test_what_is_no_database_is_refused(tmp_path: Path, content: bytes):
    path = tmp_path / "serai.db"
    path.write_bytes(content)
    assert str(path) in (await failure_of(path)).hint
    assert path.read_bytes() == content


async def test_a_folder_that_is_not_there_is_refused(tmp_path: Path):
    assert "none" in (await failure_of(tmp_path / "none" / "serai.db")).message


async def test_a_folder_in_its_place_is_refused(tmp_path: Path):
    await failure_of(tmp_path)


async def test_a_crash_while_copying_leaves_no_half_copy_behind(tmp_path: Path):
    path = tmp_path / "serai.db"
    async with open_store(path):
        pass
    (tmp_path / f"serai.db.{VERSION}.unfinished").write_bytes(b"half")
    async with open_store(path, schema=next_schema(tmp_path)):
        pass
    assert not list(tmp_path.glob("*.unfinished"))


def test_the_next_step_is_written_by_comparing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "migrations"
    shutil.copytree(CURRENT.migrations, folder)
    monkeypatch.setattr(migrate, "CURRENT", Schema(version=VERSION, migrations=folder))
    migrate.write_step("nothing new")
    (step,) = folder.glob(f"versions/{int(VERSION) + 1:04}_nothing_new.py")
    text = step.read_text()
    compile(text, str(step), "exec")
    assert f"down_revision = '{VERSION}'" in text.replace('"', "'")
