"""The finite samples of one training loss, with what share of the budget each of them stands for."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from runner.judge.curves import Curves
from runner.judge.levels import Levels
from runner.judge.robust import median
from runner.records import Series

# The first steps of a run are noise in any training.
QUIET_SHARE = 0.02
# How long a spike may take to come back: eight hundredths of the budget (of the run so far, when nobody told the
# budget), and never fewer than thirty samples.
HORIZON_SHARE = 0.08
HORIZON_SAMPLES = 30


@dataclass(frozen=True, slots=True)
class Samples:
    """Steps and finite values in order of arrival; `start_level` is the median of the first five of them; `levels` are
    the thresholds to judge them by."""

    steps: Sequence[int]
    values: Sequence[float]
    steps_total: int | None
    start_level: float
    levels: Levels

    @classmethod
    def finite(cls, series: Series, curves: Curves, levels: Levels) -> Samples:
        """All finite samples of a series: a value that is not a number never enters a median."""
        steps, values = series.steps, series.values
        if not math.isfinite(sum(values)):
            kept = [index for index, value in enumerate(values) if math.isfinite(value)]
            steps, values = tuple(steps[k] for k in kept), tuple(values[k] for k in kept)
        return cls._of(steps, values, curves.steps_total, levels)

    @classmethod
    def _of(cls, steps: Sequence[int], values: Sequence[float], steps_total: int | None, levels: Levels) -> Samples:
        return cls(steps, values, steps_total, median(values[:5]) if values else 0.0, levels)

    def split_after(self, changes: Sequence[int]) -> list[Samples]:
        """One part per stretch between `changes` (ascending steps); a sample at a change belongs to what was before."""
        cuts = [0, *(bisect_right(self.steps, step) for step in changes), len(self.steps)]
        return [
            self._of(self.steps[left:right], self.values[left:right], self.steps_total, self.levels)
            for left, right in pairwise(cuts)
        ]

    def has_passed(self, share: float, index: int) -> bool:
        """Whether sample `index` lies at or beyond this share (0 to 1) of the budget; true without a budget."""
        return self.steps_total is None or self.steps[index] >= share * self.steps_total

    def may_act(self, index: int) -> bool:
        """Whether the run is old enough at sample `index` for any rule to act."""
        return self.has_passed(QUIET_SHARE, index)

    def horizon(self, index: int) -> int:
        """Within how many samples a recovery seen at sample `index` must be over."""
        return max(HORIZON_SAMPLES, int(HORIZON_SHARE * self.count_total(index)))

    def count_total(self, index: int) -> float:
        """How many samples the whole run will have, as seen at sample `index`; without a budget those so far."""
        if self.steps_total is None or index <= 0:
            return float(index)
        return index * self.steps_total / (self.steps[index] - self.steps[0])

    def scale(self, level: float) -> float:
        """What "n times `level`" is measured in: the level itself, or for a loss at or below zero, which has no ratios,
        the whole progress since the start. Zero or less: nothing can be said."""
        return level if level > 0 else max(-level, self.start_level - level)
