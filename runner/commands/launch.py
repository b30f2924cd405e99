"""`runner launch`: prepare, ask, then look on as a viewer that may leave at any time."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console

from runner.commands.check import plan_document, planned, print_plan
from runner.errors import EXIT_OK, EXIT_USAGE, ArmatureError, UnmetHosts, UsageError
from runner.home import Home, find_home
from runner.launching import Options, Prepared, commit, ensure_controller, prepare, refuse_unfair, wait_for_answer
from runner.lock import is_held
from runner.places import refuse_occupied
from runner.plan import Intent
from runner.screen import printable
from runner.store import requests
from runner.store.database import reading
from runner.store.history import newest_event, report_outcome
from runner.view import all_ended, chosen_status, exit_code, leave_or_stop, say, watch

if TYPE_CHECKING:
    from runner.hiring import Hire

REPORT_WITHIN_S = 300.0
GIVEN_BACK_WITHIN_S = 300.0
CONTROLLER_AGAIN_S = 5.0


def launch(
    paths: Sequence[Path],
    options: Options,
    home_path: Path | None,
    *,
    dry_run: bool,
    detach: bool,
    as_json: bool,
    yes: bool,
) -> int:
    """Launch the arms and return the exit code: that of the runs, or 0 once accepted with `detach`."""
    home = find_home(home_path)
    if dry_run:
        _show_plan(planned(home, paths, options), as_json)
        return EXIT_OK
    prepared = _prepared(home, paths, options, may_ask=not as_json)
    refuse_unfair(prepared)
    was_asked = prepared.hire is not None and _confirmed(prepared, prepared.hire, yes=yes, as_json=as_json)
    answer = wait_for_answer(home, commit(prepared))
    if not as_json:
        if not was_asked:
            print_plan(prepared, brief=True)
        say(answer.message)
    if not answer.accepted:
        return EXIT_USAGE
    chosen = [run.folder for run in prepared.plan.runs]
    if detach:
        if as_json:
            print(json.dumps({"accepted": True, "message": answer.message, **plan_document(prepared)}))
        else:
            say("running without a viewer: `runner status --watch` shows it")
        return EXIT_OK
    return _look_on(home, prepared, chosen, as_json)


def _prepared(home: Home, paths: Sequence[Path], options: Options, *, may_ask: bool) -> Prepared:
    """The launch, after a person at the terminal has said yes to the keys of hosts that are met for the first time."""
    try:
        return prepare(home, paths, options)
    except UnmetHosts as unmet:
        if not (may_ask and sys.stdin.isatty()):
            raise
        for place, fingerprint in unmet.hosts:
            say(f"{printable(place)} is not known yet; it shows the key {printable(fingerprint)}")
            if not typer.confirm("Is that its key?", default=False):
                raise
        known = frozenset(unmet.hosts)
        return prepare(home, paths, replace(options, accepts=lambda *shown: shown in known))


def _confirmed(prepared: Prepared, hire: Hire, *, yes: bool, as_json: bool) -> bool:
    """Whether a person was shown the plan and said yes; nothing is rented without a limit, and without a yes. Raises
    UsageError and BudgetError."""
    from runner.hiring import refuse_unpaid

    if not hire.machines:
        return False
    refuse_unpaid(hire)
    if yes:
        return False
    if as_json or not sys.stdin.isatty():
        raise UsageError(
            f"this rents machines for at most {hire.ceiling_usd:.2f} USD as planned, with other offers or more hours "
            f"for up to {hire.max_usd:.2f} USD (max_usd); to agree without a terminal: --yes (nothing was rented)"
        )
    print_plan(prepared, brief=True)
    sys.stdout.flush()
    if typer.prompt("Type rent to rent it", default="", show_default=False).strip().lower() != "rent":
        raise UsageError("nothing was rented")
    return True


def _show_plan(prepared: Prepared, as_json: bool) -> None:
    """The plan, and why the launch itself would be refused; a yes is asked for by the launch only."""
    refused = _why_refused(prepared)
    if as_json:
        print(json.dumps({**plan_document(prepared), "refused": refused}))
        return
    print_plan(prepared)
    if refused is not None:
        print(printable(f"this launch would be refused: {refused}"))


def _why_refused(prepared: Prepared) -> str | None:
    try:
        refuse_unfair(prepared)
        if prepared.hire is not None:
            from runner.hiring import refuse_unpaid

            refuse_unpaid(prepared.hire)
        if prepared.plan.to_run:
            refuse_occupied(prepared.slots, prepared.left_out)
    except ArmatureError as error:
        return str(error)
    return None


def _look_on(home: Home, prepared: Prepared, chosen: Sequence[str], as_json: bool) -> int:
    console = Console(highlight=False, stderr=as_json, quiet=as_json)
    with reading(home) as connection:
        since = newest_event(connection)
    last_start, began_s = time.monotonic(), time.time()

    def keep_controller() -> None:
        nonlocal last_start
        patient = time.monotonic() - last_start < CONTROLLER_AGAIN_S
        if not patient and not is_held(home.lock) and not all_ended(chosen_status(home, wanted=frozenset(chosen))):
            last_start = time.monotonic()
            ensure_controller(home)

    try:
        document = watch(home, console, runs=chosen, each_round=keep_controller)
        fresh = any(run.intent is not Intent.NOTHING for run in prepared.plan.runs)
        _await_reports(home, prepared, since if fresh else 0)
        _await_machines(home, prepared, began_s)
    except KeyboardInterrupt:
        return leave_or_stop(console, lambda: _stop(home, chosen))
    if as_json:
        print(json.dumps(document, allow_nan=False))
    return max(exit_code(document), EXIT_OK)


def _stop(home: Home, chosen: Sequence[str]) -> None:
    requests.ask(home, "stop", {"runs": list(chosen), "reason": "stopped by a person"})
    ensure_controller(home)


def _await_reports(home: Home, prepared: Prepared, since: int) -> None:
    """The controller's child writes a report once a study has ended; say where it is, or that it was not written."""
    deadline = time.monotonic() + REPORT_WITHIN_S
    for study in dict.fromkeys(arm.study for arm in prepared.arms):
        while True:
            with reading(home) as connection:
                outcome = report_outcome(connection, study, since)
            if outcome is not None:
                say(f"report of {study}: {outcome}")
                break
            if time.monotonic() > deadline or not _study_ended(home, study):
                say(f"the report of {study} comes when all of its runs have ended: runner report {study}")
                break
            time.sleep(0.2)


def _await_machines(home: Home, prepared: Prepared, since_s: float) -> None:
    """Say of each machine that was rented for a study that has ended that it is given back, or is still to be; of none
    that was given back before `since_s` (seconds since the epoch)."""
    deadline = time.monotonic() + GIVEN_BACK_WITHIN_S
    for study in dict.fromkeys(arm.study for arm in prepared.arms):
        waits = False
        while _study_ended(home, study):
            machines = [one for one in _machines(home, study) if (one["released"] or math.inf) >= since_s]
            held = [one for one in machines if one["state"] != "released"]
            if not held:
                for one in machines:
                    say(f"machine {one['machine'] or one['label']} is given back: {one['usd']:.2f} USD")
                break
            names = ", ".join(str(one["machine"] or one["label"]) for one in held)
            if not waits:
                say(f"{names}: what the runs made is brought home, then it is given back")
                waits = True
            if time.monotonic() > deadline:
                say(f"{names}: not given back yet; the controller goes on until that is proven: runner status")
                break
            time.sleep(0.2)


def _machines(home: Home, study: str) -> list[dict[str, Any]]:
    return [one for entry in chosen_status(home, study)["studies"] for one in entry.get("machines", ())]


def _study_ended(home: Home, study: str) -> bool:
    return all_ended(chosen_status(home, study))
