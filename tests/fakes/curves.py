"""Seeded training curves whose health is known: what a judge must leave alone and what it must stop.

All draws come from the label and the seed, so that a failing case is reproduced by its name.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from runner.judge import DETECTORS, judge
from runner.records import DeclaredEvent, Policy, Primary, Series, Verdict

ABORT_ALL = Policy(dict.fromkeys(DETECTORS, "abort"))
PRIMARY = Primary("val/recon_lpips")

HEALTHY_LOSSES = ("decay", "plateau", "spike", "lr_decay", "mild_rise", "repa_off", "slow_start")
SICK_LOSSES = ("explosion", "half_recovered", "climb")
HEALTHY_METRICS = ("decay", "plateau", "bump", "lr_decay", "mild_rise", "slow_start")


@dataclass(frozen=True)
class Cadence:
    """How a run is logged: its budget and the steps between two samples."""

    steps_total: int
    every: int


# The quickstart, a long run logged at every step, a sparsely logged one, and a very long one.
CADENCES = (Cadence(800, 1), Cadence(5000, 1), Cadence(5000, 10), Cadence(100_000, 50))


@dataclass(frozen=True)
class Loss:
    """A training loss, the step at which it went bad (or its spike began), and what the trainer declared."""

    series: Series
    steps_total: int
    onset: float
    events: tuple[DeclaredEvent, ...] = ()

    def verdict(self) -> Verdict:
        return verdict_on({self.series.name: self.series}, self.steps_total, events=self.events)


def series(name: str, values: Sequence[float], every: int = 1, first: int | None = None) -> Series:
    start = every if first is None else first
    return Series(name, tuple(start + every * k for k in range(len(values))), tuple(values))


def verdict_on(
    curves: dict[str, Series],
    steps_total: int | None,
    *,
    primary: Primary | None = PRIMARY,
    policy: Policy = ABORT_ALL,
    events: Sequence[DeclaredEvent] = (),
    loss_name: str | None = None,
    overridden: frozenset[str] = frozenset(),
) -> Verdict:
    return judge(
        curves,
        steps_total=steps_total,
        primary=primary,
        policy=policy,
        events=events,
        loss_name=loss_name,
        overridden=overridden,
    )


def is_stopped(verdict: Verdict) -> bool:
    return verdict.action in ("abort", "verdict_only")


def loss(kind: str, seed: int, cadence: Cadence, noise: float) -> Loss:
    """A loss of `kind` (healthy or sick) with log-normal noise; above 0.2, one sample in 100 is a spike up to 4x."""
    draw = random.Random(f"loss {kind} {seed} {cadence} {noise}")
    total = cadence.steps_total
    onset, floor, rate = draw.uniform(0.12, 0.85), draw.uniform(0.2, 0.6), draw.uniform(3, 12)
    peak, decay = draw.uniform(2, 9), draw.uniform(0.002, 0.02)
    rise = draw.uniform(0, 0.004)
    worse, stuck = draw.uniform(3, 100), draw.uniform(1.9, 3.5)
    unit = draw.choice([1e-3, 0.07, 1.0, 40.0])

    def spike(share: float, height: float) -> float:
        if share < 0:
            return 1.0
        return 1 + (height - 1) * (share / rise if share < rise else math.exp(-(share - rise) / decay))

    shapes: dict[str, Callable[[float], float]] = {
        "decay": lambda u: 1.0,
        "plateau": lambda u: 1.0,
        "spike": lambda u: spike(u - onset, peak),
        "lr_decay": lambda u: 0.85 + 0.15 * math.exp(-30 * (u - 0.7)) if u > 0.7 else 1.0,
        "mild_rise": lambda u: 1 + 0.08 * max(0.0, u - 0.6),
        "repa_off": lambda u: 0.8 * spike(u - 0.25, 1.3) if u > 0.25 else 1.0,
        "slow_start": lambda u: 1.0,
        "explosion": lambda u: 1 + (worse - 1) * min(1.0, (u - onset) / max(rise, 1e-9)) if u >= onset else 1.0,
        "half_recovered": lambda u: stuck + (peak - 1) * math.exp(-2 * (u - onset) / decay) if u >= onset else 1.0,
        "climb": lambda u: math.exp(6 * max(0.0, u - onset)),
    }

    def trend(u: float) -> float:
        if kind == "plateau":
            return 0.6 + 0.4 * math.exp(-20 * u)
        return floor + (1 - floor) * math.exp(-rate * (max(0.0, u - 0.38) if kind == "slow_start" else u))

    values = []
    for k in range(1, total // cadence.every + 1):
        u = k * cadence.every / total
        value = unit * trend(u) * shapes[kind](u) * math.exp(draw.gauss(0, noise))
        if noise > 0.2 and draw.random() < 0.01:
            value *= draw.uniform(2, 4)
        values.append(value)
    events = (DeclaredEvent(total // 4, "repa_off"),) if kind == "repa_off" else ()
    return Loss(series("train/loss", values, cadence.every), total, onset * total, events)


def metric(kind: str, seed: int, points: int, noise: float, *, onset: float = 0.5) -> Series:
    """A primary metric over 5000 steps, lower is better, validated `points` times with relative `noise`."""
    draw = random.Random(f"metric {kind} {seed} {points} {noise}")
    drop, rate, unit = draw.uniform(0.02, 0.5), draw.uniform(2, 8), draw.choice([1.0, 0.05, 30.0])
    bump, decay, begins = draw.uniform(0.01, 0.035), draw.uniform(0.03, 0.1), draw.uniform(0.25, 0.8)
    rise, collapse = draw.uniform(0, 0.023), draw.uniform(0.1, 0.4)

    def value(u: float) -> float:
        fall = {
            "plateau": min(1.0, u / 0.15),
            "slow_start": 1 - math.exp(-rate * max(0.0, u - 0.38)),
            "collapse": 1 - math.exp(-rate * min(u, onset)),
        }.get(kind, 1 - math.exp(-rate * u))
        change = {
            "bump": bump * math.exp(-(u - begins) / decay) if u >= begins else 0.0,
            "lr_decay": -0.02 * (1 - math.exp(-20 * max(0.0, u - 0.7))),
            "mild_rise": rise * max(0.0, u - 0.6) / 0.4,
            "collapse": collapse * max(0.0, u - onset) / (1 - onset),
        }.get(kind, 0.0)
        return unit * (1 - drop * fall) * (1 + change) * (1 + draw.gauss(0, noise))

    steps = [round(5000 * k / points) for k in range(points + 1)]
    return Series("val/recon_lpips", tuple(steps), tuple(value(step / 5000) for step in steps))
