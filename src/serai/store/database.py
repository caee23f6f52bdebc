"""The database: how it is opened, and the store that it is for everybody else.

Only this file knows SQLite: its file, its pragmas, its error codes. Everything else in this room
is SQL that PostgreSQL speaks too.

SQLAlchemy runs on threads of our own (one writes, two read), not through aiosqlite: that is a
thread as well, but one that is called several times for each statement, and SQLAlchemy's asyncio
layer brings the whole ORM. Measured: 2.5 times the CPU for each commit, 8 MB, and 0.3 s at start
(docs/design/0006-the-store.md).
"""

import asyncio
import errno
import os
import sqlite3
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing
from functools import partial
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from serai.errors import Bug, Code, HostFailure, SeraiError
from serai.host.supervise import Supervisor
from serai.model.event import Event
from serai.model.guest import GuestRecord
from serai.model.image import Image
from serai.model.job import Job, JobState
from serai.model.network import ForwardRecord, GroupRecord, NetworkRecord, PortUsage
from serai.model.schedule import ScheduleRecord
from serai.model.snapshot import Layer, SnapshotRecord
from serai.model.volume import PoolRecord, VolumeRecord
from serai.store import kinds, queries
from serai.store.changes import Change
from serai.store.reader import Explain, Reader
from serai.store.records import Damaged
from serai.store.rows import prepare
from serai.store.schema import CURRENT, Schema
from serai.store.version import bring_up_to_date
from serai.store.writer import Writer

READING_THREADS = 2
BUSY_TIMEOUT = 5.0
CLOSE_TIMEOUT = 10.0
FULL_BELOW = 1 << 20
"""A failed write with less than this free on the file system is taken for a full disk."""

DAMAGED_HINT = "Stop the daemon and restore {path} from a copy, or move it away to begin anew."
HELD_HINT = "Another program holds it; see which: fuser {path}"
RIGHTS_HINT = "Look at the owner and mode of {path} and of its folder."

HINTS = {
    sqlite3.SQLITE_CORRUPT: DAMAGED_HINT,
    sqlite3.SQLITE_NOTADB: DAMAGED_HINT,
    sqlite3.SQLITE_BUSY: HELD_HINT,
    sqlite3.SQLITE_LOCKED: HELD_HINT,
    sqlite3.SQLITE_CANTOPEN: RIGHTS_HINT,
    sqlite3.SQLITE_READONLY: RIGHTS_HINT,
    sqlite3.SQLITE_PERM: RIGHTS_HINT,
    sqlite3.SQLITE_IOERR: "Look at the host's disk: dmesg",
}

PRAGMAS = (
    "journal_mode=WAL",
    "synchronous=FULL",
    "foreign_keys=ON",
    f"busy_timeout={int(BUSY_TIMEOUT * 1000)}",
    "journal_size_limit=67108864",
)


class Store:
    """Everything that lasts. Made by ``open_store``; any number of tasks may use it at once.

    Whoever reads sees what was committed before. What reading and writing raise in general is said
    in ``Reader.read`` and ``Writer.commit``.
    """

    def __init__(self, writer: Writer, reader: Reader) -> None:
        self._writer = writer
        self._reader = reader

    async def commit(self, *changes: Change) -> list[Event]:
        """Store all ``changes`` or none; durable when this returns.

        Returns the events among them, with the numbers that they got.
        """
        return await self._writer.commit([prepare(change) for change in changes])

    def listen(self, listener: Callable[[Event], None]) -> None:
        """Have ``listener`` told of every event once it is stored: see ``Writer.listen``."""
        self._writer.listen(listener)

    async def guests(self) -> list[GuestRecord]:
        """Return all guests, by number."""
        return await self._reader.read(kinds.GUEST.read)

    async def images(self) -> list[Image]:
        """Return all images, by name."""
        return await self._reader.read(kinds.IMAGE.read)

    async def snapshots(self) -> list[SnapshotRecord]:
        """Return all snapshots of all guests, the oldest first."""
        return await self._reader.read(queries.read_snapshots)

    async def schedules(self) -> list[ScheduleRecord]:
        """Return all schedules of all guests, by id."""
        return await self._reader.read(kinds.SCHEDULE.read)

    async def layers(self) -> list[Layer]:
        """Return all layers, by id."""
        return await self._reader.read(kinds.LAYER.read)

    async def volumes(self) -> list[VolumeRecord]:
        """Return all volumes that live by themselves, by name."""
        return await self._reader.read(kinds.VOLUME.read)

    async def pools(self) -> list[PoolRecord]:
        """Return all pools but ``default``, by name."""
        return await self._reader.read(kinds.POOL.read)

    async def networks(self) -> list[NetworkRecord]:
        """Return all networks, by name."""
        return await self._reader.read(kinds.NETWORK.read)

    async def usage(self) -> list[PortUsage]:
        """Return what has passed each port."""
        return await self._reader.read(kinds.PORT_USAGE.read)

    async def groups(self) -> list[GroupRecord]:
        """Return all security groups, by name."""
        return await self._reader.read(kinds.GROUP.read)

    async def forwards(self) -> list[ForwardRecord]:
        """Return all forwards."""
        return await self._reader.read(kinds.FORWARD.read)

    async def damaged(self) -> list[Damaged]:
        """Return what is there and can't be read: all but events."""
        return await self._reader.read(queries.read_damaged)

    async def unfinished_jobs(self) -> list[Job]:
        """Return the jobs that are queued or running, the oldest first."""
        return await self._reader.read(queries.read_unfinished_jobs)

    async def jobs(
        self, state: JobState | None = None, limit: int = 100, before: str = ""
    ) -> list[Job]:
        """Return jobs, the newest first; ``before`` is the id of the last one that was seen.

        Raises Invalid (``value-invalid``) when that job is not there any more.
        """
        return await self._reader.read(queries.read_jobs, state, limit, before)

    async def job(self, job_id: str) -> Job | None:
        """Return one job."""
        return await self._reader.read(queries.read_job, job_id)

    async def job_by_key(self, key: str) -> Job | None:
        """Return the job with this idempotency key."""
        return await self._reader.read(queries.read_job_by_key, key)

    async def events(self, after: int = 0, limit: int = 1000) -> list[Event]:
        """Return events with a number above ``after``, the oldest first."""
        return await self._reader.read(queries.read_events, after, limit)

    async def last_seq(self) -> int:
        """Return the number of the newest event that is kept; 0 if there is none."""
        return await self._reader.read(queries.read_last_seq)


@asynccontextmanager
async def open_store(path: Path, *, schema: Schema = CURRENT) -> AsyncIterator[Store]:
    """Open the database, creating it or bringing it up to date; its folder must exist.

    Raises HostFailure (``database-failed``, ``disk-full``): then the database is as it was. At the
    end all that was accepted is written.
    """
    explain = partial(explain_failure, path)
    writing, reading = _make_engine(path, writes=True), _make_engine(path, writes=False)
    writing_thread = ThreadPoolExecutor(1, "store-writer")
    reading_threads = ThreadPoolExecutor(READING_THREADS, "store-reader")
    try:
        await _open(writing, writing_thread, path, schema, explain)
        async with Supervisor() as supervisor:
            writer = Writer(writing, writing_thread, explain)
            supervisor.start(writer.run(), name="store writer")
            try:
                yield Store(writer, Reader(reading, reading_threads, explain))
            finally:
                await writer.close()
    finally:
        await _let_go((reading_threads, reading), (writing_thread, writing))


async def _open(
    engine: sa.Engine, thread: ThreadPoolExecutor, path: Path, schema: Schema, explain: Explain
) -> None:
    def work() -> None:
        _make_file(path)
        bring_up_to_date(engine, schema, partial(_copy_beside, engine, path))

    try:
        await asyncio.get_running_loop().run_in_executor(thread, work)
    except Exception as error:
        raise explain(error) from error


async def _let_go(*owned: tuple[ThreadPoolExecutor, sa.Engine]) -> None:
    """Close all connections, 10 s at most; the last one empties the write-ahead log."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(CLOSE_TIMEOUT):
            for threads, engine in owned:
                await loop.run_in_executor(threads, engine.dispose)
    except TimeoutError:
        pass  # the disk hangs; what was committed is in the log, and is found there next time
    for threads, _ in owned:
        threads.shutdown(wait=False, cancel_futures=True)


# -- SQLite --------------------------------------------------------------------------------------


def _make_engine(path: Path, *, writes: bool) -> sa.Engine:
    """Make an engine for the file. A writer's transactions take the lock when they begin.

    The driver's own idea of when a transaction begins is switched off: it knows no savepoints
    (https://docs.sqlalchemy.org/en/21/dialects/sqlite.html, "Transactions with SQLite").
    """
    url = sa.URL.create("sqlite", database=str(path))
    engine = sa.create_engine(url, pool_size=1 if writes else READING_THREADS, max_overflow=0)
    sa.event.listen(engine, "connect", _on_connect)
    if writes:
        sa.event.listen(engine, "begin", _on_begin)
    return engine


def _on_connect(connection: Any, _record: object) -> None:
    connection.isolation_level = None
    connection.text_factory = _decode_text
    for pragma in PRAGMAS:
        connection.execute(f"PRAGMA {pragma}").close()


def _decode_text(untrusted: bytes) -> str:
    """Decode a text so that one damaged byte makes its own row unreadable, not the whole table."""
    return untrusted.decode(errors="surrogateescape")


def _on_begin(connection: sa.Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _make_file(path: Path) -> None:
    """Make the file so that only its owner can read it; the log beside it gets the same mode."""
    if not path.exists():
        os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
        _sync(path.parent)


def _copy_beside(engine: sa.Engine, path: Path, version: str) -> Path:
    """Copy the whole database to ``serai.db.VERSION``; complete and durable when this returns."""
    copy = path.with_name(f"{path.name}.{version}")
    unfinished = path.with_name(f"{copy.name}.unfinished")
    unfinished.unlink(missing_ok=True)
    os.close(os.open(unfinished, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))
    source = engine.raw_connection()
    try:
        assert isinstance(source.driver_connection, sqlite3.Connection)
        with closing(sqlite3.connect(unfinished)) as target:
            source.driver_connection.backup(target)
    finally:
        source.close()
    _sync(unfinished)
    unfinished.replace(copy)
    _sync(path.parent)
    return copy


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def explain_failure(path: Path, error: Exception) -> SeraiError:
    """Return what an exception from the database or its file means for the caller."""
    if isinstance(error, SeraiError):
        return error
    cause = error.orig if isinstance(error, sa.exc.DBAPIError) else error
    explained = _explain(path, cause)
    explained.__cause__ = error
    return explained


def _explain(path: Path, cause: BaseException | None) -> SeraiError:
    """Sort by SQLite's primary result code (https://www.sqlite.org/rescode.html)."""
    code = getattr(cause, "sqlite_errorcode", sqlite3.SQLITE_OK) & 0xFF
    if _is_full(path, code, cause):
        return HostFailure(
            Code.DISK_FULL,
            f"no space is left for the database {path}; the change was not stored",
            hint="Free some space, then try again.",
        )
    if code in HINTS:
        return HostFailure(
            Code.DATABASE_FAILED,
            f"the database {path} failed: {cause}",
            hint=HINTS[code].format(path=path),
        )
    if isinstance(cause, OSError | sqlite3.OperationalError):
        return HostFailure(Code.DATABASE_FAILED, f"the database {path} failed: {cause}")
    return Bug(Code.BUG, f"the database refused a change: {type(cause).__name__}: {cause}")


def _is_full(path: Path, code: int, cause: BaseException | None) -> bool:
    """Tell whether the disk is full; SQLite reports some of it as failed input and output."""
    if code == sqlite3.SQLITE_FULL or getattr(cause, "errno", 0) in (errno.ENOSPC, errno.EDQUOT):
        return True
    if code not in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN):
        return False
    try:
        state = os.statvfs(path.parent)
    except OSError:
        return False
    return state.f_bavail * state.f_frsize < FULL_BELOW or (
        state.f_files > 0 and not state.f_favail
    )
