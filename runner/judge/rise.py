"""A rise of a validation metric above its own best, measured as a share of the metric and in units of its noise."""

from __future__ import annotations

import math
import sys
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from runner.judge.best import FIRST_SHARE
from runner.judge.curves import Curves
from runner.judge.evaluations import evaluations
from runner.judge.levels import Levels
from runner.judge.paired import differences, sign_flip_p
from runner.judge.robust import difference_mad, differences_of, median, theil_sen
from runner.records import Series

FEWEST = 3
"""Fewer points say nothing about a trend."""

# No validation is quieter than this (relative): repeated evaluations of one checkpoint differ by as much.
JITTER_FLOOR = 0.0022
# Noise is read from the differences of at most forty points; when fewer than six come before the rise, from all points.
# Second differences of a few points still hold the bend of the curve, so the smaller of second and third counts; of
# many points each is honest, and the smaller one would be too low by luck.
JITTER_POINTS = 40
JITTER_FEWEST = 6
JITTER_MANY = 12
# A curve that fell steeply at first is bent there and smooth later: its newer points tell its noise.
JITTER_NEWER = 7
# Half-way between a bend, which hardly turns, and noise.
ROUGH_SHARE = 0.4
# An untrained model may score well by drawing grey. Who rises in the first part of the run from a value that was never
# improved on only leaves that behind: nothing is said of it before this share, and nothing is stopped for it.
START_SHARE = 0.30
# A rate is trusted for at most this share of the budget ahead.
AHEAD_SHARE = 0.30


@dataclass(frozen=True, slots=True)
class Track:
    """One metric to judge a run by. `sign` makes lower better; noise is read from `regular` steps only (None: all), for
    extra validations come where it is rough."""

    series: Series
    sign: float
    may_abort: bool = True
    regular: frozenset[int] | None = None
    paired: Mapping[int, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rise:
    """The unbroken rise that ends at the newest point. Values have the sign that makes lower better.

    `is_from_start`: it began early, from a value that the run had never improved to.
    """

    steps: Sequence[int]
    values: Sequence[float]
    best_step: int
    best: float
    jitter: float
    scale: float
    steps_total: int
    points_seen: int
    in_event_window: bool
    is_from_start: bool
    paired: Mapping[int, Mapping[str, float]]
    sign: float

    def relative(self, value: float) -> float:
        return (value - self.best - self.jitter) / self.scale

    @property
    def now(self) -> float:
        return self.relative(self.values[-1])

    @property
    def z(self) -> float:
        return (self.values[-1] - self.best - self.jitter) / self.jitter

    def paired_p(self) -> float | None:
        """p-value of "no worse than the best on the same samples"; None where scores are missing or too few."""
        before, after = self.paired.get(self.best_step), self.paired.get(self.steps[-1])
        return None if before is None or after is None else sign_flip_p(differences(before, after, self.sign))

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


def rises(track: Track, curves: Curves, levels: Levels) -> Iterator[tuple[Rise, int]]:
    """For each arrival that ends a rise worth a warning: that rise, and the distance to the point before."""
    seen = _Arrived(track, curves, levels)
    for point in evaluations(track.series, curves.steps_total):
        seen.add(point.step, track.sign * point.value, point.error)
        if point.is_decided and len(seen.values) >= FEWEST and curves.has_passed(FIRST_SHARE, point.step):
            rise = seen.rise()
            if rise is not None:
                yield rise, seen.steps[-1] - seen.steps[-2]


class _Arrived:
    """The evaluations of one track that have arrived so far."""

    def __init__(self, track: Track, curves: Curves, levels: Levels) -> None:
        self._track = track
        self._curves = curves
        self._levels = levels
        self._regular: list[float] = []
        self._regular_steps: list[int] = []
        self._regular_before: list[int] = []
        self._errors: list[float] = []
        self.steps: list[int] = []
        self.values: list[float] = []

    def add(self, step: int, value: float, error: float) -> None:
        """The next arrival; `error` is its own standard error where it is known, else 0."""
        self._errors.append(error)
        self.steps.append(step)
        self.values.append(value)
        self._regular_before.append(len(self._regular))
        if self._track.regular is None or step in self._track.regular:
            self._regular.append(value)
            self._regular_steps.append(step)

    def rise(self) -> Rise | None:
        """The unbroken rise that ends at the newest point, if it is worth a warning."""
        steps, values, curves, levels = self.steps, self.values, self._curves, self._levels
        steps_total = curves.steps_total or steps[-1]
        first = bisect_left(steps, FIRST_SHARE * steps_total)
        best = min(values[first:])
        best_at = values.index(best, first)
        if values[-1] <= best or (scale := unit_of(self._regular)) <= 0:
            return None
        jitter = self._jitter(self._regular_before[best_at], values[-1] - best, scale)
        bar = best + jitter + max(levels["warn"] * scale, levels["warn_jitters"] * jitter)
        begins = len(values)
        while begins > best_at + 1 and values[begins - 1] >= bar:
            begins -= 1
        is_from_start = (
            begins < len(values)
            and steps[begins] <= START_SHARE * steps_total
            and values[first] - best < levels["warn"] * scale
        )
        if begins == len(values) or (is_from_start and steps[-1] <= START_SHARE * steps_total):
            return None
        return Rise(
            steps=steps[begins:], values=values[begins:], best_step=steps[best_at], best=best, jitter=jitter,
            scale=scale, steps_total=steps_total, points_seen=len(values),
            in_event_window=curves.is_unsettled(steps[-1], self._regular_steps),
            is_from_start=is_from_start,
            paired=self._track.paired, sign=self._track.sign,
        )  # fmt: skip

    def _jitter(self, best_at: int, above: float, scale: float) -> float:
        """The noise that a value `above` the best is held against; `best_at` counts regular points."""
        least = max(JITTER_FLOOR * scale, sys.float_info.min, median(self._errors[-JITTER_POINTS:]))
        jitter = max(least, noise_before(self._regular, best_at))
        if above < self._levels["leap"] * scale:
            return jitter
        # Improvement in leaps looks like noise; against a large rise only what the curve took back before counts as it.
        before = self._regular[: best_at + 1]
        return min(jitter, max(least, noise_of_stairs(before), _still_falling(before)))


def unit_of(values: Sequence[float]) -> float:
    """What a percentage of a metric is a percentage of: |median| of the newer half of its values, for some metrics fall
    to a fraction of what they were. One that changes sign has no ratios: there it is at least the range of the values.
    """
    middle = abs(median(values[len(values) // 2 :])) if values else 0.0
    lowest, highest = min(values, default=0.0), max(values, default=0.0)
    return middle if lowest > 0 or highest < 0 else max(middle, highest - lowest)


def noise_before(values: Sequence[float], best_at: int) -> float:
    """Noise of the curve up to its best (at `best_at`), or up to its last three points: a collapse must not hide by
    looking noisy."""
    end = max(best_at + 1, len(values) - FEWEST)
    before = values[max(0, end - JITTER_POINTS) : end]
    if len(before) >= JITTER_MANY:
        return max(_estimates(before))
    newer = values[-max(JITTER_NEWER, len(values) // 2) :]
    found = [*_estimates(values[-JITTER_POINTS:]), *_estimates(newer)]
    return min([*found, *_estimates(before)] if len(before) >= JITTER_FEWEST else found, default=0.0)


def noise_of(values: Sequence[float]) -> float:
    """Noise of a whole curve around its own trend, in the unit of its values; 0 for too few points."""
    return min(_estimates(values[-JITTER_POINTS:]), default=0.0)


def _still_falling(values: Sequence[float]) -> float:
    """What a curve that still fell by more at each of its last three evaluations may take back: half of the least."""
    return min((abs(b - a) for a, b in zip(values[-4:], values[-3:], strict=False)), default=math.inf) / 2


def quiet_noise(values: Sequence[float]) -> float:
    """Noise of the newer part of a curve, the larger of its estimates: for who must not take noise for a pattern."""
    return max(_estimates(values[-max(JITTER_NEWER, 2 * len(values) // 3) :]), default=math.inf)


def noise_of_stairs(values: Sequence[float]) -> float:
    """Noise of a curve that may go down in leaps, from how far its points lie from the median of themselves and their
    neighbours: no step of a stair does. Four fifths of these distances are below 1.09 deviations of white noise."""
    if len(values) < FEWEST + 2:
        return math.inf
    left = sorted(abs(b - sorted((a, b, c))[1]) for a, b, c in zip(values, values[1:], values[2:], strict=False))
    return left[int(0.8 * len(left))] / 1.09


def _estimates(values: Sequence[float]) -> list[float]:
    """Noise from second and third differences, where there are at least three of them.

    Where the curve is bent they hold its bend, and say so: then they are left out, and fourth ones may speak. Where all
    of them do, the smallest is what there is.
    """
    rough: list[float] = []
    bent: list[float] = []
    for order in (2, 3, 4):
        if len(values) < order + 3 or (order == 4 and rough):
            break
        (rough if _is_rough(values, order) else bent).append(difference_mad(values, order))
    return rough or sorted(bent)[:1]


def _is_rough(values: Sequence[float], order: int) -> bool:
    """Whether differences of this order look like noise: those of white noise change their sign from one to the next
    three times out of four, those of a smooth curve keep it."""
    signs = [difference < 0 for difference in differences_of(values, order)]
    turns = sum(left != right for left, right in pairwise(signs))
    return turns >= ROUGH_SHARE * (len(signs) - 1)
