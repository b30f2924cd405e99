"""Small robust statistics on the standard library: the controller must stay light, so no numpy here.

Every function takes finite values and tolerates overflow to infinity; none of them raises on large numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from statistics import median

__all__ = ["difference_mad", "differences_of", "mad", "median", "theil_sen"]

# A normal distribution's standard deviation is this many median absolute deviations.
MAD_TO_SIGMA = 1.4826
# Variance of the d-th difference of unit white noise: the sum of squared binomials, (2d over d).
DIFFERENCE_VARIANCE = {1: 2.0, 2: 6.0, 3: 20.0, 4: 70.0}


def mad(values: Sequence[float], centre: float) -> float:
    """Median absolute deviation from `centre`, in the unit of the values (not scaled to a standard deviation)."""
    return median([abs(value - centre) for value in values])


def difference_mad(values: Sequence[float], order: int) -> float:
    """Noise standard deviation of a smooth curve, from the median size of its differences of `order` 1 to 4.

    Differences remove a polynomial trend of degree `order` - 1, so a steep but smooth curve counts as quiet.
    Needs more than `order` values.
    """
    return MAD_TO_SIGMA * mad(differences_of(values, order), 0.0) / float(DIFFERENCE_VARIANCE[order] ** 0.5)


def differences_of(values: Sequence[float], order: int) -> list[float]:
    """The differences of neighbours, taken `order` times: as many fewer than there are values."""
    differences = list(values)
    for _ in range(order):
        differences = [right - left for left, right in pairwise(differences)]
    return differences


def theil_sen(x: Sequence[float], y: Sequence[float]) -> float:
    """Median slope over all pairs, in units of y per unit of x; x strictly increasing, at least two points.

    Theil (1950), Sen (1968): up to 29 % of the points may be arbitrarily wrong. Quadratic in the number of points.
    """
    count = len(x)
    return median([(y[j] - y[i]) / (x[j] - x[i]) for i in range(count) for j in range(i + 1, count)])
