"""Validation points as the judge counts them: at most one for each hundredth of the budget.

A command arm may declare its every-step loss as primary. Points that close together are one noisy evaluation, not a
hundred independent ones: they are pooled to their median, which also keeps the judge's work bounded.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from runner.judge.robust import MAD_TO_SIGMA, mad, median
from runner.records import Series

POOL_SHARE = 0.01
# Distances between validations vary a little; a pool may close one point early, but should not miss its last.
LONGEST_GAP = 1.5
FEWEST_FOR_ERROR = 5


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One pooled point. `is_decided` says that its arrival could be recognised as the pool's last, so rules may act;
    `error` is the standard error of its value as the pool itself shows it, 0 for pools of fewer than five."""

    step: int
    value: float
    is_decided: bool
    error: float = 0.0


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
            yield _pooled(steps[closing], values[at : closing + 1], is_decided=True)
        elif after < count:
            yield _pooled(steps[after - 1], values[at:after], is_decided=False)
        at = after


def _pooled(step: int, pool: Sequence[float], *, is_decided: bool) -> Evaluation:
    value = median(pool)
    if len(pool) < FEWEST_FOR_ERROR:
        return Evaluation(step, value, is_decided)
    # The error of a median of normal values is 1.25 times that of their mean.
    return Evaluation(step, value, is_decided, 1.25 * MAD_TO_SIGMA * mad(pool, value) / math.sqrt(len(pool)))


def _finite(series: Series) -> tuple[tuple[int, ...], tuple[float, ...]]:
    if math.isfinite(sum(series.values)):
        return series.steps, series.values
    kept = [(step, value) for step, value in zip(series.steps, series.values, strict=True) if math.isfinite(value)]
    return tuple(step for step, _ in kept), tuple(value for _, value in kept)
