"""Networks, ports, security groups, forwards."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Take this step. There is no way back but the copy that was kept."""
    _named("networks")
    _named("groups")
    op.create_table(
        "ports",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("guest_id", sa.String(64), nullable=False),
        sa.Column("network_id", sa.String(64), nullable=False),
        sa.Column("mac", sa.String(32), nullable=False),
        sa.Column("tap", sa.String(32), nullable=False),
        sa.Column("address", sa.String(64), nullable=True),
        sa.Column("address6", sa.String(64), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_ports"),
        sa.UniqueConstraint("network_id", "address", name="uq_ports_address"),
        sa.UniqueConstraint("network_id", "address6", name="uq_ports_address6"),
        sa.UniqueConstraint("network_id", "mac", name="uq_ports_mac"),
        sa.UniqueConstraint("tap", name="uq_ports_tap"),
    )
    op.create_index("ix_ports_guest_id", "ports", ["guest_id"])
    op.create_table(
        "usage",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("guest_id", sa.String(64), nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_usage"),
    )
    op.create_index("ix_usage_guest_id", "usage", ["guest_id"])
    op.create_table(
        "forwards",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("guest_id", sa.String(64), nullable=False),
        sa.Column("outside", sa.String(128), nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_forwards"),
        sa.UniqueConstraint("outside", name="uq_forwards_outside"),
    )


def _named(table: str) -> None:
    op.create_table(
        table,
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name=f"pk_{table}"),
        sa.UniqueConstraint("name", name=f"uq_{table}_name"),
    )
