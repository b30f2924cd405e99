"""What commands read beside the status document, with the driver alone: a command that only looks must start fast."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

from runner.errors import HomeError
from runner.home import Home
from runner.naming import NamedRun
from runner.store.opening import check_revision, driver_of
from runner.store.schema import reading_rows

if TYPE_CHECKING:
    from sqlalchemy import Connection


def named_runs(connection: Connection) -> tuple[NamedRun, ...]:
    """Every run with its names, newest launch last."""
    return _named_runs(driver_of(connection))


def read_named_runs(home: Home) -> tuple[NamedRun, ...]:
    """Every run of a home; none when it has no database yet."""
    if not home.root.is_dir() or check_revision(home.database) is None:
        return ()
    with reading_rows(home) as driver:
        return _named_runs(driver)


def latest_attempt(connection: Connection, run: str) -> int | None:
    """Number of the latest attempt of a run, None before the first."""
    (found,) = driver_of(connection).execute("SELECT max(attempt) FROM attempts WHERE run = ?", (run,)).fetchone()
    return None if found is None else int(found)


def require_home(home: Home) -> None:
    """Raises HomeError when there is no home to read."""
    if not home.root.is_dir():
        raise HomeError(f"{home.root}: there is no home here; start with `runner launch`, or name another with --home")


def _named_runs(driver: sqlite3.Connection) -> tuple[NamedRun, ...]:
    rows = driver.execute(
        "SELECT run, id, study, arm, seed, superseded_by IS NOT NULL, state, "
        "autopsy_attempt IS NOT NULL FROM runs "
        "ORDER BY launch, seed, arm_order, generation"
    )
    return tuple(
        NamedRun(run, identity, study, arm, seed, bool(superseded), state, bool(has_autopsy))
        for run, identity, study, arm, seed, superseded, state, has_autopsy in rows
    )
