"""Validation points as the judge counts them: at most one for each hundredth of the budget.

A command arm may declare its every-step loss as primary. Points that close together are one noisy evaluation, not a
hundred independent ones: they are pooled to their median, which also keeps the judge's work bounded.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median

from runner.records import Series

POOL_SHARE = 0.01
# Distances between validations vary a little; a pool may close one point early, but should not miss its last.
LONGEST_GAP = 1.5


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One pooled point. `is_decided` says that its arrival could be recognised as the pool's last, so rules may act."""

    step: int
    value: float
    is_decided: bool


def evaluations(series: Series, steps_total: int | None) -> Iterator[Evaluation]:
    """The finite points of a series, pooled; without a budget a pool spans a hundredth of its own step.

    A pool closes with the point after which the next, half as far away again as the last, would fall outside. That is
    known at its arrival, so what is yielded for a prefix of the series never changes later.
    """
    steps, values = _finite(series)
    count, at = len(steps), 0
    while at < count:
        end_step = steps[at] + POOL_SHARE * (steps[at] if steps_total is None else steps_total)
        after = bisect_left(steps, end_step, at + 1)
        inside = range(max(at, 1), after)
        closing = next((k for k in inside if steps[k] + LONGEST_GAP * (steps[k] - steps[k - 1]) >= end_step), None)
        if closing is not None:
            yield Evaluation(steps[closing], median(values[at : closing + 1]), is_decided=True)
        elif after < count:
            yield Evaluation(steps[after - 1], median(values[at:after]), is_decided=False)
        at = after


def _finite(series: Series) -> tuple[tuple[int, ...], tuple[float, ...]]:
    if math.isfinite(sum(series.values)):
        return series.steps, series.values
    kept = [(step, value) for step, value in zip(series.steps, series.values, strict=True) if math.isfinite(value)]
    return tuple(step for step, _ in kept), tuple(value for _, value in kept)
