"""Run by Alembic for each migration; ``serai.store.migrate`` passes the connection.

Everything happens in the caller's transaction, which is one for SQLite too: our connections begin
it explicitly, so tables change together or not at all.
"""

from alembic import context

from serai.store.schema import METADATA

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    transactional_ddl=True,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
