"""Before a command makes a run go on that was on a rented machine: another one would be rented for it."""

from __future__ import annotations

import sys

import typer
from sqlalchemy import select

from provisioning import RENTED
from runner.errors import UsageError
from runner.home import Home
from runner.naming import NamedRun
from runner.renting.book import study_limits_usd
from runner.store import tables
from runner.store.database import reading


def confirm_rent(home: Home, run: NamedRun, *, yes: bool) -> None:
    """Asks at a terminal; raises UsageError without a yes. Nothing is asked for a run that costs nothing."""
    with reading(home) as connection:
        row = connection.execute(
            select(tables.runs.c.provider, tables.runs.c.wanted).where(tables.runs.c.run == run.run)
        ).one()
        limits = study_limits_usd(connection)
    if yes or row.provider not in RENTED:
        return
    limit = limits.get(run.study, (row.wanted or {}).get("max_usd"))  # as the controller counts it
    said = f"{run.id} goes on a machine that is rented for it; its study may cost {limit:g} USD in all"
    if not sys.stdin.isatty():
        raise UsageError(f"{said}; to agree without a terminal: --yes (nothing was rented)")
    if not typer.confirm(f"{said}. Rent one?", default=False):
        raise UsageError("nothing was rented")
