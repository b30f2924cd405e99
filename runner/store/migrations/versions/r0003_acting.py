"""What a controller needs that acts on what the judge says: probes asked for, stops for what is wrong with a process,
autopsies wanted, runs that begin from a checkpoint of another one."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add columns; nothing that is stored changes its meaning."""
    op.add_column("runs", sa.Column("initial_checkpoint", sa.JSON(), nullable=True))
    op.add_column("runs", sa.Column("autopsy_attempt", sa.Integer(), nullable=True))
    op.add_column("attempts", sa.Column("probe_every_steps", sa.Integer(), nullable=True))
    op.add_column("attempts", sa.Column("suspected", sa.JSON(), nullable=True))
