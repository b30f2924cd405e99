"""The commands a person types while runs go on: status, logs, stop, resume."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from runner.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_USAGE, UsageError
from runner.home import find_home
from runner.live import print_status
from runner.naming import NamedRun, find_run, find_runs, find_study
from runner.records import ENDED, RunState
from runner.screen import printable
from runner.store.queries import read_named_runs, require_home
from runner.store.status import home_status

STARTS = ("last", "best")


def status(home_path: Path | None, study: str | None, *, watch: bool, as_json: bool) -> int:
    """Print the status document as a table, as lines, or as JSON."""
    home = find_home(home_path)
    require_home(home)
    console = Console(highlight=False)
    if study is not None:
        study = find_study(study, read_named_runs(home))
    if watch and not as_json:
        from runner.view import watch as watch_runs

        try:
            watch_runs(home, console, study=study)
        except KeyboardInterrupt:
            return EXIT_INTERRUPTED
        return EXIT_OK
    document = home_status(home, study)
    if as_json:
        print(json.dumps(document, allow_nan=False))
    else:
        print_status(console, document)
    return EXIT_OK


def logs(home_path: Path | None, name: str, *, follow: bool, attempt: int | None = None) -> int:
    """Print the log files of a run's latest attempt, or of the one named."""
    from runner.logs import log_lines

    home = find_home(home_path)
    require_home(home)
    run = find_run(name, read_named_runs(home))
    try:
        for text in log_lines(home, run.run, follow, attempt):
            sys.stdout.write(text)
            sys.stdout.flush()
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return EXIT_OK


def stop(home_path: Path | None, name: str | None, *, everything: bool, wait: bool) -> int:
    """Ask for a stop of one run, of a study, or of everything."""
    if (name is None) != everything:
        raise UsageError("name one run or study, or say --all; next: runner status")
    from runner.launching import wait_for_answer
    from runner.store import requests
    from runner.view import say, watch

    home = find_home(home_path)
    require_home(home)
    known = read_named_runs(home)
    chosen = tuple(known) if name is None else find_runs(name, known)
    live = [run.run for run in chosen if run.state not in ENDED or run.has_autopsy]
    if not live:
        print("nothing to stop: every run has ended already")
        return EXIT_OK
    answer = wait_for_answer(home, requests.ask(home, "stop", {"runs": live, "reason": "stopped by a person"}))
    print(printable(answer.message))
    if wait and answer.accepted:
        try:
            watch(home, Console(highlight=False), runs=live)
        except KeyboardInterrupt:
            say("no longer waiting; the stop goes on")
            return EXIT_INTERRUPTED
    return EXIT_OK if answer.accepted else EXIT_USAGE


def resume(home_path: Path | None, name: str | None, start: str, *, yes: bool = False) -> int:
    """Take up again what is running; with a name, queue a new attempt of that run."""
    if start not in STARTS:
        raise UsageError(f"--from {start}: allowed: {', '.join(STARTS)}")
    from runner.launching import ready_database, wait_for_answer
    from runner.store import requests

    home = find_home(home_path)
    require_home(home)
    ready_database(home)
    payload = {}
    if name is not None:
        from runner.commands.rent_again import confirm_rent

        run = _resumable(name, read_named_runs(home))
        confirm_rent(home, run, yes=yes)
        payload = {"run": run.run, "from": start}
    answer = wait_for_answer(home, requests.ask(home, "resume", payload))
    print(printable(answer.message))
    return EXIT_OK if answer.accepted else EXIT_USAGE


def _resumable(name: str, known: Sequence[NamedRun]) -> NamedRun:
    """The run of that name. Raises UsageError, which says what does for a whole study what a person may have meant."""
    try:
        return find_run(name, known)
    except UsageError:
        of_study = [run for run in known if run.study.lower() == name.lower() and not run.superseded]
        if not of_study:
            raise
    ended = ", ".join(run.path for run in of_study if run.state in ENDED and run.state != RunState.FINISHED)
    raise UsageError(
        f"{name!r} is a study, and resume takes one run of it ({ended or 'none of them waits for that'}); "
        "`runner launch` of its arm files queues again what was cancelled, failed, lost or preempted; "
        f"next: runner status {name}"
    )
