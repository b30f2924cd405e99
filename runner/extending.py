"""A longer budget for a run that exists: what may be extended, how, and the arm document that results. Pure.

The run stays the same run: its identity is that of the arm it was launched from, so launching that arm again finds it.
What changes is declared by an event, and everything that counts in shares of the run (cosine, dense tail, averages, the
judge's tail) counts in the new budget from the step on at which the next attempt starts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from runner.errors import UsageError
from runner.records import RunState

EXTENDED = "extended"
"""The event that declares a longer budget; its data: from, to and step."""


class Way(StrEnum):
    """What a longer budget means for the processes of a run."""

    GROW = "grow"  # no process is touched: the run waits still
    STOP_FIRST = "stop first"  # a live trainer holds the old schedule: it saves and ends, and the request waits
    AGAIN = "again"  # it has ended: a new attempt from the last complete checkpoint


_AGAIN = frozenset({RunState.FINISHED, RunState.CANCELLED, RunState.FAILED, RunState.LOST, RunState.PREEMPTED})


@dataclass(frozen=True, slots=True)
class Extension:
    """One longer budget. `before` and `after` are steps; `sentence` is for a person and for the event."""

    before: int
    after: int
    way: Way
    sentence: str

    def data(self, step: int) -> dict[str, int]:
        """What the event keeps; `step` is the last step that was known when it was asked."""
        return {"from": self.before, "to": self.after, "step": step}


def extension(
    run: str,
    state: RunState,
    *,
    is_trainer: bool,
    before: int | None,
    wanted: int,
    stop_wanted: str | None = None,
    takes_steps: bool = True,
) -> Extension:
    """How a run in `state` with a budget of `before` steps gets `wanted`. `run` is its id, for messages.

    `stop_wanted` is why a live run is to stop; it becomes our own sentence once a stop was asked for this extension.
    `takes_steps` says of a command whether it is told its budget, which our trainer always is.
    Raises UsageError when it may not: the budget would not grow, the run was aborted, somebody else stops it, its
    command would never hear of the longer budget, or a command is at work with the old one.
    """
    if before is None:
        raise UsageError(f"{run} has no budget in steps, so there is nothing to extend")
    if wanted <= before:
        raise UsageError(f"--steps {wanted}: {run} has {before} steps already; allowed: more than {before}")
    if state is RunState.ABORTED:
        raise UsageError(
            f"{run} was aborted; its rule comes first: `runner resume {run}` overrides it, then it can be extended"
        )
    way = _way(state)
    if not is_trainer:
        _check_command(run, state, way, before, takes_steps)
    sentence = f"extended from {before} to {wanted} steps: {_consequence(way, is_trainer, wanted)}"
    if way is Way.STOP_FIRST and stop_wanted not in (None, sentence):
        raise UsageError(f"{run} is being stopped ({stop_wanted}); it can be extended when it has ended")
    return Extension(before, wanted, way, sentence)


def with_steps(document: Mapping[str, Any], steps: int, check: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The stored arm (as `to_json` wrote it) with another budget; nothing else in it changes.

    `check` is what the trainer said of the new configuration; without it the stored sizes stay: no budget changes them.
    """
    changed = {**document, "steps": steps}
    if document["trainer"] is not None:
        changed["trainer"] = {**document["trainer"], "steps": steps}
    known = check or document["check"]
    if known is not None:
        changed["check"] = {**known, "steps_total": steps}
    return changed


def keep_extension(document: Mapping[str, Any], steps_total: int | None) -> Mapping[str, Any]:
    """The arm document of a repeated launch, with the longer budget that the run was given meanwhile."""
    return document if steps_total is None or steps_total <= document["steps"] else with_steps(document, steps_total)


def _way(state: RunState) -> Way:
    if state in _AGAIN:
        return Way.AGAIN
    return Way.GROW if state is RunState.QUEUED else Way.STOP_FIRST


def _check_command(run: str, state: RunState, way: Way, before: int, takes_steps: bool) -> None:
    if not takes_steps:
        raise UsageError(
            f"{run} has a command without {{steps}}, so a new attempt would only do the same {before} steps again; "
            'write {steps} where the command takes its number of steps, for example "--steps", "{steps}", and let the '
            "script continue by itself from what it finds in {run_dir}; as that is another command, launching the arm "
            "makes a new generation, which can be extended (nothing was changed)"
        )
    if way is Way.STOP_FIRST:  # nobody knows whether a script saves when it is told to end, so that is left to a person
        raise UsageError(
            f"{run} is {state} and its command was started with {before} steps; it can be extended when it has ended, "
            f"and `runner stop {run}` ends it now (nothing was changed)"
        )


def _consequence(way: Way, is_trainer: bool, wanted: int) -> str:
    if way is Way.STOP_FIRST:
        return "it stops with a checkpoint and goes on from there with the new schedule"
    if way is Way.GROW:
        return "it waits still and starts with them"
    if is_trainer:
        return "a new attempt goes on from the last complete checkpoint with the new schedule"
    return f"a new attempt of the command with {{steps}} = {wanted}, which must continue by itself"
