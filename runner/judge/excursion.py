"""The fast rule: a loss that leaves the level of the forty samples before, and stays away.

The baseline is frozen when the excursion begins, so that a bad level never becomes its own norm. The level is the
median of the last six samples: single spikes, four times the running median at small batches, do not move it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runner.judge.levels import Levels
from runner.judge.recovery import DOUBT, Spike, is_falling, is_recovering
from runner.judge.robust import MAD_TO_SIGMA, mad, median
from runner.judge.samples import Samples

BASELINE = 40
LEVEL = 6
# How often the baseline moves on while nothing happens.
REFRESH = 20
LEVELS: Levels = {
    # A rise by 60 % is outside what schedules and data order do to a loss; four raw deviations are six of a median of
    # six. Rises as shares of the baseline.
    "rise": 0.6,
    "deviations": 4.0,
    # A small rise is given twice the time of a large one before anything is concluded, and more doubt; where samples
    # are dense, either has some of all of them, for a spike that takes its time has more samples at its top.
    "large_rise": 1.5,
    # Ten times the baseline is more than spikes reach: what is there and does not fall fast is lost at once.
    "far_rise": 9.0,
}
PATIENCE, PATIENCE_LARGE, PATIENCE_SHARE = 20, 10, 0.016
DOUBT_LARGE, DOUBT_FAR = 1.5, 1.0
# "At once" is five samples, or a hundredth of all samples of the run.
FAR, FAR_SHARE = 5, 0.010
# Four samples past its peak a curve shows whether it falls; one that rises for thirty, or for a third of the time
# that a spike may take, is no spike.
PAST_PEAK = 4
GROWING = 30
# Whoever stays at three quarters of the peak has not fallen; the rest has fallen and stopped half-way.
PLATEAU_SHARE = 0.75
# The highest of noisy samples may be any of those that lie within its noise, so the way back is measured from the first
# of them, less the time that a spike may take to round its top.
NOISE_OF_PEAK = 2.0
LEAST_OF_PEAK = 0.5
TOP_SHARE = 0.004
# One of the last three samples above the peak of the medians, by more than noise does: perhaps the next, higher spike.
LATEST = 3
HIGHER_YET, HIGHER_YET_NOISE = 1.05, 4.0
# Below half of the threshold the excursion is over; after sixty samples, below the threshold is enough.
SETTLED = 60


@dataclass(frozen=True, slots=True)
class Unrecovered:
    """An excursion that is judged lost at sample `index`; `shape` is plateau, growing or no_recovery."""

    index: int
    shape: str
    evidence: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Baseline:
    """What an excursion is measured against; `scale` is the unit of ratios, `allowed` how far above is still normal,
    `noise` the relative scatter of its samples."""

    level: float
    scale: float
    allowed: float
    noise: float


def first_unrecovered(samples: Samples) -> Unrecovered | None:
    """The first sample at which an excursion above its frozen baseline can no longer be called a spike."""
    values, at = samples.values, BASELINE
    while at < len(values):
        baseline = _baseline(samples, at)
        until = min(at + REFRESH, len(values))
        begins = None if baseline is None else crossing(values, at, until, baseline)
        if baseline is None or begins is None:
            at = until
            continue
        outcome = follow(samples, begins, baseline, not_before=begins)
        if isinstance(outcome, Unrecovered):
            return outcome
        at = outcome
    return None


def crossing(values: Sequence[float], at: int, until: int, baseline: Baseline) -> int | None:
    """The first sample from `at` (at least five) up to `until` whose level is no longer normal."""
    bar = baseline.level + baseline.allowed
    return next((k for k in range(at, until) if median(values[k - LEVEL + 1 : k + 1]) > bar), None)


def follow(samples: Samples, begins: int, baseline: Baseline, *, not_before: int) -> Unrecovered | int:
    """Where the excursion that shows at sample `begins` is judged lost, or the sample after its end.

    Nothing is judged before sample `not_before`.
    """
    values, allowed = samples.values, baseline.allowed
    first = next(k for k in range(begins - LEVEL + 1, begins + 1) if values[k] > baseline.level + allowed)
    spike = Spike(began=first, peak_at=begins)
    for index in range(begins, len(values)):
        excess = median(values[index - LEVEL + 1 : index + 1]) - baseline.level
        over = index - first + 1
        if excess < allowed / 2 or (excess <= allowed and over >= SETTLED):
            return index + 1
        spike.follow(index, excess, rise=allowed)
        if excess <= allowed or index < not_before or not samples.may_act(index):
            continue
        if _is_far_gone(samples, index, baseline, index - spike.began + 1):
            return Unrecovered(index, "far", _evidence(samples, first, index, baseline, spike))
        is_look = _is_look(samples, index, index - spike.began + 1, excess, baseline)
        if is_look and not _comes_back(samples, index, baseline, spike):
            return Unrecovered(index, _shape(excess, spike, index), _evidence(samples, first, index, baseline, spike))
    return len(values)


def _baseline(samples: Samples, at: int) -> Baseline | None:
    """The forty samples before `at`; None, the usual and cheap answer, if nothing in the next ones can exceed it."""
    before = samples.values[at - BASELINE : at]
    level = median(before)
    scale = samples.scale(level)
    if scale <= 0:
        return None
    # A median of six exceeds a bar only if three of the six do: the third largest value decides, most often unsorted.
    allowed = samples.levels["rise"] * scale
    reach = samples.values[at - LEVEL + 1 : at + REFRESH]
    if max(reach) <= level + allowed or (third := sorted(reach)[-((LEVEL + 1) // 2)]) <= level + allowed:
        return None
    deviation = mad(before, level)
    allowed = max(allowed, samples.levels["deviations"] * deviation)
    return Baseline(level, scale, allowed, MAD_TO_SIGMA * deviation / scale) if third > level + allowed else None


def _is_look(samples: Samples, index: int, over: int, excess: float, baseline: Baseline) -> bool:
    """Whether to judge now: after the patience, then each time the excursion has grown by a tenth."""
    least = PATIENCE_LARGE if excess >= samples.levels["large_rise"] * baseline.scale else PATIENCE
    patience = max(least, int(PATIENCE_SHARE * samples.count_total(index)))
    return over >= patience and over % max(1, over // 10) == 0


def _climbs(values: Sequence[float], index: int, baseline: Baseline, spike: Spike) -> bool:
    """Whether the latest samples lie above what the medians have seen, so that nothing can be said of a way back."""
    higher = HIGHER_YET + HIGHER_YET_NOISE * baseline.noise
    return max(values[index - LATEST + 1 : index + 1]) - baseline.level > higher * spike.peak


def _comes_back(samples: Samples, index: int, baseline: Baseline, spike: Spike) -> bool:
    over, past_peak = index - spike.began + 1, index - spike.peak_at
    horizon = samples.horizon(index)
    longest = max(GROWING, horizon // 3)
    if over >= (longest if past_peak < PAST_PEAK else 2 * longest):
        window = longest  # long enough that neither the rise nor a wild maximum matters
    elif past_peak >= PAST_PEAK and not _climbs(samples.values, index, baseline, spike):
        window = min(index - _top(samples, index, baseline, spike) + 1, longest)
    else:
        return True
    excess = [value - baseline.level for value in samples.values[index - window + 1 : index + 1]]
    is_large = median(excess[-LEVEL // 2 :]) >= samples.levels["large_rise"] * baseline.scale
    doubt = DOUBT_LARGE if is_large else DOUBT
    if is_recovering(excess, allowed=baseline.allowed, horizon=horizon, over=over, noise=baseline.noise, doubt=doubt):
        return True
    return is_falling(excess, allowed=baseline.allowed, horizon=horizon, noise=baseline.noise)


def _top(samples: Samples, index: int, baseline: Baseline, spike: Spike) -> int:
    """The sample from which the way back is measured: the peak, or earlier where noise may have put it too late."""
    high = baseline.level + max(LEAST_OF_PEAK, 1.0 - NOISE_OF_PEAK * baseline.noise) * spike.peak
    reached = next((k for k in range(spike.began, spike.peak_at) if samples.values[k] >= high), spike.peak_at)
    return min(spike.peak_at, reached + int(TOP_SHARE * samples.count_total(index)))


def _is_far_gone(samples: Samples, index: int, baseline: Baseline, over: int) -> bool:
    """Whether the last samples all lie far beyond what spikes reach, and do not come down fast enough."""
    count = max(FAR, int(FAR_SHARE * samples.count_total(index)))
    tail = samples.values[max(0, index - count + 1) : index + 1]
    if len(tail) < count or min(tail) < baseline.level + samples.levels["far_rise"] * baseline.scale:
        return False
    excess, horizon = [value - baseline.level for value in tail], samples.horizon(index)
    return not is_recovering(
        excess, allowed=baseline.allowed, horizon=horizon, over=over, noise=baseline.noise, doubt=DOUBT_FAR
    )


def _shape(excess: float, spike: Spike, index: int) -> str:
    if index - spike.peak_at < PAST_PEAK:
        return "growing"
    return "plateau" if excess >= PLATEAU_SHARE * spike.peak else "no_recovery"


def _evidence(samples: Samples, first: int, index: int, baseline: Baseline, spike: Spike) -> Mapping[str, Any]:
    level = median(samples.values[index - LEVEL + 1 : index + 1])
    return {
        "reference_level": baseline.level,
        "level": level,
        "peak_level": baseline.level + spike.peak,
        "ratio": level / baseline.level if baseline.level > 0 else None,
        "first_step": samples.steps[first],
        "samples_over": index - first + 1,
    }
