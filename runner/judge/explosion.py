"""A training loss that went up and does not come back.

Three rules read the same samples, counted as logged (an arm that logs every tenth step has a tenth of them): one sees
a rise above the forty samples before it, `slow` a climb that no forty samples show, and `above_start` a run that broke
before there was a baseline. A spike is not death: none of them acts while the curve is on its way back.
Only ratios to the run's own curve are used, so losses of different formulas or scales are never compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runner.judge.curves import Curves, json_numbers
from runner.judge.excursion import LEVEL, Baseline, Unrecovered, crossing, first_unrecovered, follow
from runner.judge.excursion import LEVELS as EXCURSION_LEVELS
from runner.judge.levels import Levels
from runner.judge.recovery import Spike, is_falling, is_recovering, log_noise
from runner.judge.robust import difference_mad, median
from runner.judge.samples import Samples
from runner.records import Finding, Series, Severity

# slow: blocks of twenty samples, for sixty samples or half the time that a spike may take, 1.5 x above the best sixty.
BLOCK = 20
BEST_BLOCKS = 3
# A leap is half as much again within ten samples, seen in medians of five; some forty of them are up to five standard
# errors apart by luck.
SHORT = 5
LEAP = 1.5
LEAP_DEVIATIONS = 5.0
# The best of many noisy levels is too low by luck; ten standard errors keep a flat noisy curve below its own bar.
# Standard deviation of a median of three relative to that of one.
MEDIAN_OF_THREE = 0.67

# above_start: the last twenty against the first five, once there are as many samples as the fast rule needs to exist.
START = 5
START_LEVEL = 20
START_CONFIRM = 45
# Warm-up may lift a healthy loss above its start; it is over by then. Five noisy samples are a poor start level, so the
# rise must also be four standard errors of the two medians.
START_SHARE = 0.05
# exp() of more than this overflows.
LARGEST_EXPONENT = 700.0

# Rises as shares of the level that they start from, deviations in standard errors of what is compared.
LEVELS: Levels = {
    **EXCURSION_LEVELS,
    "slow_rise": 0.5,
    "slow_deviations": 10.0,
    "start_rise": 1.5,
    "start_deviations": 4.0,
}


@dataclass(frozen=True, slots=True)
class Trigger:
    """A rule's condition held for the first time at `index` of its samples."""

    index: int
    rule: str
    evidence: Mapping[str, Any]


def detect(curves: Curves, levels: Levels) -> tuple[Finding, ...]:
    """The first step at which the training loss had gone up for good."""
    loss = curves.loss()
    if loss is None:
        return ()
    for samples in _regimes(loss, curves, levels):
        triggers = [found for rule in RULES if (found := rule(samples)) is not None]
        if triggers:
            return (_finding(loss.name, samples, min(triggers, key=lambda trigger: trigger.index)),)
    return ()


def _regimes(loss: Series, curves: Curves, levels: Levels) -> list[Samples]:
    """The finite samples between declared changes of what the loss means."""
    return Samples.finite(loss, curves, levels).split_after(curves.regime_changes())


def _excursion(samples: Samples) -> Trigger | None:
    found = first_unrecovered(samples)
    return None if found is None else Trigger(found.index, found.shape, found.evidence)


def _above_start(samples: Samples) -> Trigger | None:
    """A run that broke before it had a baseline: the median of the last twenty at 2.5 x the median of the first five.

    From there on it is an excursion like any other, measured against the start; once it has come back below, the rules
    that compare with a baseline are in charge.
    """
    values = samples.values
    if len(values) < START_CONFIRM or samples.start_level <= 0:
        return None
    start = samples.start_level
    noise = log_noise(values[:START_CONFIRM], floor=start / 10)
    error = 1.25 * noise * math.sqrt(1 / START + 1 / START_LEVEL)  # a median's error is 1.25 times a mean's
    deviations = samples.levels["start_deviations"] * error
    ratio = max(1.0 + samples.levels["start_rise"], math.exp(min(deviations, LARGEST_EXPONENT)))
    if median(values[START_CONFIRM - START_LEVEL : START_CONFIRM]) < ratio * start:
        return None
    baseline = Baseline(start, start, (ratio - 1) * start, noise)
    late = next((k for k in range(START_CONFIRM - 1, len(values)) if samples.has_passed(START_SHARE, k)), len(values))
    at = LEVEL - 1
    while at < START_CONFIRM and (begins := crossing(values, at, START_CONFIRM, baseline)) is not None:
        outcome = follow(samples, begins, baseline, not_before=late)
        if isinstance(outcome, Unrecovered):
            return Trigger(outcome.index, "above_start", outcome.evidence)
        at = outcome
    return None


def _slow(samples: Samples) -> Trigger | None:
    """A level held at 1.5 x the lowest level of sixty samples held before."""
    values = samples.values
    blocks = [median(values[end - BLOCK : end]) for end in range(BLOCK, len(values) + 1, BLOCK)]
    levels = [median(blocks[k - BEST_BLOCKS + 1 : k + 1]) for k in range(BEST_BLOCKS - 1, len(blocks))]
    best, best_at, spike = math.inf, 0, None
    for at in range(BEST_BLOCKS, len(blocks)):
        if levels[at - BEST_BLOCKS] < best:
            best, best_at = levels[at - BEST_BLOCKS], at - 1
        rise = samples.levels["slow_rise"] * samples.scale(best)
        excess = blocks[at] - best
        if not excess >= rise > 0:
            spike = None
            continue
        spike = spike or Spike(began=at, peak_at=at)
        spike.follow(at, excess, rise=rise)
        index = (at + 1) * BLOCK - 1
        error = _level_error(blocks, best_at)
        if _is_held(samples, index, at, spike) and excess >= samples.levels["slow_deviations"] * error:
            over = (at - spike.began + 1) * BLOCK
            window = min(over, (at - spike.peak_at + 1) * BLOCK, max(2 * BLOCK, samples.horizon(index) // 4))
            tail = [value - best for value in values[index + 1 - window : index + 1]]
            if not _is_spike(values[index + 1 - 2 * BLOCK : index + 1], best, rise, samples.horizon(index)) and not (
                is_recovering(tail, allowed=rise, horizon=samples.horizon(index), over=over)
            ):
                return Trigger(index, "slow", _slow_evidence(samples, best, best_at, blocks[at], over))
    return None


def _is_spike(newest: Sequence[float], best: float, rise: float, horizon: int) -> bool:
    """Whether the last two blocks hold a leap, or the way back from one: for the rules that know how long a spike may
    take. A climb that is slow does neither."""
    noise = log_noise(newest, floor=best / 10)
    excess = [median(newest[end - SHORT : end]) - best for end in range(SHORT, len(newest) + 1)]
    error = noise * median(newest) / math.sqrt(SHORT)
    for before, after in zip(excess, excess[BLOCK // 2 :], strict=False):
        if after > LEAP * max(before, rise) + LEAP_DEVIATIONS * error:
            return True
    return is_falling([value - best for value in newest], allowed=rise, horizon=horizon, noise=noise)


def _is_held(samples: Samples, index: int, at: int, spike: Spike) -> bool:
    """Whether the level has been too high for long enough to judge it."""
    needed = max(BEST_BLOCKS * BLOCK, samples.horizon(index) // 2)
    return (at - spike.began + 1) * BLOCK >= needed and samples.may_act(index)


def _level_error(blocks: Sequence[float], best_at: int) -> float:
    """Standard error of a level of sixty samples, from how the blocks around the best one scatter."""
    return MEDIAN_OF_THREE * difference_mad(blocks[max(0, best_at - BLOCK) : best_at + 1], 1)


def _slow_evidence(samples: Samples, best: float, best_at: int, level: float, over: int) -> Mapping[str, Any]:
    return {
        "reference_level": best,
        "reference_step": samples.steps[(best_at + 1) * BLOCK - 1],
        "level": level,
        "ratio": level / best if best > 0 else None,
        "samples_over": over,
    }


def _finding(metric: str, samples: Samples, trigger: Trigger) -> Finding:
    step = samples.steps[trigger.index]
    level = trigger.evidence["level"]
    reference = trigger.evidence["reference_level"]
    return Finding(
        detector="explosion",
        severity=Severity.ABORT,
        step=step,
        summary=f"{metric} rose from {reference:.4g} to {level:.4g} and stays up (step {step}, {trigger.rule})",
        evidence={"metric": metric, "rule": trigger.rule, **json_numbers(trigger.evidence)},
    )


RULES: Sequence[Callable[[Samples], Trigger | None]] = (_excursion, _above_start, _slow)
