"""What a controller needs that is left alone: waves, priorities, failure classes, quarantine, notifications."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from runner.store.best import find_best

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add columns and tables; nothing that is stored changes its meaning. What is already there gets its best value."""
    op.add_column("runs", sa.Column("priority", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("runs", sa.Column("wave", sa.Integer(), nullable=True))
    op.add_column("runs", sa.Column("retries_used", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("runs", sa.Column("best_step", sa.Integer(), nullable=True))
    op.add_column("runs", sa.Column("best_value", sa.Float(), nullable=True))
    op.add_column("attempts", sa.Column("failure", sa.String(), nullable=True))
    op.add_column("attempts", sa.Column("before", sa.JSON(), nullable=True))
    op.add_column("files", sa.Column("head", sa.String(), nullable=False, server_default=""))
    op.create_index("events_by_what", "events", ["what"], unique=False)
    op.create_table(
        "quarantines",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("lease", sa.Integer(), nullable=False),
        sa.Column("slot", sa.String(), nullable=False),
        sa.Column("gpu_uuids", sa.JSON(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("since", sa.Float(), nullable=False),
        sa.Column("lifted", sa.Float(), nullable=True),
        sa.ForeignKeyConstraint(["lease"], ["leases.id"]),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "notifications",
        sa.Column("event", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("tries", sa.Integer(), nullable=False),
        sa.Column("said", sa.Text(), nullable=False, server_default=""),
        sa.Column("changed", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["event"], ["events.id"]),
        sa.PrimaryKeyConstraint("event"),
    )
    op.create_index("notifications_by_state", "notifications", ["state"], unique=False)
    op.create_index("runs_by_study", "runs", ["study", "state", "changed"], unique=False)
    connection = op.get_bind()
    for run in connection.execute(sa.text("SELECT run FROM runs")).scalars().all():
        find_best(connection, run)
