"""The optimizer's second moments say that something is wrong before any metric may: a warning, never an abort.

Only what the trainer's AdamW groups report is read (`opt/…`); Muon has no second moment. That these signs lead a metric
is a hypothesis (Wortsman et al. 2023, arXiv 2304.13013; Bai et al. 2025, arXiv 2506.04805), so all they do is ask for
probes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from runner.judge.curves import Curves, json_numbers
from runner.judge.levels import Levels
from runner.judge.robust import median
from runner.records import Finding, Series, Severity

# Moments are warm after this share of the run.
WARM_SHARE = 0.05
# Logged points in a row, or among the last so many, that must agree.
IN_A_ROW = 5
AMONG = 50
TIMES = 3
# The level of a ratio is the median of so many logged points.
LEVEL_POINTS = 10

LEVELS: Levels = {
    # Routed blocks keep less than this share of what their second moments were against those of the dense blocks. In
    # nine healthy routed runs here it fell to 0.08 to 0.29; moments that only decay fall below any level soon.
    "second_moment_share": 0.03,
    # RMS of g / sqrt(v), in multiples of its own usual value: the paper's fixed 2.3 would accuse every healthy arm that
    # was measured here (3 to 13 early in a run).
    "rms_multiple": 3.0,
    # Update against weight, in multiples of its own usual value.
    "update_multiple": 5.0,
}
Rule = Callable[[Sequence[float], int, Levels], bool]


def detect(curves: Curves, levels: Levels) -> tuple[Finding, ...]:
    """The first warning of all blocks; further ones would say the same again."""
    found = [
        finding
        for name, series in sorted(curves.series.items())
        if name.startswith("opt/")
        for finding in _first(name, series, curves, levels)
    ]
    return tuple(sorted(found, key=lambda one: one.step)[:1])


def _first(name: str, series: Series, curves: Curves, levels: Levels) -> Sequence[Finding]:
    rule = RULES.get(name.rpartition("/")[2])
    if rule is None:
        return ()
    kept = [
        (step, value)
        for step, value in zip(series.steps, series.values, strict=True)
        if math.isfinite(value) and curves.has_passed(WARM_SHARE, step)
    ]
    steps, values = [step for step, _ in kept], [value for _, value in kept]
    held = [index for index in range(LEVEL_POINTS, len(values)) if rule(values, index, levels)]
    if not held:
        return ()
    return (_finding(name, steps[held[0]], values, held[0], wants_probes=held[-1] == len(values) - 1),)


def _is_starved(values: Sequence[float], index: int, levels: Levels) -> bool:
    """`opt/second_moment_routed_to_dense`: far below its level after warm-up, for five logged points."""
    bar = levels["second_moment_share"] * median(values[:LEVEL_POINTS])
    return all(value < bar for value in values[index - IN_A_ROW + 1 : index + 1])


def _is_stale(values: Sequence[float], index: int, levels: Levels) -> bool:
    """`rms_ratio`: gradients far above what the second moment remembers, three times in the last fifty points."""
    last = values[max(0, index - AMONG + 1) : index + 1]
    bar = levels["rms_multiple"] * median(last)
    return values[index] > bar and sum(value > bar for value in last) >= TIMES


def _is_stepping_far(values: Sequence[float], index: int, levels: Levels) -> bool:
    """`update_to_weight`: five times the median of the fifty before, for five logged points."""
    begins = index - IN_A_ROW + 1
    bar = levels["update_multiple"] * median(values[max(0, begins - AMONG) : begins])
    return bar > 0 and all(value > bar for value in values[index - IN_A_ROW + 1 : index + 1])


RULES: dict[str, Rule] = {
    "second_moment_routed_to_dense": _is_starved,
    "rms_ratio": _is_stale,
    "update_to_weight": _is_stepping_far,
}


def _finding(name: str, step: int, values: Sequence[float], index: int, *, wants_probes: bool) -> Finding:
    usual = median(values[:index])
    return Finding(
        detector="starvation",
        severity=Severity.WARN,
        step=step,
        summary=f"{name} is {values[index]:.3g} where {usual:.3g} is usual (step {step})",
        evidence=json_numbers(
            {"metric": name, "rule": name.rpartition("/")[2], "value": values[index], "usual": usual}
        ),
        wants_probes=wants_probes,
    )
