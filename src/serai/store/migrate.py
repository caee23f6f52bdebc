"""The door to Alembic. Imported by name, only when a database is older than the program.

To write the next step: change ``schema.py``, then ``python -m serai.store.migrate "what changes"``,
and read what it wrote.
"""

import sys
import tempfile
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from serai.store.schema import CURRENT


def upgrade(engine: sa.Engine, migrations: Path, version: str) -> None:
    """Take all steps up to ``version`` in one transaction."""
    with engine.begin() as connection:
        command.upgrade(_config(connection, migrations), version)


def _config(connection: sa.Connection, migrations: Path) -> Config:
    config = Config()
    config.set_main_option("script_location", str(migrations).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def write_step(message: str) -> None:
    """Write the file of a next step by comparing ``schema.py`` with what the steps so far make."""
    with tempfile.TemporaryDirectory() as folder:
        engine = sa.create_engine(sa.URL.create("sqlite", database=f"{folder}/empty.db"))
        upgrade(engine, CURRENT.migrations, "head")
        number = f"{int(CURRENT.version) + 1:04}"
        with engine.begin() as connection:
            config = _config(connection, CURRENT.migrations)
            config.set_main_option("file_template", "%%(rev)s_%%(slug)s")
            command.revision(config, message, rev_id=number, autogenerate=True)


if __name__ == "__main__":
    write_step(sys.argv[1])
