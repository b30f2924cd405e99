"""`runner autopsy RUN`: has a run's best checkpoint compared with its last, waits, and prints what was found."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import select

from runner.autopsies import AUTOPSY_ENDED, refuse_autopsy
from runner.commands.rent_again import confirm_rent
from runner.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_RUN_FAILED, EXIT_USAGE, InfrastructureError
from runner.home import Home, find_home
from runner.launching import START_AGAIN_S, ensure_controller, ready_database, wait_for_answer
from runner.naming import NamedRun, find_run
from runner.records import RunState
from runner.screen import printable
from runner.spec.models import TRAINER
from runner.store import requests, tables
from runner.store.database import reading
from runner.store.history import newest_event
from runner.store.queries import read_named_runs, require_home
from runner.view import say

POLL_S = 0.2
FOUND = "autopsy/autopsy.json"
"""Where the trainer writes what it found, below the run's folder."""


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What became of an autopsy."""

    ok: bool
    reason: str


def autopsy(home_path: Path | None, name: str, *, detach: bool, as_json: bool, yes: bool = False) -> int:
    """Ask for an autopsy of an ended run and return the exit code: 0 made (with `detach`: accepted), 1 not made, 2
    refused. One that waits or is under way already is waited for."""
    home = find_home(home_path)
    require_home(home)
    ready_database(home)
    run = find_run(name, read_named_runs(home))
    if not run.has_autopsy:
        refuse_autopsy(run.id, RunState(run.state), is_trainer=_is_trainer(home, run))
        confirm_rent(home, run, yes=yes)
    with reading(home) as connection:
        since = newest_event(connection)
    answer = wait_for_answer(home, requests.ask(home, "autopsy", {"run": run.run}))
    say(answer.message)
    if not answer.accepted or detach:
        return EXIT_OK if answer.accepted else EXIT_USAGE
    try:
        outcome = _wait(home, run, since)
    except KeyboardInterrupt:
        say(f"no longer waiting; the autopsy goes on, and `runner stop {run.id}` ends it")
        return EXIT_INTERRUPTED
    if not outcome.ok:
        say(f"{run.id}: no autopsy: {outcome.reason}; what was said: runner logs {run.id}")
        return EXIT_RUN_FAILED
    _print(home.root / run.run / FOUND, as_json=as_json)
    return EXIT_OK


def _is_trainer(home: Home, run: NamedRun) -> bool:
    with reading(home) as connection:
        query = select(tables.runs.c.arm_document).where(tables.runs.c.run == run.run)
        document: dict[str, Any] = connection.execute(query).scalar_one()
    return bool(document["kind"] == TRAINER)


def _wait(home: Home, run: NamedRun, since: int) -> _Outcome:
    """Wait until it is over; a controller that died meanwhile is started again, and goes on with it."""
    looked_s = time.monotonic()
    while (found := _outcome(home, run, since)) is None:
        time.sleep(POLL_S)
        if time.monotonic() - looked_s > START_AGAIN_S:
            ensure_controller(home)
            looked_s = time.monotonic()
    return found


def _outcome(home: Home, run: NamedRun, since: int) -> _Outcome | None:
    events = tables.events
    with reading(home) as connection:
        row = connection.execute(
            select(events.c.reason, events.c.data)
            .where(events.c.id > since, events.c.run == run.run, events.c.what == AUTOPSY_ENDED)
            .order_by(events.c.id)
        ).first()
    return None if row is None else _Outcome(bool(row.data["ok"]), row.reason)


def _print(path: Path, *, as_json: bool) -> None:
    try:
        document = json.loads(path.read_bytes())
        conclusion = document["conclusion"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InfrastructureError(f"{path}: what the autopsy found cannot be read: {error}") from error
    print(json.dumps(document, allow_nan=False) if as_json else printable(str(conclusion), keep_newlines=True))
