"""A training loss that went up and does not come back.

Three rules read the same samples, counted as logged (an arm that logs every tenth step has a tenth of them):
`excursion` sees a rise above the forty samples before it, `slow` a climb that no forty samples show, and `above_start` a
run that broke before there was a baseline. A spike is not death: none of them acts while the curve is on its way back.
Only ratios to the run's own curve are used, so losses of different formulas or scales are never compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from runner.judge.curves import Curves
from runner.judge.excursion import first_unrecovered
from runner.judge.recovery import is_recovering, log_noise
from runner.judge.robust import difference_mad, median
from runner.judge.samples import Samples
from runner.records import Finding, Series, Severity

# Events after which the loss is another quantity: its level before says nothing about its level after.
NEW_REGIMES = frozenset({"repa_off", "routing_off", "resolution", "lr_restart"})

# slow: three blocks of twenty samples (sixty in all) with their medians 1.5 x above the best sixty.
BLOCK = 20
BLOCKS_OVER = 3
SLOW_RATIO = 1.5
# The best of many noisy levels is too low by luck; eight standard errors keep a flat noisy curve below its own bar.
SLOW_NOISE = 8.0
# Standard deviation of a median of three relative to that of one.
MEDIAN_OF_THREE = 0.67

# above_start: the last twenty against the first five, after as many samples as show whether it comes back.
START = 5
START_LEVEL = 20
START_CONFIRM = 40
START_RATIO = 2.5
# Warm-up may lift a healthy loss above its start; it is over by then.
START_SHARE = 0.05
# Five noisy samples are a poor start level: the rise must also be four standard errors of the two medians apart.
START_NOISE = 4.0
# Looks at every fifth sample are enough for a level over twenty.
START_STRIDE = 5


@dataclass(frozen=True, slots=True)
class Trigger:
    """A rule's condition held for the first time at `index` of its samples."""

    index: int
    rule: str
    evidence: Mapping[str, Any] = field(default_factory=dict)


def detect(curves: Curves) -> tuple[Finding, ...]:
    """The first step at which the training loss had gone up for good."""
    loss = curves.loss()
    if loss is None:
        return ()
    for samples in _regimes(loss, curves):
        triggers = [found for rule in RULES if (found := rule(samples)) is not None]
        if triggers:
            return (_finding(loss.name, samples, min(triggers, key=lambda trigger: trigger.index)),)
    return ()


def _regimes(loss: Series, curves: Curves) -> list[Samples]:
    """The finite samples between declared changes of what the loss means."""
    finite = Samples.finite(loss, curves)
    changes = sorted({event.step for event in curves.events if event.event in NEW_REGIMES})
    return finite.split_after(changes)


def _excursion(samples: Samples) -> Trigger | None:
    found = first_unrecovered(samples)
    return None if found is None else Trigger(found.index, found.shape, found.evidence)


def _slow(samples: Samples) -> Trigger | None:
    """A level held for sixty samples at 1.5 x the lowest level held before."""
    values = samples.values
    blocks = [median(values[end - BLOCK : end]) for end in range(BLOCK, len(values) + 1, BLOCK)]
    levels = [median(blocks[max(0, k - BLOCKS_OVER + 1) : k + 1]) for k in range(len(blocks))]
    best, best_block, over = math.inf, 0, 0
    for block in range(2 * BLOCKS_OVER - 1, len(blocks)):
        if levels[block - BLOCKS_OVER] < best:
            best, best_block = levels[block - BLOCKS_OVER], block - BLOCKS_OVER
        rise = (SLOW_RATIO - 1) * samples.scale(best)
        over = over + 1 if blocks[block] >= best + rise > best else 0
        index = (block + 1) * BLOCK - 1
        if over < BLOCKS_OVER or not samples.may_act(index):
            continue
        error = MEDIAN_OF_THREE * difference_mad(blocks[max(0, best_block - BLOCK) : best_block + BLOCKS_OVER], 1)
        if levels[block] < best + SLOW_NOISE * error:
            continue
        if not _comes_back(samples, index, reference=best, allowed=rise, over=over * BLOCK):
            return Trigger(
                index,
                "slow",
                {
                    "best_level": best,
                    "best_step": samples.steps[(best_block + 1) * BLOCK - 1],
                    "level": levels[block],
                    "samples_over": over * BLOCK,
                },
            )
    return None


def _above_start(samples: Samples) -> Trigger | None:
    """The median of the last twenty at 2.5 x the median of the first five, and not falling back."""
    values = samples.values
    start = median(values[:START]) if len(values) >= START + START_CONFIRM else 0.0
    if start <= 0:
        return None
    bar = START_RATIO * start
    for first in range(START + START_CONFIRM - 1, len(values), BLOCK):
        # Half of the twenty must reach the bar, so a stretch whose maximum does not can be passed over.
        if max(values[first - START_LEVEL + 1 : first + BLOCK]) < bar:
            continue
        for index in range(first, min(first + BLOCK, len(values)), START_STRIDE):
            level = median(values[index - START_LEVEL + 1 : index + 1])
            if level >= bar and _is_above_start(samples, index, start, level):
                return Trigger(index, "above_start", {"start_level": start, "level": level, "ratio": level / start})
    return None


def _is_above_start(samples: Samples, index: int, start: float, level: float) -> bool:
    if not samples.has_passed(START_SHARE, index):
        return False
    noise = log_noise(samples.values[index - START_CONFIRM + 1 : index + 1], floor=start / 10)
    error = 1.25 * noise * math.sqrt(1 / START + 1 / START_LEVEL)  # a median's error is 1.25 times a mean's
    if math.log(level / start) < START_NOISE * error:
        return False
    return not _comes_back(samples, index, reference=start, allowed=(START_RATIO - 1) * start, over=index + 1 - START)


def _comes_back(samples: Samples, index: int, *, reference: float, allowed: float, over: int) -> bool:
    horizon = samples.horizon(index)
    window = min(over, max(START_CONFIRM, horizon // 4))
    excess = [value - reference for value in samples.values[index - window + 1 : index + 1]]
    return is_recovering(excess, allowed=allowed, horizon=horizon, over=over)


def _finding(metric: str, samples: Samples, trigger: Trigger) -> Finding:
    step = samples.steps[trigger.index]
    level = trigger.evidence["level"]
    reference = next(
        trigger.evidence[key] for key in ("baseline", "best_level", "start_level") if key in trigger.evidence
    )
    return Finding(
        detector="explosion",
        severity=Severity.ABORT,
        step=step,
        summary=f"{metric} rose from {reference:.4g} to {level:.4g} and does not come back (step {step}, {trigger.rule})",
        evidence={"metric": metric, "rule": trigger.rule, **_json_numbers(trigger.evidence)},
    )


def _json_numbers(evidence: Mapping[str, Any]) -> dict[str, Any]:
    """Overflowed ratios as the strings that non-finite values are everywhere."""
    return {
        key: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in evidence.items()
    }


RULES: Sequence[Callable[[Samples], Trigger | None]] = (_excursion, _above_start, _slow)
