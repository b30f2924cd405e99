"""Runs that go on from a checkpoint of another one: with which changes, and what the two can show. Pure."""

from __future__ import annotations

from reports.differences import value_text
from reports.readings import run_label
from reports.study import OriginView, RunView, StudyView
from reports.wording import counted


def origin(run: RunView) -> str:
    """`goes on from step 400 of B-s0 (1a2b3c4d) with trainer.optimizer.lr = 0.001`; empty for any other run."""
    return "" if run.parent is None else f"goes on from {_beginning(run.parent)}"


def dependence(run: RunView) -> str:
    """What to tell wherever a rescued run stands in a comparison; empty for a run with first weights of its own."""
    if run.parent is None:
        return ""
    return f"its first {counted(run.parent.step, 'step')} are those of {run.parent.label}, no independent evidence"


def rescue(study: StudyView, run: RunView) -> str:
    """`goes on as B-rescue1-s0 (5f0c12ab) from step 400`; empty where nothing goes on from the run."""
    found = _child(study, run)
    return "" if found is None or found.parent is None else f"goes on as {_named(found)} from step {found.parent.step}"


def rescue_label(study: StudyView, run: RunView) -> str:
    """`B-rescue1-s0`; empty where nothing goes on from the run."""
    found = _child(study, run)
    return "" if found is None else run_label(found)


def rescues(study: StudyView) -> list[str]:
    """One sentence for every run that goes on from another, with the end of that one."""
    found = []
    for run in study.runs:
        if run.parent is not None:
            parent = next((one for one in study.runs if one.run == run.parent.run), None)
            end = "" if parent is None else f". That run is {parent.state} at step {parent.step}"
            found.append(f"{_named(run)} goes on from {_beginning(run.parent)}{end}.")
    return found


def dependent(study: StudyView) -> list[str]:
    """`B-rescue1-s0 (400 steps of B-s0)` for every run that shares its first steps with another."""
    return [
        f"{run_label(run)} ({counted(run.parent.step, 'step')} of {run.parent.label})"
        for run in study.runs
        if run.parent is not None
    ]


def _beginning(parent: OriginView) -> str:
    changes = dict(parent.changes)
    told = ", ".join(f"{key} = {value_text(changes, key)}" for key in changes) or "nothing changed"
    return f"step {parent.step} of {parent.label} ({parent.run}) with {told}"


def _child(study: StudyView, run: RunView) -> RunView | None:
    return next((one for one in study.runs if one.parent is not None and one.parent.run == run.run), None)


def _named(run: RunView) -> str:
    return f"{run_label(run)} ({run.run})"
