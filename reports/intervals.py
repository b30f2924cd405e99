"""Intervals and tests over held-out samples and over training seeds. Pure: the same input gives the same numbers.

Resampling indices come from the raw stream of a counter-based generator (Philox) keyed by a text, so they depend on
neither the machine, nor the library's version, nor on how many intervals were computed before.

Shapes: S samples, R resamples.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 4000
MOST_SEEDS = 20  # 2 ** 20 sign patterns are still exact and quick

FloatArray = NDArray[np.float64]
IndexArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean of differences with its bounds. `count` is the number of samples (or of seeds when hierarchical)."""

    mean: float
    low: float
    high: float
    count: int
    kind: str

    @property
    def includes_zero(self) -> bool:
        """Whether no difference at all is inside the bounds."""
        return self.low <= 0.0 <= self.high


def paired_bootstrap(
    differences: Sequence[float], key: str, level: float = 0.95, resamples: int = RESAMPLES
) -> Interval | None:
    """Bias-corrected and accelerated (BCa) bootstrap interval of a mean of paired differences.

    Source: Efron, "Better bootstrap confidence intervals", JASA 82 (1987). `key` seeds the resampling.
    Returns None with fewer than two differences. Raises ValueError when a difference is not finite.
    """
    values_S = _finite(differences)
    if len(values_S) < 2:
        return None
    means_R = np.sort(_resampled_means(values_S, key, resamples))
    centre = _mean(values_S)
    low, high = _bca_levels(values_S, means_R, centre, level)
    return Interval(centre, _quantile(means_R, low), _quantile(means_R, high), len(values_S), "samples")


def hierarchical_bootstrap(
    differences_by_seed: Sequence[Sequence[float]], key: str, level: float = 0.95, resamples: int = RESAMPLES
) -> Interval | None:
    """Percentile interval of the mean over seeds: seeds are drawn with replacement, then samples within each.

    Returns None with fewer than two seeds or a seed without samples. Raises ValueError when a difference is not
    finite.
    """
    seeds = [_finite(differences) for differences in differences_by_seed]
    if len(seeds) < 2 or any(len(values_S) == 0 for values_S in seeds):
        return None
    draws = len(seeds)
    chosen_DR = _indices(f"{key}/seeds", (draws, resamples), draws)
    total_R = np.zeros(resamples)
    for draw in range(draws):
        # Each place of the resampled study draws its own samples, even when one seed takes several places.
        for index, values_S in enumerate(seeds):
            means_R = _resampled_means(values_S, f"{key}/draw {draw}/seed {index}", resamples)
            total_R += np.where(chosen_DR[draw] == index, means_R, 0.0)
    means_R = np.sort(total_R / draws)
    centre = math.fsum(_mean(values_S) for values_S in seeds) / draws
    tail = (1.0 - level) / 2.0
    return Interval(centre, _quantile(means_R, tail), _quantile(means_R, 1.0 - tail), draws, "seeds, then samples")


def sign_flip(differences: Sequence[float]) -> float | None:
    """Exact two-sided sign-flip test of per-seed differences: the share of the 2^n sign patterns whose sum is at
    least as far from zero as the observed one. The smallest value possible is 2 / 2^n.

    Returns None without differences or with more than 20. Raises ValueError when a difference is not finite.
    """
    values = _finite(differences)
    if not 1 <= len(values) <= MOST_SEEDS:
        return None
    sums = np.zeros(1)
    for value in values:
        sums = np.concatenate([sums + value, sums - value])
    # Sums of the same terms in another order differ in their last bits: such ties must count.
    observed = abs(float(sums[0])) * (1.0 - 1e-12)
    return float(np.count_nonzero(np.abs(sums) >= observed)) / len(sums)


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """p values adjusted for having asked several questions at once, in the order given.

    Source: Holm, "A simple sequentially rejective multiple test procedure", Scand. J. Statist. 6 (1979).
    """
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return tuple(adjusted)


def _finite(values: Sequence[float]) -> FloatArray:
    array = np.asarray(values, dtype=np.float64)
    if not bool(np.isfinite(array).all()):
        raise ValueError("differences must be finite; leave samples without a valid score out of the pairing")
    return array


def _mean(values: FloatArray) -> float:
    return math.fsum(values.tolist()) / len(values)


def _indices(key: str, shape: tuple[int, int], below: int) -> IndexArray:
    seed = int.from_bytes(hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()[:16], "big")
    raw = np.random.Philox(key=seed).random_raw(shape[0] * shape[1])
    return (raw % np.uint64(below)).astype(np.int64).reshape(shape)


def _resampled_means(values_S: FloatArray, key: str, resamples: int) -> FloatArray:
    chosen_SR = _indices(key, (len(values_S), resamples), len(values_S))
    # Summing over the first axis adds row after row, in one order on every machine.
    means_R: FloatArray = values_S[chosen_SR].sum(axis=0) / len(values_S)
    return means_R


def _bca_levels(values_S: FloatArray, means_R: FloatArray, centre: float, level: float) -> tuple[float, float]:
    """The two quantile levels after correction for bias and for skew (acceleration, by the jackknife)."""
    tail = (1.0 - level) / 2.0
    below = (np.count_nonzero(means_R < centre) + np.count_nonzero(means_R <= centre)) / (2 * len(means_R))
    deviations = values_S - centre
    squares = math.fsum((deviations**2).tolist())
    if not 0.0 < below < 1.0 or squares == 0.0:
        return tail, 1.0 - tail
    acceleration = math.fsum((deviations**3).tolist()) / (6.0 * squares**1.5)
    normal = NormalDist()
    bias = normal.inv_cdf(below)

    def corrected(share: float) -> float:
        shifted = bias + normal.inv_cdf(share)
        return normal.cdf(bias + shifted / (1.0 - acceleration * shifted))

    return corrected(tail), corrected(1.0 - tail)


def _quantile(sorted_R: FloatArray, share: float) -> float:
    """Linear interpolation between order statistics; exact for equal neighbours."""
    position = share * (len(sorted_R) - 1)
    lower = math.floor(position)
    upper = min(lower + 1, len(sorted_R) - 1)
    low, high = float(sorted_R[lower]), float(sorted_R[upper])
    return low + (high - low) * (position - lower)
