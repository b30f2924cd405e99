"""A primary metric that leaves its best again and again, and not by less each time.

Each excursion comes back, so nothing that waits for a lasting rise ever sees it. What tells it from noise: the
excursions are large against the noise of the curve before the first of them, and they do not shrink.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from runner.judge.best import FIRST_SHARE
from runner.judge.curves import Curves, json_numbers
from runner.judge.evaluations import evaluations
from runner.judge.levels import Levels
from runner.judge.rise import JITTER_FEWEST, JITTER_FLOOR, Track, quiet_noise, unit_of
from runner.judge.robust import median
from runner.records import Finding, Severity

# Shares of |median value|; `jitters` in units of the noise. Healthy curves leave their best by up to four percent and
# come back, more than once where validations are rough; beyond five only one that swings does so twice.
LEVELS: Levels = {"excursion": 0.025, "large": 0.050, "jitters": 9.0}
COUNT = 2
# Excursions of one height scatter; less than this share of the one before is shrinking.
KEEPS = 0.8
# An excursion is over when it has lost this share of its height.
BACK_SHARE = 0.6
# Two evaluations at half of its height or more make an excursion a swing.
RESOLVED_SHARE, RESOLVED_POINTS = 0.5, 2


@dataclass(slots=True)
class _Excursion:
    """One departure from the best so far; `heights` of its points as shares of |median value|."""

    peak_step: int
    heights: list[float]
    is_over: bool = False

    @property
    def height(self) -> float:
        """How far above the best it went."""
        return max(self.heights)

    @property
    def is_resolved(self) -> bool:
        """Whether more than one evaluation saw it: noise throws up one high value at a time, a swing several."""
        return sum(one >= RESOLVED_SHARE * self.height for one in self.heights) >= RESOLVED_POINTS


def detect(curves: Curves, levels: Levels) -> tuple[Finding, ...]:
    """An abort at the first arrival that makes the excursions a pattern. Needs a budget, as every abort rule does."""
    primary = curves.primary
    if primary is None or primary.metric not in curves.series or curves.steps_total is None:
        return ()
    sign = -1.0 if primary.direction == "max" else 1.0
    regular = curves.series[primary.metric]
    counted = [point.step for point in evaluations(regular, curves.steps_total)]
    # Probes may show the pattern sooner, but only of a run whose regular validations have left their best at all.
    since_step = next((step for step, _, _ in _walk(Track(regular, sign), curves, levels, counted)), None)
    if since_step is None:
        return ()
    tracks = [Track(one, sign) for one in (curves.probes(), regular) if one is not None]
    patterns = [_first_pattern(track, curves, levels, counted, since_step) for track in tracks]
    return tuple(sorted((one for one in patterns if one is not None), key=lambda one: one.step)[:1])


def _first_pattern(
    track: Track, curves: Curves, levels: Levels, counted: Sequence[int], since_step: int
) -> Finding | None:
    for step, found, jitter in _walk(track, curves, levels, counted):
        if step >= since_step and _is_pattern(found, jitter, levels):
            return _finding(track.series.name, step, found, jitter)
    return None


def _walk(
    track: Track, curves: Curves, levels: Levels, counted: Sequence[int]
) -> Iterator[tuple[int, list[_Excursion], float]]:
    """The excursions as they stand after each arrival, and the noise they are measured against; `counted` are the steps
    of the regular evaluations."""
    steps: list[int] = []
    values: list[float] = []
    errors: list[float] = []
    found: list[_Excursion] = []
    best, jitter = float("inf"), 0.0
    for point in evaluations(track.series, curves.steps_total):
        steps.append(point.step)
        values.append(track.sign * point.value)
        errors.append(point.error)
        if not curves.has_passed(FIRST_SHARE, point.step):
            continue
        best = min(best, values[-1])
        scale = unit_of(values)
        if scale <= 0 or len(values) < JITTER_FEWEST or curves.is_unsettled(point.step, counted):
            continue
        if not found:
            jitter = max(JITTER_FLOOR, quiet_noise(values[:-1]) / scale, median(errors) / scale)
        _follow(found, point.step, (values[-1] - best) / scale, levels["excursion"])
        if point.is_decided and found:
            yield point.step, found, jitter


def _follow(found: list[_Excursion], step: int, height: float, bar: float) -> None:
    """Take in how far the newest value lies above the best."""
    now = found[-1] if found and not found[-1].is_over else None
    if now is None:
        if height >= bar:
            found.append(_Excursion(step, [height]))
        return
    if height > now.height:
        now.peak_step = step
    now.is_over = height <= (1 - BACK_SHARE) * now.height
    if not now.is_over:
        now.heights.append(height)


def _is_pattern(found: Sequence[_Excursion], jitter: float, levels: Levels) -> bool:
    seen = [one for one in found if one.is_resolved]
    if len(seen) < COUNT or seen[-1] is not found[-1]:
        return False
    before, last = seen[-2].height, seen[-1].height
    return last >= max(levels["large"], levels["jitters"] * jitter, KEEPS * before)


def _finding(metric: str, step: int, found: Sequence[_Excursion], jitter: float) -> Finding:
    peaks = ", ".join(f"{100 * one.height:.1f} %" for one in found)
    return Finding(
        detector="oscillating",
        severity=Severity.ABORT,
        step=step,
        summary=f"{metric} leaves its best again and again: by {peaks} (step {step})",
        evidence=json_numbers(
            {
                "metric": metric,
                "rule": "oscillating",
                "peaks": [[one.peak_step, round(100 * one.height, 3)] for one in found],
                "jitter_percent": round(100 * jitter, 3),
            }
        ),
    )
