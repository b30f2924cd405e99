"""A value that is not a number, or infinite, in any reported metric: abort at once.

That is settled practice in the field: a run rarely recovers from such a value, and every further step may carry it into
the weights that a checkpoint would keep. With fp16 loss scaling a gradient norm may be infinite in a healthy run: there
the policy should say `non_finite: warn`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from runner.judge.curves import Curves
from runner.judge.levels import Levels
from runner.records import DeclaredEvent, Finding, Series, Severity

# Counters of the machine: a rate of 0/0 there says nothing about the model.
UNWATCHED = ("sys/", "memory/")


def detect(curves: Curves, _levels: Levels) -> tuple[Finding, ...]:
    """The earliest non-finite value of the run; among several at one step, the first by name."""
    first: tuple[int, str, int] | None = None
    for name, series in curves.series.items():
        index = None if name.startswith(UNWATCHED) else _first_non_finite(series.values)
        if index is not None:
            found = (series.steps[index], name, index)
            first = found if first is None else min(first, found)
    if first is None:
        return ()
    _, name, index = first
    return (_finding(curves.series[name], index, curves.events),)


def _first_non_finite(values: Sequence[float]) -> int | None:
    # A finite sum proves every term finite, at the speed of C; an overflowing one only asks for the slow look.
    if math.isfinite(sum(values)):
        return None
    return next((index for index, value in enumerate(values) if not math.isfinite(value)), None)


def _finding(series: Series, index: int, events: Sequence[DeclaredEvent]) -> Finding:
    step, value = series.steps[index], str(series.values[index])
    checkpoints = [event.step for event in events if event.event == "checkpoint" and event.step < step]
    return Finding(
        detector="non_finite",
        severity=Severity.ABORT,
        step=step,
        summary=f"{series.name} is {value} at step {step}",
        evidence={
            "metric": series.name,
            "value": value,
            "last_finite_step": series.steps[index - 1] if index else None,
            "last_finite_value": series.values[index - 1] if index else None,
            "last_checkpoint_step": max(checkpoints, default=None),
        },
    )
