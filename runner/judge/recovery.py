"""Is a curve that went up on its way back? Every loss spike is given the time it needs, as long as it uses it."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from runner.judge.robust import difference_mad, median, theil_sen

# The trend is read from at most this many medians, so that its cost does not grow with the window.
BUCKETS = 12
# Standard errors of the trend. Many looks at one spike make the usual two too few.
DOUBT = 3.0
# The slope of seven samples scatters half as much again as the formula for many says.
SMALL_SAMPLE = 4
# What "now" means: the median of the last six samples ignores single spikes.
NOW = 6
# A curve that has come down to three quarters of its peak is on its way back; a new spike on top of the first starts
# the clock again, and every further one that came after a fall to half the peak before it.
FALLEN = 0.75
FALLEN_AGAIN = 0.5
# How many of the newest samples may show by themselves that the curve falls, and with how many standard errors: it
# only puts a verdict off.
NEWEST = (3, 4, 6, 9, 14)
SHOWN = 2.0
# Noise on a plateau reaches a new maximum all the time; a peak is only moved by a clearly higher one.
HIGHER = 1.05


@dataclass(slots=True)
class Spike:
    """The rise under way: where it began, and its highest and its latest lowest excess since, all in sample counts."""

    began: int
    peak_at: int
    peak: float = -math.inf
    trough: float = math.inf
    is_second: bool = False

    def follow(self, index: int, excess: float, *, rise: float) -> None:
        """Takes in the next level; a second spike counts as one if it rises by at least `rise` from the way back."""
        fallen = FALLEN_AGAIN if self.is_second else FALLEN
        is_new = self.trough <= fallen * self.peak and excess >= self.trough + rise
        if is_new:
            self.began, self.is_second = index, True
        if is_new or excess > max(self.peak, HIGHER * self.peak):
            self.peak_at, self.peak, self.trough = index, excess, excess
        else:
            self.trough = min(self.trough, excess)


def is_recovering(
    excess: Sequence[float], *, allowed: float, horizon: int, over: int, noise: float = 0.0, doubt: float = DOUBT
) -> bool:
    """Whether the trend of `excess` leads back to `allowed` within `horizon` samples.

    `excess` is how far each of the last samples lies above what is normal, oldest first, at least two values in the
    unit of the curve; `allowed` > 0 is the excess that counts as normal again; `over` is for how many samples it has
    been too high; `noise` is the relative noise of the curve where known, for ten samples alone may look quiet by luck;
    `doubt` is how many standard errors of the trend count in its favour.
    Up to `horizon` samples the curve has the benefit of the doubt: recovery has to be ruled out. After
    that the burden of proof turns round: recovery has to be shown.
    """
    level = median(excess[-NOW:])
    if level <= allowed:
        return True
    needed_slope = -math.log(level / allowed) / horizon
    slope, error = _log_trend(excess, allowed / 10, noise, order=1)
    doubt *= error
    return slope - doubt <= needed_slope if over < horizon else slope + doubt <= needed_slope


def is_falling(excess: Sequence[float], *, allowed: float, horizon: int, noise: float) -> bool:
    """Whether the last few samples alone show a recovery, whatever came before them: a spike on top of a spike."""
    for newest in (excess[-count:] for count in NEWEST if count <= len(excess)):
        slope, error = _log_trend(newest, allowed / 10, noise, order=2)
        if slope + SHOWN * error <= -math.log(max(1.0, median(newest) / allowed)) / horizon:
            return True
    return False


def log_noise(values: Sequence[float], floor: float) -> float:
    """Standard deviation of the log of a noisy positive curve around its trend; values below `floor` count as it."""
    return difference_mad(_logs(values, floor), 1)


def _log_trend(excess: Sequence[float], floor: float, noise: float, order: int) -> tuple[float, float]:
    """Slope of log(excess) per sample, and its standard error as that of a straight-line fit under white noise.

    The noise is at least `noise`, and that of the differences of this order: of order 1 the trend itself counts too.
    """
    count = len(excess)
    logs = _logs(excess, floor)
    buckets = min(BUCKETS, max(2, count // 2))
    edges = [count * k // buckets for k in range(buckets + 1)]
    centres = [(left + right - 1) / 2 for left, right in pairwise(edges)]
    medians = [median(logs[left:right]) for left, right in pairwise(edges)]
    error = max(noise, difference_mad(logs, order)) * math.sqrt(12 / count**3) * (1 + SMALL_SAMPLE / count)
    return theil_sen(centres, medians), error


def _logs(values: Sequence[float], floor: float) -> list[float]:
    least = max(floor, sys.float_info.min)  # a tenth of the smallest number is zero
    return [math.log(max(value, least)) for value in values]
