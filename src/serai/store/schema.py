"""The tables, for SQLite and PostgreSQL alike.

Each thing is kept whole, as the JSON of its struct, in ``body``; beside it stand only the columns
that something is looked up by, ordered by or kept unique by. They are written from the struct in
the same statement and never read back, so they can't disagree with it. A new field of a struct
therefore needs no migration as long as it has a default.

``VERSION`` is the newest revision in ``migrations/versions``; a test compares both, and the tables
here with what the migrations make.
"""

import sqlalchemy as sa

VERSION = "0003"

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

GUESTS = sa.Table(
    "guests",
    METADATA,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("name", sa.String(64), nullable=False, unique=True),
    sa.Column("number", sa.Integer, nullable=False, unique=True),
    sa.Column("body", sa.Text, nullable=False),
)

IMAGES = sa.Table(
    "images",
    METADATA,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("body", sa.Text, nullable=False),
)

SNAPSHOTS = sa.Table(
    "snapshots",
    METADATA,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("guest_id", sa.String(64), nullable=False),
    sa.Column("name", sa.String(64), nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    sa.UniqueConstraint("guest_id", "name"),
)
"""A name is unique among the snapshots of one guest."""

SCHEDULES = sa.Table(
    "schedules",
    METADATA,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("guest_id", sa.String(64), nullable=False),
    sa.Column("name", sa.String(64), nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    sa.UniqueConstraint("guest_id", "name"),
)
"""A name is unique among the schedules of one guest."""

LAYERS = sa.Table(
    "layers",
    METADATA,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("body", sa.Text, nullable=False),
)

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
