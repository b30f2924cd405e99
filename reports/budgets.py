"""The same contrast under equal budgets (steps, samples, seconds of training) and the time to quality. Pure.

Values are read at validations, never interpolated: the last one that both sides reached within the budget.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from reports.contention import Busyness
from reports.pairing import Pair, baseline_of, common_steps, sets_differ
from reports.readings import curve, last, mean, samples_per_step, train_seconds
from reports.study import PrimaryView, RunView, StudyView
from reports.wording import number

Cost = Callable[[RunView, int], float | None]


@dataclass(frozen=True, slots=True)
class Reading:
    """A mean difference under one budget (`budget` as text, with its unit); None with the reason in `note`."""

    delta: float | None
    budget: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class QualityTime:
    """When a run's primary first stayed at or past the baseline's last value at two consecutive validations.

    `step` is None for "never". `train_s` counts training alone; None with the reason in `note`.
    """

    run: RunView
    baseline: RunView
    target: float
    step: int | None
    train_s: float | None
    note: str


def equal_steps(pairs: Sequence[Pair], metric: str) -> Reading:
    """The mean difference at the last step at which all pairs were validated."""
    steps = common_steps([(pair.arm, pair.baseline) for pair in pairs], metric)
    if not steps:
        return Reading(None, note="no validated step in common")
    return _at_cost(pairs, metric, lambda _run, step: float(step), "steps", steps[-1])


def equal_samples(pairs: Sequence[Pair], metric: str) -> Reading:
    """The mean difference after the same number of training samples."""
    if any(samples_per_step(run) is None for pair in pairs for run in (pair.arm, pair.baseline)):
        return Reading(None, note="samples per step not known")
    return _at_cost(pairs, metric, samples_seen, "samples")


def equal_time(pairs: Sequence[Pair], metric: str, busy: Busyness) -> Reading:
    """The mean difference after the same seconds of training; withheld when the machines were not equally busy."""
    notes = [note for pair in pairs if (note := busy.clock_note(pair.arm, pair.baseline))]
    if notes:
        return Reading(None, note=notes[0])
    return _at_cost(pairs, metric, train_seconds, "s of training")


def samples_seen(run: RunView, step: int) -> float | None:
    """Training samples after a step; None when the config does not tell."""
    per_step = samples_per_step(run)
    return None if per_step is None else float(per_step * step)


def times_to_quality(study: StudyView, busy: Busyness) -> tuple[QualityTime, ...]:
    """For every run of an arm that has a baseline: how soon it was as good as that baseline at its end."""
    if study.primary is None:
        return ()
    found = []
    for run in study.runs:
        baseline = baseline_of(study, run)
        target = last(baseline, study.primary.metric) if baseline is not None else None
        if baseline is None or target is None or target[0] == 0 or not math.isfinite(target[1]):
            continue
        if run.arm != baseline.arm and not sets_differ(run, baseline):
            found.append(_time_to_quality(run, baseline, study.primary, target[1], busy))
    return tuple(found)


def _at_cost(pairs: Sequence[Pair], metric: str, cost: Cost, unit: str, limit: float | None = None) -> Reading:
    """Per pair the smaller of both total costs is the budget; each side is read at its last validation within it."""
    deltas, budgets = [], []
    for pair in pairs:
        sides = [_costed(run, metric, cost) for run in (pair.arm, pair.baseline)]
        if not all(sides):
            return Reading(None, note=f"{unit} not known")
        budget = min(side[-1][0] for side in sides) if limit is None else limit
        arm, baseline = ([value for spent, value in side if spent <= budget] for side in sides)
        if not arm or not baseline:
            return Reading(None, note=f"one side has no validation within {number(budget)} {unit}")
        if not math.isfinite(arm[-1] - baseline[-1]):
            return Reading(None, note="not finite")
        deltas.append(arm[-1] - baseline[-1])
        budgets.append(budget)
    return Reading(mean(deltas), f"{_amount(min(budgets))} {unit}")


def _costed(run: RunView, metric: str, cost: Cost) -> list[tuple[float, float]]:
    """(cost, value) of each validation after step 0."""
    found = curve(run, metric)
    costed = [(cost(run, step), value) for step, value in zip(found.steps, found.values, strict=True) if step > 0]
    return [(spent, value) for spent, value in costed if spent is not None]


def _amount(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else number(value, 3)


def _time_to_quality(
    run: RunView, baseline: RunView, primary: PrimaryView, target: float, busy: Busyness
) -> QualityTime:
    values = curve(run, primary.metric)
    reached = [value >= target if primary.direction == "max" else value <= target for value in values.values]
    twice = zip(values.steps, reached, reached[1:], strict=False)
    step = next((step for step, now, next_one in twice if now and next_one), None)
    note = busy.clock_note(run, baseline)
    seconds = train_seconds(run, step) if step is not None and not note else None
    return QualityTime(run, baseline, target, step, seconds, note)
