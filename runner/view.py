"""Looks on while runs go: a live table on a terminal, a line for each change elsewhere. Changes nothing."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.live import Live

from runner.errors import EXIT_BUDGET, EXIT_INTERRUPTED, EXIT_OK, EXIT_RUN_FAILED
from runner.home import Home
from runner.live import lines, render, unattended
from runner.records import ENDED
from runner.screen import printable
from runner.store.status import home_status

REFRESH_S = 0.5
LINES_REFRESH_S = 1.0
STEP_S = 0.1
SECOND_PRESS_S = 3.0
_ENDED_WORDS = frozenset(str(state) for state in ENDED)


def watch(
    home: Home,
    console: Console,
    *,
    study: str | None = None,
    runs: Sequence[str] | None = None,
    each_round: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Show the status until every chosen run has ended, and return the last document.

    `runs` narrows the view to some run folders, `study` to one study. Raises KeyboardInterrupt on Ctrl-C.
    """
    wanted = None if runs is None else frozenset(runs)
    with _interrupts() as asked:
        if not console.is_terminal:
            return _watch_lines(home, study, wanted, each_round, console.quiet, asked)
        with Live(console=console, auto_refresh=False, transient=False) as live:
            while True:
                each_round()
                document = chosen_status(home, study, wanted)
                live.update(render(document, console.width), refresh=True)
                if all_ended(document):
                    return document
                _wait(REFRESH_S, asked)


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Ctrl-C is remembered instead of raised: raised in the wrong place, a destructor say, it would be lost."""
    asked: list[int] = []
    previous = signal.signal(signal.SIGINT, lambda number, _frame: asked.append(number))
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, previous)


def _wait(seconds: float, asked: list[int]) -> None:
    """Wait in short steps; raises KeyboardInterrupt once Ctrl-C was pressed."""
    for _ in range(round(seconds / STEP_S)):
        if asked:
            raise KeyboardInterrupt
        time.sleep(STEP_S)


def _watch_lines(
    home: Home,
    study: str | None,
    wanted: frozenset[str] | None,
    each_round: Callable[[], None],
    quiet: bool,
    asked: list[int],
) -> dict[str, Any]:
    """A line whenever a run's state or health changes; none when `quiet`."""
    said: dict[str, tuple[str, str]] = {}
    warned = ""
    while True:
        each_round()
        document = chosen_status(home, study, wanted)
        runs = [run for entry in document["studies"] for run in entry["runs"]]
        for run, line in zip(runs, lines(document), strict=True):
            now = (run["state"], run["health"])
            if said.get(run["run_dir"]) != now:
                said[run["run_dir"]] = now
                if not quiet:
                    print(line, flush=True)
        warning = unattended(document)
        if warning and warning != warned and not quiet:
            print(warning, flush=True)
        warned = warning
        if all_ended(document):
            return document
        _wait(LINES_REFRESH_S, asked)


def all_ended(document: dict[str, Any]) -> bool:
    """Whether nothing in the document is waiting or running any more."""
    return all(run["state"].split("(")[0] in _ENDED_WORDS for entry in document["studies"] for run in entry["runs"])


def exit_code(document: dict[str, Any]) -> int:
    """The highest exit code over the runs: 4 where a budget ended one, 1 where one failed or was lost, else 0."""
    states = [run["state"] for entry in document["studies"] for run in entry["runs"]]
    if any(state.endswith("(budget)") for state in states):
        return EXIT_BUDGET
    ended = {state.split("(")[0] for state in states}
    return EXIT_RUN_FAILED if ended & {"failed", "lost", "preempted"} else EXIT_OK


def chosen_status(home: Home, study: str | None = None, wanted: frozenset[str] | None = None) -> dict[str, Any]:
    """The status document, narrowed to one study or to some run folders and what was rescued from them."""
    document = home_status(home, study)
    if wanted is not None:
        for entry in document["studies"]:
            entry["runs"] = _with_rescued(entry["runs"], wanted)
        document["studies"] = [entry for entry in document["studies"] if entry["runs"]]
    return document


def _with_rescued(runs: Sequence[dict[str, Any]], wanted: frozenset[str]) -> list[dict[str, Any]]:
    """The runs of a study that somebody wants to see; a rescued one goes with its parent, which stands before it."""
    chosen: list[dict[str, Any]] = []
    for run in runs:
        parents = {one["run"] for one in chosen}
        if run["run_dir"] in wanted or run["parent"] in parents:
            chosen.append(run)
    return chosen


def leave_or_stop(console: Console, stop: Callable[[], None], wait_s: float = SECOND_PRESS_S) -> int:
    """After Ctrl-C: leave the view, unless a second press within `wait_s` asks to stop the runs."""
    console.print(
        "\nstill running: `runner status --watch`; "
        f"stop with `runner stop --all` (or Ctrl-C again within {wait_s:.0f} s)",
        markup=False,
        highlight=False,
    )
    try:
        time.sleep(wait_s)
    except KeyboardInterrupt:
        stop()
        console.print("stop requested: each run writes a checkpoint and ends", markup=False, highlight=False)
    return EXIT_INTERRUPTED


def say(message: str) -> None:
    """One line to a person on stderr, so that stdout stays clean for documents."""
    print(printable(message, keep_newlines=True), file=sys.stderr, flush=True)
