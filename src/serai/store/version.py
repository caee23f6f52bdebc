"""Which version a database is at, and bringing an older one up to date.

An empty database gets today's tables at once. One that is current costs two short queries: Alembic
(12 MB and 0.3 s) is imported only when there is something to migrate. One that a newer program has
changed is refused, because this program would not know what it destroys.
"""

import re
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import sqlalchemy as sa

from serai.errors import Code, HostFailure, SeraiError
from serai.store.schema import METADATA, VERSIONS, Schema

REVISION = re.compile(r"[0-9]{4}", re.ASCII)

Copy = Callable[[str], Path]
"""Keep a copy of the database at this version beside it; return where."""


def bring_up_to_date(engine: sa.Engine, schema: Schema, copy: Copy) -> None:
    """Create the tables, or migrate them, until the database is at ``schema.version``.

    Raises HostFailure (``database-failed``) for a database that is newer or none of ours, and when
    a step fails; then nothing was changed.
    """
    with engine.begin() as connection:
        tables = set(sa.inspect(connection).get_table_names())
        if not tables:
            METADATA.create_all(connection)
            VERSIONS.create(connection)
            connection.execute(VERSIONS.insert(), {"version_num": schema.version})
            return
        found = _read_version(connection, tables)
    if found != schema.version:
        _migrate(engine, schema, found, copy)


def _read_version(connection: sa.Connection, tables: set[str]) -> str:
    found: str | None = None
    if VERSIONS.name in tables:
        found = connection.scalar(sa.select(VERSIONS.c.version_num))
    if found is None or not REVISION.fullmatch(found):
        raise HostFailure(
            Code.DATABASE_FAILED,
            "the database was not made by serai",
            hint="Move it away to begin with a new one.",
        )
    return found


def _migrate(engine: sa.Engine, schema: Schema, found: str, copy: Copy) -> None:
    if found > schema.version:
        raise HostFailure(
            Code.DATABASE_FAILED,
            f"the database is at version {found}; this program knows {schema.version} at most",
            hint="Use the newer serai that changed it, or restore the copy that it kept beside it.",
        )
    kept = copy(found)
    migrate = import_module("serai.store.migrate")  # late, for what it costs: see above
    try:
        migrate.upgrade(engine, schema.migrations, schema.version)
    except SeraiError:
        raise
    except Exception as error:
        raise HostFailure(
            Code.DATABASE_FAILED,
            f"the database could not be brought from version {found} to {schema.version}: {error}",
            hint=f"Nothing was changed. A copy is in {kept}.",
        ) from error
