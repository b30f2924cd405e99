"""A run that learns nothing while others do.

A run's own history cannot tell: a healthy baseline improved its reconstruction by 1.6 % in 5,000 steps. So a run is
compared with its siblings at the same share of their budgets, and with its own value at step 0 where it has one. A
slow run that still moves, or that will get near the others by the end, is left alone.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf

from runner.judge.curves import Curves, json_numbers
from runner.judge.evaluations import evaluations
from runner.judge.levels import Levels
from runner.judge.rise import JITTER_FEWEST, JITTER_FLOOR, noise_of, unit_of
from runner.judge.robust import MAD_TO_SIGMA, mad, median
from runner.records import Finding, Series, Severity

# Shares of |median value|: how far behind, what still counts as moving, and how far the others must have moved since.
# A plateau that waits for the learning rate to fall looks the same, but it begins later, the others gain less on it,
# and what it has yet to gain is less than `gap`. Near the end nothing is left to wait for, and `late_gap` is enough.
LEVELS: Levels = {"gap": 0.085, "late_gap": 0.05, "gain": 0.006, "moved": 0.055, "far_gap": 0.100, "step_0_gain": 0.010}
# Slow starts may be flat for more than a third of a run; whoever still moved after a third has not stalled.
FIRST_SHARE = 0.42
STEP_0_SHARE = 0.50
# Where schedules are near their end.
LATE_SHARE = 0.88
LATEST_MOVE_SHARE = 0.36
# Whoever gains less than this share of what the others gain will not get near them.
SLOW_SHARE = 0.10
STILL_TIMES = 1.2
# Far behind all of them, the gap says enough: they may have moved before the first validation.
FAR_SPREADS = 5.0
# Seen at two evaluations in a row; one may be a bad one.
CONFIRM = 2
# Two siblings show a difference, three show a norm.
SIBLINGS_WARN = 2
SIBLINGS_ABORT = 3


@dataclass(frozen=True, slots=True)
class _Progress:
    """One curve up to a share of its budget, lower is better: shares of the budget and values, in order; `decided` are
    the shares at whose arrival rules may act."""

    run: str
    shares: Sequence[float]
    values: Sequence[float]
    decided: Sequence[float]

    def upto(self, share: float) -> Sequence[float]:
        """The values that were there at this share of the budget."""
        return self.values[: bisect_right(self.shares, share + 1e-9)]

    def longest_pause(self, share: float, gain: float) -> float:
        """The longest stretch without a gain that ended with one, before this share: as a share of the budget."""
        longest, since, level = 0.0, 0.0, inf
        for at, value in zip(self.shares, self.upto(share), strict=False):
            if value <= level - gain * abs(value):
                longest, since, level = max(longest, at - since), at, value
        return longest

    def best(self, share: float) -> float | None:
        """The best value up to this share."""
        return min(self.upto(share), default=None)


def detect(curves: Curves, levels: Levels) -> tuple[Finding, ...]:
    """A warning beside two siblings, an abort beside three; for a run that is no better than at its step 0 an abort if
    siblings are, a warning if it is alone."""
    primary = curves.primary
    if primary is None or primary.metric not in curves.series or curves.steps_total is None:
        return ()
    sign = -1.0 if primary.direction == "max" else 1.0
    own = _progress("", curves.series[primary.metric], sign, curves.steps_total)
    siblings = [_progress(one.run, one.series, sign, one.steps_total) for one in curves.siblings]
    findings = []
    for seen in (_behind_siblings(own, siblings, levels), _as_at_step_0(own, siblings, levels)):
        held: list[dict[str, object]] = []
        for evidence in seen:
            held = [*held, evidence] if evidence else []
            if len(held) == CONFIRM:
                findings.append(_finding(primary.metric, held[-1], curves.steps_total))
                break
    return tuple(sorted(findings, key=lambda one: (one.severity is not Severity.ABORT, one.step))[:1])


def _progress(run: str, series: Series, sign: float, steps_total: int) -> _Progress:
    points = list(evaluations(series, steps_total))
    shares, values = [one.step / steps_total for one in points], [sign * one.value for one in points]
    return _Progress(run, shares, values, [share for share, one in zip(shares, points, strict=True) if one.is_decided])


def _behind_siblings(own: _Progress, siblings: Sequence[_Progress], levels: Levels) -> Iterator[dict[str, object]]:
    """For each evaluation after the first part of the run: the evidence of a stall then, empty if there is none."""
    for share in own.decided:
        if share < FIRST_SHARE:
            continue
        there = [one for one in siblings if one.shares and one.shares[-1] >= share - 1e-9]
        yield _stall_at(share, own, there, levels) if len(there) >= SIBLINGS_WARN else {}


def _stall_at(share: float, own: _Progress, there: Sequence[_Progress], levels: Levels) -> dict[str, object]:
    """What one evaluation shows; empty unless the run has stood still since early on while the others went past it."""
    best, scale = own.best(share), unit_of(own.upto(share))
    theirs = [found for one in there if (found := one.best(share)) is not None]
    if best is None or scale <= 0 or len(theirs) < SIBLINGS_WARN:
        return {}
    level = median(theirs)
    gap, spread = (best - level) / scale, MAD_TO_SIGMA * mad(theirs, level) / scale
    ahead = sum(one <= best for one in theirs)
    if ahead < len(theirs) - 1 or gap < max(levels["late_gap" if share >= LATE_SHARE else "gap"], spread):
        return {}
    # Where curves go down in stairs, standing still for as long as others did before a step means nothing.
    usual = _usual_pause(share, there, levels)
    for since in own.shares:
        before = own.best(since)
        early = [found for one in there if (found := one.best(since)) is not None]
        if since > LATEST_MOVE_SHARE or before is None or len(early) < SIBLINGS_WARN:
            continue
        gain, moved = (before - best) / scale, (median(early) - level) / scale
        is_passed = moved >= levels["moved"] and gain < max(levels["gain"], SLOW_SHARE * moved)
        is_far = ahead == len(theirs) and gap >= max(levels["far_gap"], FAR_SPREADS * spread)
        if share - since < STILL_TIMES * usual:
            return {}
        if is_passed or (is_far and gain < 2 * levels["gain"]):
            return {
                "rule": "siblings",
                "share": share,
                "still_since_share": since,
                "gap_percent": 100 * gap,
                "own_gain_percent": 100 * gain,
                "siblings_gain_percent": 100 * moved,
                "siblings": [one.run for one in there],
            }
    return {}


def _usual_pause(share: float, there: Sequence[_Progress], levels: Levels) -> float:
    """The second longest pause of the siblings before this share: one slow start among them is no custom."""
    pauses = sorted(one.longest_pause(share, levels["gain"]) for one in there)
    return pauses[-2] if len(pauses) > 1 else 0.0


def _as_at_step_0(own: _Progress, siblings: Sequence[_Progress], levels: Levels) -> Iterator[dict[str, object]]:
    """For each evaluation after half of the run: the evidence that nothing was learned since step 0."""
    if not own.shares or own.shares[0] > 0:
        return
    for share in own.decided:
        values = own.upto(share)
        best = own.best(share)
        scale = unit_of(values)
        if share < STEP_0_SHARE or len(values) < JITTER_FEWEST or best is None or scale <= 0:
            continue
        jitter = max(JITTER_FLOOR, noise_of(values) / scale)
        gain = (max(values) - best) / scale  # an untrained model may score well: what counts is any improvement
        there = [one for one in siblings if one.upto(share)]
        others = [(one.upto(share)[0] - min(one.upto(share))) / scale for one in there]
        do_others_learn = bool(others) and median(others) >= levels["far_gap"]
        do_others_learn = do_others_learn and share >= STILL_TIMES * _usual_pause(share, there, levels)
        if gain < max(levels["step_0_gain"], min(5 * jitter, levels["moved"])) and (do_others_learn or not others):
            yield {
                "rule": "step_0",
                "share": share,
                "own_gain_percent": 100 * gain,
                "siblings": [one.run for one in there],
            }
        else:
            yield {}


def _finding(metric: str, evidence: dict[str, object], steps_total: int) -> Finding:
    share = evidence.pop("share")
    assert isinstance(share, float)
    step = round(share * steps_total)
    named = evidence["siblings"]
    assert isinstance(named, list)
    if evidence["rule"] == "step_0":
        said = f"{metric} is no better than at step 0"
    else:
        said = f"{metric} stands still, {evidence['gap_percent']:.1f} % behind the median of {len(named)} siblings"
    is_sure = len(named) >= (1 if evidence["rule"] == "step_0" else SIBLINGS_ABORT)
    rounded = {key: round(value, 3) if isinstance(value, float) else value for key, value in evidence.items()}
    return Finding(
        detector="stall",
        severity=Severity.ABORT if is_sure else Severity.WARN,
        step=step,
        summary=f"{said} (step {step})",
        evidence=json_numbers({"metric": metric, **rounded}),
    )
