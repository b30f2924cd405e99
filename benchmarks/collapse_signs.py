"""The leading indicators of a run as single curves, and a rule that says when one leaves healthy seeds. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from runner.records import Series

Curve = dict[int, float]
"""Step -> value."""
All = Mapping[str, Series]

QUANTILE = 1.645  # one-sided 95 % of a normal distribution
WARM_SHARE = 0.10  # of the run: warm-up and the first moments
IN_A_ROW = 5  # readings beyond the bound, as in the judge's own rules
IN_A_ROW_AT_VALIDATIONS = 2


@dataclass(frozen=True, slots=True)
class Sign:
    """One indicator: which way is bad (+1 up, -1 down), whether it comes with validations only, and whether it is
    compared as a ratio (else as a difference, because it may be 0 or below)."""

    name: str
    bad: int
    of: Callable[[All, int], Curve]
    at_validations: bool = False
    is_ratio: bool = True


def _curve(series: Series | None) -> Curve:
    if series is None:
        return {}
    return {step: value for step, value in zip(series.steps, series.values, strict=True) if math.isfinite(value)}


def _blocks(series: All, depth: int, indicator: str) -> tuple[list[Curve], list[Curve]]:
    """The curves of the blocks that TREAD routes in these studies, all but the first and the last, and of those two."""
    curves = [_curve(series.get(f"opt/block_{index:02d}/{indicator}")) for index in range(depth)]
    return curves[1:-1], [curves[0], curves[-1]]


def _over(curves: Sequence[Curve], together: Callable[[list[float]], float]) -> Curve:
    steps = set.intersection(*(set(curve) for curve in curves))
    return {step: together([curve[step] for curve in curves]) for step in sorted(steps)}


def _routed(indicator: str) -> Callable[[All, int], Curve]:
    """Median over the routed blocks."""
    return lambda series, depth: _over(_blocks(series, depth, indicator)[0], median)


def _routed_by_dense(indicator: str) -> Callable[[All, int], Curve]:
    """Mean over the routed blocks by the mean over the dense ones; for an arm without routing, over the same blocks."""

    def of(series: All, depth: int) -> Curve:
        routed, dense = (_over(curves, fmean) for curves in _blocks(series, depth, indicator))
        return {step: value / dense[step] for step, value in routed.items() if dense.get(step)}

    return of


def _mean_over(indicator: str, *, is_routed: bool) -> Callable[[All, int], Curve]:
    """Mean over the routed blocks, or over the dense ones."""
    return lambda series, depth: _over(_blocks(series, depth, indicator)[0 if is_routed else 1], fmean)


def _named(name: str) -> Callable[[All, int], Curve]:
    return lambda series, depth: _curve(series.get(name))


SIGNS = (
    Sign("I1 rms_ratio", 1, _routed("rms_ratio")),
    Sign("I2 second_moment, routed / dense", -1, _routed_by_dense("second_moment")),
    Sign("I2 second_moment, routed", -1, _mean_over("second_moment", is_routed=True)),
    Sign("I2 second_moment, dense", 1, _mean_over("second_moment", is_routed=False)),
    Sign("I2 second_moment_decay", -1, _routed("second_moment_decay")),
    Sign("I3 update_to_weight, routed / dense", 1, _routed_by_dense("update_to_weight")),
    Sign("I4 gradient_noise", 1, _routed("gradient_noise")),
    Sign("I5 dense_routed_gap", 1, _named("opt/dense_routed_gap"), at_validations=True),
    Sign("I5 dense_routed_loss_gap", 1, _named("opt/dense_routed_loss_gap"), at_validations=True, is_ratio=False),
    Sign("I6 ema_lag", 1, _named("opt/ema_lag"), at_validations=True),
    Sign("I6 ema_loss_gap", 1, _named("opt/ema_loss_gap"), at_validations=True, is_ratio=False),
)


def last_half(curve: Curve, steps_total: int) -> float:
    """Median over the second half of the run; nan when nothing was measured there."""
    values = [value for step, value in curve.items() if step > steps_total / 2]
    return median(values) if values else math.nan


def fires(sign: Sign, healthy: Sequence[Curve], judged: Curve, steps_total: int) -> int | None:
    """The first step at which `judged` has been beyond the bound of the healthy seeds for IN_A_ROW readings; or None.

    The bound at a step is the mean of the healthy seeds there plus 1.645 s sqrt(1 + 1/n): the one-sided 95 % prediction
    limit, with s pooled over all steps behind the warm-up (so its degrees of freedom are many, its errors correlated).
    Ratios are compared as logarithms. Needs at least two healthy seeds.
    """
    steps = sorted(set(judged).intersection(*healthy))
    steps = [step for step in steps if step >= WARM_SHARE * steps_total]
    n = len(healthy)
    if n < 2 or not steps:
        return None
    values = {step: [_scaled(sign, curve[step]) for curve in healthy] for step in steps}
    squares = sum((value - fmean(row)) ** 2 for row in values.values() for value in row)
    margin = QUANTILE * math.sqrt(squares / (len(steps) * (n - 1)) * (1 + 1 / n))
    needed, in_a_row = IN_A_ROW_AT_VALIDATIONS if sign.at_validations else IN_A_ROW, 0
    for step in steps:
        beyond = sign.bad * (_scaled(sign, judged[step]) - fmean(values[step])) > margin
        in_a_row = in_a_row + 1 if beyond else 0
        if in_a_row == needed:
            return step
    return None


def _scaled(sign: Sign, value: float) -> float:
    return math.log(max(value, 1e-30)) if sign.is_ratio else value
