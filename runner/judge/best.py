"""Which validation of a run counts as its best."""

from __future__ import annotations

import math

from runner.records import Series

# Before this share of the run a value is luck or a start-up artefact, never a result.
FIRST_SHARE = 0.10


def best_point(series: Series, direction: str, steps_total: int | None) -> tuple[int, float] | None:
    """(step, value) of the best finite value at or after 10 % of the run; ties go to the earlier step.

    `direction` is min or max. Without a budget every step counts. None when no such point exists.
    """
    first_step = 0.0 if steps_total is None else FIRST_SHARE * steps_total
    points = [
        (step, value)
        for step, value in zip(series.steps, series.values, strict=True)
        if step >= first_step and math.isfinite(value)
    ]
    if not points:
        return None
    sign = -1.0 if direction == "max" else 1.0
    return min(points, key=lambda point: (sign * point[1], point[0]))
