"""A validation metric that leaves its own best for good.

One level cannot tell sick from healthy: in the published arms of prx-tg the first bad checkpoint of the arm that
collapsed lies 1.70 % above its best, the last one of a healthy arm 1.79 %. Rate, persistence and what is left of the
budget decide. Only the declared primary metric may abort; the healthy arms' other metrics drift by up to 4 % (text
LPIPS) and 17 % (text manipulation), so they warn at most.

Everything is relative to the run's own curve: r = (value - best) / |median value|, with best = minimum + one jitter
(the minimum of noisy values is biased low) and jitter the noise of the curve around its own trend.
"""

from __future__ import annotations

import sys
from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from runner.judge.best import FIRST_SHARE
from runner.judge.curves import Curves, json_numbers
from runner.judge.evaluations import evaluations
from runner.judge.robust import difference_mad, theil_sen
from runner.records import Finding, Series, Severity

# Validation metrics besides the primary that are known to be better when lower. Probes are never ranked.
LOWER_IS_BETTER = frozenset({"text_lpips", "text_rmse", "loss"})

FEWEST = 3
# No validation is quieter than this (relative): repeated evaluations of one checkpoint differ by as much.
JITTER_FLOOR = 0.0022
# Noise is read from the differences of at most forty points; when fewer than six come before the rise, from all points.
# Second differences of a few points still hold the bend of the curve, so the smaller of second and third counts; of
# many points each is honest, and the smaller one would be too low by luck.
JITTER_POINTS = 40
JITTER_FEWEST = 6
JITTER_MANY = 12

# The noise of a smooth validation stays below one percent; of a noisy one, below two and a half of its own deviations.
WARN = 0.010
WARN_JITTERS = 2.5
# An abort is for what no repeated validation could show by chance.
ABORT_Z = 6.0
# A rate is trusted for at most this share of the budget ahead.
AHEAD_SHARE = 0.30
# Healthy runs end up to 2.5 % above their best, collapses beyond 4.5 %: a rise must be past the first and heading well
# past the second, or stay between them, or be far beyond.
PROJECTED, PROJECTED_END = 0.021, 0.055
PERSISTENT = 0.030
SEVERE = 0.080
# A severe rise that has eased by less than a tenth is not on its way back.
EASED_SHARE = 0.10
# The last checkpoint has no successor to confirm it.
FINAL = 0.042
# Three close points are one event seen three times; two may decide only when they lie a regular checkpoint apart.
THREE_POINTS_SPAN = 0.034
TWO_CHECKPOINTS_SPAN = 0.09
# Regular validations after a declared change during which a bump is expected: then only `severe` may abort.
EVENT_WINDOW = 3


@dataclass(frozen=True, slots=True)
class _Rise:
    """The unbroken rise that ends at the newest point. Values have the sign that makes lower better."""

    steps: Sequence[int]
    values: Sequence[float]
    best_step: int
    best: float
    jitter: float
    scale: float
    steps_total: int
    points_seen: int
    in_event_window: bool

    def relative(self, value: float) -> float:
        return (value - self.best - self.jitter) / self.scale

    @property
    def now(self) -> float:
        return self.relative(self.values[-1])

    @property
    def z(self) -> float:
        return (self.values[-1] - self.best - self.jitter) / self.jitter

    def held(self, count: int, level: float) -> bool:
        """Whether each of the last `count` points lies at or above the relative `level`."""
        return len(self.values) >= count and all(self.relative(value) >= level for value in self.values[-count:])

    def is_near_peak(self, tolerance: float) -> bool:
        """Whether the newest value has come down by no more than `tolerance` from the highest of the rise."""
        return self.values[-1] >= max(self.values) - tolerance

    def spans(self, share: float) -> bool:
        """Whether the rise covers this share of the budget."""
        return self.steps[-1] - self.steps[0] >= share * self.steps_total

    def projected(self) -> float:
        """Where r will be when the present rate holds for what is left, at most 30 % of the budget."""
        if len(self.values) < 2:
            return self.now
        ahead_steps = min(self.steps_total - self.steps[-1], AHEAD_SHARE * self.steps_total)
        per_step = theil_sen(self.steps, self.values) / self.scale
        return self.now + max(0.0, per_step) * max(0.0, ahead_steps)

    def is_final(self, gap_steps: int) -> bool:
        """Whether no further validation at the same distance fits into the budget."""
        return self.steps[-1] + gap_steps > self.steps_total


def detect(curves: Curves) -> tuple[Finding, ...]:
    """A warning and, for the primary metric alone, an abort: each at the first step whose arrival justified it."""
    findings: list[Finding] = []
    primary = curves.primary
    if primary is not None and primary.metric in curves.series:
        # Every abort rule weighs a rise against the budget: without one there is nothing to weigh.
        may_abort = curves.steps_total is not None
        findings += _first_findings(curves.series[primary.metric], primary.direction, curves, may_abort=may_abort)
    for name, series in sorted(curves.series.items()):
        if _is_secondary(name) and (primary is None or name != primary.metric):
            findings += _first_findings(series, "min", curves, may_abort=False)
    return tuple(findings)


def _is_secondary(name: str) -> bool:
    protocol, _, metric = name.partition("/")
    return protocol == "val" and (metric.startswith("recon_") or metric in LOWER_IS_BETTER)


def _first_findings(series: Series, direction: str, curves: Curves, *, may_abort: bool) -> list[Finding]:
    sign = -1.0 if direction == "max" else 1.0
    warning: Finding | None = None
    for rise, gap_steps in _rises(series, sign, curves):
        if warning is None:
            warning = _finding(series.name, Severity.WARN, "warn", rise, sign)
        rule = _abort_rule(rise, gap_steps) if may_abort else None
        if rule is not None:
            return [warning, _finding(series.name, Severity.ABORT, rule, rise, sign)]
        if not may_abort:
            break
    return [] if warning is None else [warning]


def _rises(series: Series, sign: float, curves: Curves) -> Iterator[tuple[_Rise, int]]:
    """For each arrival that ends a rise worth a warning: that rise, and the distance to the point before."""
    steps: list[int] = []
    values: list[float] = []
    ordered: list[float] = []
    for point in evaluations(series, curves.steps_total):
        steps.append(point.step)
        values.append(sign * point.value)
        insort(ordered, values[-1])
        if point.is_decided and len(values) >= FEWEST and curves.has_passed(FIRST_SHARE, point.step):
            rise = _rise(steps, values, ordered, curves)
            if rise is not None:
                yield rise, steps[-1] - steps[-2]


def _rise(steps: list[int], values: list[float], ordered: list[float], curves: Curves) -> _Rise | None:
    steps_total = curves.steps_total or steps[-1]
    first = bisect_left(steps, FIRST_SHARE * steps_total)
    best = min(values[first:])
    best_at = values.index(best, first)
    scale = _scale(ordered)
    if values[-1] <= best or scale <= 0:
        return None
    jitter = max(JITTER_FLOOR * scale, sys.float_info.min, _noise(values, best_at))
    bar = best + jitter + max(WARN * scale, WARN_JITTERS * jitter)
    begins = len(values)
    while begins > best_at + 1 and values[begins - 1] >= bar:
        begins -= 1
    if begins == len(values):
        return None
    window = _is_in_event_window(steps, curves.regime_changes())
    return _Rise(steps[begins:], values[begins:], steps[best_at], best, jitter, scale, steps_total, len(values), window)


def _scale(ordered: Sequence[float]) -> float:
    """|median|, the unit of r; for a metric that changes sign, and so has no ratios, at least its range."""
    middle = (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
    has_one_sign = ordered[0] > 0 or ordered[-1] < 0
    return abs(middle) if has_one_sign else max(abs(middle), ordered[-1] - ordered[0])


def _noise(values: Sequence[float], best_at: int) -> float:
    """Noise of the curve up to its best, or up to its last three points: a collapse must not hide by looking noisy."""
    end = max(best_at + 1, len(values) - FEWEST)
    before = values[max(0, end - JITTER_POINTS) : end]
    if len(before) >= JITTER_MANY:
        return max(_estimates(before))
    whole = _estimates(values[-JITTER_POINTS:])
    return min([*whole, *_estimates(before)] if len(before) >= JITTER_FEWEST else whole, default=0.0)


def _estimates(values: Sequence[float]) -> list[float]:
    """Noise from second and third differences, where there are at least three of them."""
    return [difference_mad(values, order) for order in (2, 3) if len(values) >= order + 3]


def _is_in_event_window(steps: Sequence[int], changes: Sequence[int]) -> bool:
    past = [change for change in changes if change < steps[-1]]
    return bool(past) and sum(step > past[-1] for step in steps) <= EVENT_WINDOW


def _abort_rule(rise: _Rise, gap_steps: int) -> str | None:
    """The name of the abort rule that holds, the gravest first."""
    if rise.z < ABORT_Z:
        return None
    if rise.held(2, SEVERE) and rise.is_near_peak(EASED_SHARE * (max(rise.values) - rise.best)):
        return "severe"
    if rise.in_event_window or rise.points_seen < JITTER_FEWEST or not rise.is_near_peak(rise.jitter):
        return None
    if theil_sen([rise.best_step, *rise.steps], [rise.best, *rise.values]) <= 0:
        return None
    has_three = len(rise.values) >= FEWEST and rise.spans(THREE_POINTS_SPAN)
    if has_three and rise.held(FEWEST, PERSISTENT):
        return "persistent"
    if has_three and rise.now >= PROJECTED and rise.projected() >= PROJECTED_END:
        return "projected"
    if rise.now >= PERSISTENT and rise.spans(TWO_CHECKPOINTS_SPAN) and rise.projected() >= PROJECTED_END:
        return "two_checkpoints"
    return "final_verdict" if rise.now >= FINAL and rise.is_final(gap_steps) else None


def _finding(metric: str, severity: Severity, rule: str, rise: _Rise, sign: float) -> Finding:
    step, percent = rise.steps[-1], 100 * rise.now
    return Finding(
        detector="regress",
        severity=severity,
        step=step,
        summary=f"{metric} is {percent:.1f} % worse than its best of step {rise.best_step} (step {step}, {rule})",
        evidence=json_numbers(
            {
                "metric": metric,
                "rule": rule,
                "value": sign * rise.values[-1],
                "best_value": sign * rise.best,
                "best_step": rise.best_step,
                "regress_percent": round(percent, 3),
                "jitter_percent": round(100 * rise.jitter / rise.scale, 3),
                "z": round(rise.z, 2),
                "projected_percent": round(100 * rise.projected(), 3),
                "points": [[at, sign * value] for at, value in zip(rise.steps, rise.values, strict=True)],
            }
        ),
    )
