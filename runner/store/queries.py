"""What commands read beside the status document."""

from __future__ import annotations

from sqlalchemy import Connection, select

from runner.errors import HomeError
from runner.home import Home
from runner.naming import NamedRun
from runner.store import tables
from runner.store.database import check_revision, reading


def named_runs(connection: Connection) -> tuple[NamedRun, ...]:
    """Every run with its names, newest launch last."""
    runs = tables.runs
    rows = connection.execute(select(runs).order_by(runs.c.launch, runs.c.seed, runs.c.arm_order, runs.c.generation))
    return tuple(
        NamedRun(row.run, row.id, row.study, row.arm, row.seed, row.superseded_by is not None, row.state)
        for row in rows
    )


def read_named_runs(home: Home) -> tuple[NamedRun, ...]:
    """Every run of a home; none when it has no database yet."""
    if not home.root.is_dir() or check_revision(home.database) is None:
        return ()
    with reading(home) as connection:
        return named_runs(connection)


def latest_attempt(connection: Connection, run: str) -> int | None:
    """Number of the latest attempt of a run, None before the first."""
    return connection.execute(
        select(tables.attempts.c.attempt).where(tables.attempts.c.run == run).order_by(tables.attempts.c.attempt.desc())
    ).scalar()


def require_home(home: Home) -> None:
    """Raises HomeError when there is no home to read."""
    if not home.root.is_dir():
        raise HomeError(f"{home.root}: there is no home here; start with `runner launch`, or name another with --home")
