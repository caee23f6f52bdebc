"""The tables, for SQLite and PostgreSQL alike.

Each thing is kept whole, as the JSON of its struct, in ``body``; beside it stand only the columns
that something is looked up by, ordered by or kept unique by. They are written from the struct in
the same statement and never read back, so they can't disagree with it. A new field of a struct
therefore needs no migration as long as it has a default.

``VERSION`` is the newest revision in ``migrations/versions``; a test compares both, and the tables
here with what the migrations make.
"""

from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.schema import SchemaItem

VERSION = "0005"


@dataclass(frozen=True, slots=True, kw_only=True)
class Schema:
    """A version of the database, and the folder of the steps that lead to it."""

    version: str
    migrations: Path


CURRENT = Schema(version=VERSION, migrations=Path(__file__).parent / "migrations")
"""What this program works with."""

METADATA = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "pk": "pk_%(table_name)s",
    }
)

_SEQ = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
"""SQLite counts up by itself only what is called INTEGER."""


def _kept(table: str, *more: SchemaItem, key: str = "id") -> sa.Table:
    """Return a table of things that are kept whole, each found by its ``key``."""
    first = sa.Column(key, sa.String(64), primary_key=True)
    return sa.Table(table, METADATA, first, *more, sa.Column("body", sa.Text, nullable=False))


def _name() -> sa.Column[str]:
    return sa.Column("name", sa.String(64), nullable=False, unique=True)


def _name_in_guest() -> tuple[SchemaItem, ...]:
    """Return the columns of what has a name that is unique among those of one guest."""
    name = sa.Column("name", sa.String(64), nullable=False)
    return _guest_id(), name, sa.UniqueConstraint("guest_id", "name")


def _guest_id() -> sa.Column[str]:
    return sa.Column("guest_id", sa.String(64), nullable=False)


GUESTS = _kept("guests", _name(), sa.Column("number", sa.Integer, nullable=False, unique=True))

IMAGES = _kept("images", key="name")

SNAPSHOTS = _kept("snapshots", *_name_in_guest())

SCHEDULES = _kept("schedules", *_name_in_guest())

LAYERS = _kept("layers")

VOLUMES = _kept("volumes", _name())

POOLS = _kept("pools", key="name")

NETWORKS = _kept("networks", _name())

PORTS = sa.Table(
    "ports",
    METADATA,
    sa.Column("id", sa.String(64), primary_key=True),
    _guest_id(),
    sa.Column("network_id", sa.String(64), nullable=False),
    sa.Column("mac", sa.String(32), nullable=False),
    sa.Column("tap", sa.String(32), nullable=False, unique=True),
    sa.Column("address", sa.String(64), nullable=True),
    sa.Column("address6", sa.String(64), nullable=True),
    sa.Index(None, "guest_id"),
    sa.UniqueConstraint("network_id", "address", name="uq_ports_address"),
    sa.UniqueConstraint("network_id", "address6", name="uq_ports_address6"),
    sa.UniqueConstraint("network_id", "mac", name="uq_ports_mac"),
)
"""Written together with their guests, which have them whole: for what must be unique, and no more.

A port without an address of a kind has NULL there, and NULLs are never the same.
"""

USAGE = _kept("usage", _guest_id(), sa.Index(None, "guest_id"))
"""What has passed the port ``id``."""

GROUPS = _kept("groups", _name())

FORWARDS = _kept(
    "forwards", _guest_id(), sa.Column("outside", sa.String(128), nullable=False, unique=True)
)
"""``outside`` is protocol, address and port of the host, as one text."""

JOBS = sa.Table(
    "jobs",
    METADATA,
    sa.Column("seq", _SEQ, primary_key=True, autoincrement=True),
    sa.Column("id", sa.String(64), nullable=False, unique=True),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("key", sa.String(256), nullable=True, unique=True),
    sa.Column("body", sa.Text, nullable=False),
    sa.Index(None, "state", "seq"),
    sqlite_autoincrement=True,
)
"""``seq`` is the order in which jobs were taken on; a job without an idempotency key has NULL."""

EVENTS = sa.Table(
    "events",
    METADATA,
    sa.Column("seq", _SEQ, primary_key=True, autoincrement=True),
    sa.Column("body", sa.Text, nullable=False),
    sqlite_autoincrement=True,
)
"""``seq`` is given by the database and never used twice, even when old events are deleted."""

VERSIONS = sa.Table(
    "alembic_version",
    sa.MetaData(),
    sa.Column("version_num", sa.String(32), nullable=False),
    sa.PrimaryKeyConstraint("version_num", name="alembic_version_pkc"),
)
"""Alembic's own table: one row with the revision that the database is at."""
