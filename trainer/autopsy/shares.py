"""From scores to causes: differences between two checkpoints, their intervals, and what is to blame. Pure.

Delta(c) is the score at t+ minus the score at t* of one cell (weights, pass), sample by sample, signed so that above 0
is worse. Then

    weights   = Delta(raw, dense)
    averaging = Delta(ema, dense)  - Delta(raw, dense)
    guidance  = Delta(ema, guided) - Delta(ema, dense)      these three add up to Delta(ema, guided)
    routing   = Delta(raw, routed) - Delta(raw, dense)      apart

A share above 0 alone proves no harm: while the learning rate decays, raw weights catch up with their average, and the
average "loses" what it had been ahead. So a cause is blamed when its share is above the limit and, besides, either what
it makes has really fallen (its own Delta is above the limit) or it does harm at t+ (there its cell scores worse than
the cell without it, by more than the limit, which is how an average that stands still looks).

Shapes: S samples, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from trainer import randomness

RESAMPLES = 4000
LEVEL = 0.95
# A cause is blamed when it costs more than this share of the best score: below it, healthy runs differ too.
BLAMED_SHARE = 0.01
BOOTSTRAP_SEED = 0


class Cell(NamedTuple):
    """Whose weights (raw, ema, ema_alt), drawn in which pass (dense, routed, guided, w=1.5 …)."""

    weights: str
    drawn: str


class Means(NamedTuple):
    """Mean scores of one cell at t* and t+."""

    best: float
    stop: float


Paired = Mapping[Cell, Mapping[str, Means]]
"""Per cell and sample id: the score of that sample at t* and at t+, averaged over eval seeds; may be nan or inf."""

RAW_DENSE, EMA_DENSE, EMA_GUIDED = Cell("raw", "dense"), Cell("ema", "dense"), Cell("ema", "guided")
RAW_ROUTED = Cell("raw", "routed")
# A cause -> the cell whose Delta counts, and the cell whose Delta is taken off.
CAUSES: dict[str, tuple[Cell, Cell | None]] = {
    "weights": (RAW_DENSE, None),
    "averaging": (EMA_DENSE, RAW_DENSE),
    "guidance": (EMA_GUIDED, EMA_DENSE),
    "routing": (RAW_ROUTED, RAW_DENSE),
}
APART = ("routing",)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over `samples` samples and its 95 % interval; the bounds are nan where one sample is all there is."""

    mean: float
    low: float
    high: float
    samples: int


@dataclass(frozen=True, slots=True)
class Share:
    """What one cause adds, and whether it is blamed.

    `fall` is Delta of the cell in which the cause acts, `harm` how much worse that cell scores at t+ than the one
    without the cause (None for the weights, which nothing is without).
    """

    cause: str
    estimate: Estimate
    fall: Estimate
    harm: Estimate | None
    threshold: float

    @property
    def above_limit(self) -> bool:
        """Whether the share alone is above the limit."""
        return self.estimate.low > self.threshold

    @property
    def blamed(self) -> bool:
        """Whether the share is above the limit and what it makes has fallen, or does harm, by more than the limit."""
        harmful = self.harm is not None and self.harm.low > self.threshold
        return self.above_limit and (self.fall.low > self.threshold or harmful)


@dataclass(frozen=True, slots=True)
class Finding:
    """All that the scores say. `total` is Delta of the last cell that the shares add up to.

    `invalid` counts, per cell, the samples without a finite score at both steps.
    """

    best_score: float
    deltas: Mapping[Cell, Estimate]
    means: Mapping[Cell, Means]
    shares: tuple[Share, ...]
    total: Estimate | None
    invalid: Mapping[Cell, int]

    @property
    def threshold(self) -> float:
        """The least that counts, in units of the score."""
        return BLAMED_SHARE * abs(self.best_score)

    @property
    def blamed(self) -> tuple[str, ...]:
        """Names of the causes that are blamed; none is an answer too."""
        return tuple(share.cause for share in self.shares if share.blamed)


def find(scores: Paired, direction: str) -> Finding:
    """Deltas of all cells and shares of all causes. `direction` is min or max: which scores are better."""
    sign = 1.0 if direction == "min" else -1.0
    valid = {cell: {id: pair for id, pair in by_id.items() if _is_finite(pair)} for cell, by_id in scores.items()}
    scored = {cell: by_id for cell, by_id in valid.items() if by_id}
    means = {cell: _means(list(by_id.values())) for cell, by_id in scored.items()}
    deltas = {
        cell: estimate([sign * (pair.stop - pair.best) for pair in by_id.values()]) for cell, by_id in scored.items()
    }
    best_score = means[EMA_DENSE].best if EMA_DENSE in means else math.nan
    shares, total = _shares(scored, sign, BLAMED_SHARE * abs(best_score))
    invalid = {cell: len(by_id) - len(valid[cell]) for cell, by_id in scores.items()}
    return Finding(best_score, deltas, means, shares, total, invalid)


def estimate(values: Sequence[float]) -> Estimate:
    """The mean of paired differences with the percentile bootstrap interval over samples (Efron, 1979).

    Equally many values are always resampled alike, so intervals of one set of samples belong together. Raises
    ValueError without a value.
    """
    if not values:
        raise ValueError("no value to estimate a mean from")
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return Estimate(mean, math.nan, math.nan, len(values))
    generator = randomness.generator(BOOTSTRAP_SEED, "autopsy", len(values))
    chosen_RS = torch.randint(len(values), (RESAMPLES, len(values)), generator=generator)
    means_R = torch.tensor(values, dtype=torch.float64)[chosen_RS].mean(dim=1)
    outside = (1.0 - LEVEL) / 2.0
    low, high = means_R.quantile(torch.tensor([outside, 1.0 - outside], dtype=torch.float64)).tolist()
    return Estimate(mean, low, high, len(values))


def _shares(scored: Paired, sign: float, threshold: float) -> tuple[tuple[Share, ...], Estimate | None]:
    """Every share that can be had, over the samples that are valid in all of its cells and in those of the sum."""
    if RAW_DENSE not in scored or EMA_DENSE not in scored:
        return (), None
    summed = [cell for cell in (RAW_DENSE, EMA_DENSE, EMA_GUIDED) if cell in scored]
    common = _common(scored, summed)
    shares = []
    for cause, (cell, without) in CAUSES.items():
        ids = common if cell in summed else _common(scored, [*summed, cell])
        if cell in scored and ids:
            other = None if without is None else [scored[without][id] for id in ids]
            shares.append(_share(cause, [scored[cell][id] for id in ids], other, sign, threshold))
    total = [sign * (pair.stop - pair.best) for pair in (scored[summed[-1]][id] for id in common)]
    return tuple(shares), estimate(total) if total else None


def _share(cause: str, own: Sequence[Means], without: Sequence[Means] | None, sign: float, threshold: float) -> Share:
    """One cause from the scores of the cell in which it acts and of the cell without it, sample by sample."""
    fall = [sign * (pair.stop - pair.best) for pair in own]
    if without is None:
        return Share(cause, estimate(fall), estimate(fall), None, threshold)
    other = [sign * (pair.stop - pair.best) for pair in without]
    added = [mine - theirs for mine, theirs in zip(fall, other, strict=True)]
    harm = [sign * (mine.stop - theirs.stop) for mine, theirs in zip(own, without, strict=True)]
    return Share(cause, estimate(added), estimate(fall), estimate(harm), threshold)


def _common(scored: Paired, cells: Sequence[Cell]) -> list[str]:
    """Samples that are valid in all of these cells, in their own order."""
    return [id for id in scored[cells[0]] if all(id in scored.get(cell, {}) for cell in cells)]


def _is_finite(pair: Means) -> bool:
    return math.isfinite(pair.best) and math.isfinite(pair.stop)


def _means(pairs: Sequence[Means]) -> Means:
    count = len(pairs)
    return Means(math.fsum(pair.best for pair in pairs) / count, math.fsum(pair.stop for pair in pairs) / count)
