"""What a controller needs whose runs are elsewhere: where each is to be placed, the machines that are reached over ssh,
and what is known of a machine that is paid for."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add columns and a table; nothing that is stored changes its meaning."""
    op.add_column("runs", sa.Column("provider", sa.String(), nullable=False, server_default="local"))
    op.add_column("runs", sa.Column("wanted", sa.JSON(), nullable=True))
    op.add_column("leases", sa.Column("document", sa.JSON(), nullable=True))
    op.add_column("leases", sa.Column("proof", sa.Text(), nullable=True))
    op.add_column("leases", sa.Column("charged_usd", sa.Float(), nullable=True))
    op.create_table(
        "hosts",
        sa.Column("name", sa.String(), primary_key=True),
        sa.Column("document", sa.JSON(), nullable=False),
        sa.Column("listed", sa.Boolean(), nullable=False),
    )
