"""The fast rule: a loss that leaves the level of the forty samples before, and stays away.

The baseline is frozen when the excursion begins, so that a bad level never becomes its own norm. The level is the median
of the last ten samples: single spikes, four times the running median at small batches, do not move it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runner.judge.recovery import is_recovering
from runner.judge.robust import mad, median
from runner.judge.samples import Samples

BASELINE = 40
LEVEL = 10
# How often the baseline moves on while nothing happens.
REFRESH = 20
# Above 1.6 x is outside what schedules and data order do to a loss; four raw deviations are seven of a median of ten.
RATIO = 1.6
DEVIATIONS = 4.0
# A small rise is given twice the time of a large one before anything is concluded.
LARGE_RATIO = 2.5
PATIENCE_LARGE = 10
PATIENCE = 20
# Six samples past its peak a curve shows whether it falls; one that rises for thirty is no spike.
PAST_PEAK = 6
GROWING = 30
# Whoever stays at three quarters of the peak has not fallen; the rest has fallen and stopped half-way.
PLATEAU_SHARE = 0.75
# Below half of the threshold the excursion is over; after sixty samples, below the threshold is enough.
SETTLED = 60


@dataclass(frozen=True, slots=True)
class Unrecovered:
    """An excursion that is judged lost at sample `index`; `shape` is plateau, growing or no_recovery."""

    index: int
    shape: str
    evidence: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Baseline:
    level: float
    scale: float
    deviation: float

    @property
    def allowed(self) -> float:
        """How far above the baseline is still normal, in the unit of the loss."""
        return max((RATIO - 1) * self.scale, DEVIATIONS * self.deviation)


def first_unrecovered(samples: Samples) -> Unrecovered | None:
    """The first sample at which an excursion above its frozen baseline can no longer be called a spike."""
    values, at = samples.values, BASELINE
    while at < len(values):
        baseline = _baseline(samples, at)
        until = min(at + REFRESH, len(values))
        begins = None if baseline is None else _crossing(values, at, until, baseline)
        if baseline is None or begins is None:
            at = until
            continue
        outcome = _follow(samples, begins, baseline)
        if isinstance(outcome, Unrecovered):
            return outcome
        at = outcome
    return None


def _baseline(samples: Samples, at: int) -> _Baseline | None:
    """The forty samples before `at`; None if nothing in the next ones can exceed it, which is the usual, cheap answer."""
    before = samples.values[at - BASELINE : at]
    level = median(before)
    scale = samples.scale(level)
    if scale <= 0:
        return None
    # A median of ten exceeds a bar only if five of the ten do: the fifth largest value decides, before any deviation.
    reach = samples.values[at - LEVEL + 1 : at + REFRESH]
    bar = level + (RATIO - 1) * scale
    if max(reach) <= bar or sorted(reach)[-min(5, len(reach))] <= bar:
        return None
    return _Baseline(level, scale, mad(before, level))


def _crossing(values: Sequence[float], at: int, until: int, baseline: _Baseline) -> int | None:
    bar = baseline.level + baseline.allowed
    return next((k for k in range(at, until) if median(values[k - LEVEL + 1 : k + 1]) > bar), None)


def _follow(samples: Samples, begins: int, baseline: _Baseline) -> Unrecovered | int:
    """Where the excursion that shows at sample `begins` is judged lost, or the sample after its end."""
    values, allowed = samples.values, baseline.allowed
    bar = baseline.level + allowed
    first = next(k for k in range(begins - LEVEL + 1, begins + 1) if values[k] > bar)
    peak, peak_at = float("-inf"), begins
    for index in range(begins, len(values)):
        level = median(values[index - LEVEL + 1 : index + 1])
        over = index - first + 1
        if level < baseline.level + allowed / 2 or (level <= bar and over >= SETTLED):
            return index + 1
        if level > peak:
            peak, peak_at = level, index
        patience = PATIENCE_LARGE if level - baseline.level >= (LARGE_RATIO - 1) * baseline.scale else PATIENCE
        if level <= bar or over < patience or not samples.may_act(index) or over % max(1, over // 10):
            continue
        if not _comes_back(samples, index, baseline, over=over, past_peak=index - peak_at):
            shape = _shape(level - baseline.level, peak - baseline.level, past_peak=index - peak_at)
            return Unrecovered(index, shape, _evidence(samples, first, over, baseline, level, peak))
    return len(values)


def _comes_back(samples: Samples, index: int, baseline: _Baseline, *, over: int, past_peak: int) -> bool:
    horizon = samples.horizon(index)
    longest = max(GROWING, horizon // 4)
    if past_peak >= PAST_PEAK:
        window = min(past_peak + LEVEL // 2, longest)  # the level's peak lags the samples' by half its width
    elif over >= GROWING:
        window = min(over, longest)
    else:
        return True
    excess = [value - baseline.level for value in samples.values[index - window + 1 : index + 1]]
    return is_recovering(excess, allowed=baseline.allowed, horizon=horizon, over=over)


def _shape(excess: float, peak_excess: float, *, past_peak: int) -> str:
    if past_peak < PAST_PEAK:
        return "growing"
    return "plateau" if excess >= PLATEAU_SHARE * peak_excess else "no_recovery"


def _evidence(
    samples: Samples, first: int, over: int, baseline: _Baseline, level: float, peak: float
) -> Mapping[str, Any]:
    return {
        "baseline": baseline.level,
        "baseline_deviation": baseline.deviation,
        "level": level,
        "peak_level": peak,
        "ratio": level / baseline.level if baseline.level > 0 else None,
        "first_step": samples.steps[first],
        "samples_over": over,
    }
