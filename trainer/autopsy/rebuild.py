"""Another average of the weights, rebuilt from stored averages with one half-life.

E_k is the stored average after n_k updates with decay d. Between two of them lie Delta = n_k - n_(k-1) updates, and

    V_k = [(1 - d^n_k) E_k - d^Delta (1 - d^n_(k-1)) E_(k-1)] / (1 - d^Delta)

is the average of the weights of that interval alone. V_k weighted by what another decay gives to each interval is that
other average, as far as the stored intervals resolve it: inside an interval the profile stays that of d.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

# Half the summed absolute difference of two weight profiles, 0 to 1. Above this the rebuilt average would mix weights
# from other parts of the run than the one it is named after.
LARGEST_DISTANCE = 0.15


@dataclass(frozen=True, slots=True)
class Combination:
    """One factor per stored average, summing to 1, and how far the result's weight profile is from the wanted one."""

    factors: tuple[float, ...]
    distance: float


def combine(counts: Sequence[int], decay: float, target: float) -> Combination:
    """How to add up averages with `decay` after `counts` updates (ascending, from 1) to one with decay `target`.

    Both decays are per update, in (0, 1). The result stands after counts[-1] updates. Its distance is the total
    variation between the weights it really gives to the updates and those it should give.
    """
    total = counts[-1]
    factors, realised = [0.0] * len(counts), np.zeros(total)
    for index, (start, end) in enumerate(pairwise((0, *counts))):
        mass = (target ** (total - end) - target ** (total - start)) / (1.0 - target**total)
        inside = decay ** (end - start)
        factors[index] += mass * (1.0 - decay**end) / (1.0 - inside)
        if index:
            factors[index - 1] -= mass * inside * (1.0 - decay**start) / (1.0 - inside)
        realised[start:end] = mass * _profile(end - start, decay)
    return Combination(tuple(factors), 0.5 * float(np.abs(realised - _profile(total, target)).sum()))


def _profile(updates: int, decay: float) -> np.ndarray:
    """What each of `updates` weights counts in their average, oldest first; sums to 1."""
    ages = np.arange(updates - 1, -1, -1, dtype=np.float64)
    return (1.0 - decay) * decay**ages / (1.0 - decay**updates)
