"""`runner extend RUN --steps N`: asks the trainer that is frozen with the run, then the controller."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import Row, select

from runner.commands.rent_again import confirm_rent
from runner.errors import EXIT_OK, EXIT_USAGE, InfrastructureError, SpecError, UsageError, Where
from runner.extending import EXTENDED, Way, extension, with_steps
from runner.home import Home, find_home
from runner.launching import ready_database, wait_for_answer
from runner.lock import is_held
from runner.naming import NamedRun, find_run
from runner.records import ENDED, RunState
from runner.screen import printable
from runner.spec.command import takes_steps
from runner.spec.models import ResolvedArm, TrainerCheck, from_json
from runner.store import requests, tables
from runner.store.database import reading
from runner.store.queries import read_named_runs, require_home
from runner.view import say

CHECK_TIMEOUT_S = 120.0
_SIZES = tuple(name for name in TrainerCheck.__dataclass_fields__ if name != "steps_total")


def extend(home_path: Path | None, name: str, steps: int, *, yes: bool = False) -> int:
    """Give a run a longer budget and return the exit code. A live training is stopped with a checkpoint first; a script
    must have ended, and must take its budget as `{steps}`."""
    home = find_home(home_path)
    require_home(home)
    ready_database(home)
    run = find_run(name, read_named_runs(home))
    if run.superseded:
        raise UsageError(f"{run.id} is superseded by a newer generation of {run.path}; extend that one: {run.path}")
    confirm_rent(home, run, yes=yes)
    row = _stored(home, run)
    arm, state = from_json(row.arm_document), RunState(row.state)
    is_trainer = arm.command is None
    wanted = extension(
        run.id, state, is_trainer=is_trainer, before=row.steps_total, wanted=steps, stop_wanted=row.stop_wanted,
        takes_steps=is_trainer or takes_steps(arm.command or ()),
    )  # fmt: skip
    config = with_steps(row.arm_document, steps)["trainer"]
    check = _ask_frozen_trainer(arm, config, home.root / row.snapshot["root"]) if is_trainer else None
    if wanted.way is Way.STOP_FIRST:
        say(f"{run.id} is {state}: it saves a checkpoint first")
    answer = _await(home, run, requests.ask(home, "extend", {"run": run.run, "steps": steps, "check": check}))
    print(printable(answer.message))
    return EXIT_OK if answer.accepted else EXIT_USAGE


def _stored(home: Home, run: NamedRun) -> Row[Any]:
    with reading(home) as connection:
        return connection.execute(select(tables.runs).where(tables.runs.c.run == run.run)).one()


def _await(home: Home, run: NamedRun, request: int) -> requests.Answer:
    """The controller's answer. While a live training saves and ends there is none, for as long as that takes."""
    while True:
        try:
            return wait_for_answer(home, request)
        except InfrastructureError:
            if not is_held(home.lock) or _has_ended(home, run):
                raise


def _has_ended(home: Home, run: NamedRun) -> bool:
    with reading(home) as connection:
        state = connection.execute(select(tables.runs.c.state).where(tables.runs.c.run == run.run)).scalar_one()
    return RunState(state) in ENDED


def _ask_frozen_trainer(arm: ResolvedArm, config: Mapping[str, Any], root: Path) -> dict[str, Any]:
    """What the code of this run says of the longer configuration: that code will run it, not the one installed now.

    Raises SpecError for what it refuses, UsageError when it cannot go on with a checkpoint of a shorter budget.
    """
    result = _check(arm, config, root)
    if not result["ok"]:
        first = result["errors"][0]
        place = arm.where(".".join(part for part in ("trainer", first.get("path") or "") if part))
        where = Where(place.file, place.line, place.key)
        raise SpecError(where, f"with --steps {config['steps']}: {first['message']}", allowed=first["allowed"] or ())
    if EXTENDED not in result.get("abilities", ()):
        raise UsageError(
            "the trainer that is frozen with this run cannot go on with a longer budget; "
            f"a new generation can: runner launch {arm.file} --set trainer.steps={config['steps']}"
        )
    return {"steps_total": config["steps"], **{name: result.get(name) for name in _SIZES}}


def _check(arm: ResolvedArm, config: Mapping[str, Any], root: Path) -> Mapping[str, Any]:
    environment = {**os.environ, "PYTHONPATH": str(root), "PYTHONSAFEPATH": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    question = json.dumps([{"id": arm.name, "config": config}])
    try:
        done = subprocess.run(
            [arm.python, "-m", "trainer", "check", "--json"], input=question, capture_output=True, text=True,
            cwd=root, env=environment, timeout=CHECK_TIMEOUT_S, check=False,
        )  # fmt: skip
        found: Mapping[str, Any] = json.loads(done.stdout)[0]
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InfrastructureError(
            f"{root}: the frozen trainer cannot be asked: {error} (nothing was changed)"
        ) from error
    except (ValueError, LookupError) as error:
        said = (done.stderr.strip() or "nothing").splitlines()[-1]
        raise InfrastructureError(
            f"{root}: the frozen trainer gave no usable answer, it said: {said:.300} (nothing was changed)"
        ) from error
    return found
