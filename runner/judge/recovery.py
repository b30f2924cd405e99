"""Is a curve that went up on its way back? Every loss spike is given the time it needs, as long as it uses it."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

from runner.judge.robust import difference_mad, median, theil_sen

# The trend is read from at most this many medians, so that its cost does not grow with the window.
BUCKETS = 12
# Two standard errors: the usual 95 % on one side or the other.
DOUBT = 2.0
# What "now" means: the median of the last ten samples ignores single spikes.
NOW = 10


def is_recovering(excess: Sequence[float], *, allowed: float, horizon: int, over: int) -> bool:
    """Whether the trend of `excess` leads back to `allowed` within `horizon` samples.

    `excess` is how far each of the last samples lies above what is normal, oldest first, at least two values in the unit
    of the curve; `allowed` > 0 is the excess that counts as normal again; `over` is for how many samples it has been too
    high. Up to `horizon` samples the curve has the benefit of the doubt: recovery has to be ruled out. After that the
    burden of proof turns round: recovery has to be shown.
    """
    level = median(excess[-NOW:])
    if level <= allowed:
        return True
    needed_slope = -math.log(level / allowed) / horizon
    slope, error = _log_trend(excess, floor=max(allowed / 10, sys.float_info.min))
    doubt = DOUBT * error
    return slope - doubt <= needed_slope if over < horizon else slope + doubt <= needed_slope


def log_noise(values: Sequence[float], floor: float) -> float:
    """Standard deviation of the log of a noisy positive curve around its own trend; values below `floor` count as it."""
    return difference_mad([math.log(max(value, floor)) for value in values], 1)


def _log_trend(excess: Sequence[float], floor: float) -> tuple[float, float]:
    """Slope of log(excess) per sample, and its standard error as that of a straight-line fit under white noise."""
    count = len(excess)
    logs = [math.log(max(value, floor)) for value in excess]
    buckets = min(BUCKETS, max(2, count // 2))
    edges = [count * k // buckets for k in range(buckets + 1)]
    centres = [(left + right - 1) / 2 for left, right in zip(edges, edges[1:], strict=False)]
    medians = [median(logs[left:right]) for left, right in zip(edges, edges[1:], strict=False)]
    error = difference_mad(logs, 1) * math.sqrt(12 / count**3)
    return theil_sen(centres, medians), error
