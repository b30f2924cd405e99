"""What an arm truly does, without noise, as smooth functions of the share of the budget: the kinds of two profiles.

A kind takes the body of its study (how an ordinary arm of that study improves) and changes it. Levels of the metric are
relative (1 = at the start, lower is better); the loss is relative to its start as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np

from benchmarks.study_chance import Array

Curve = Callable[[Array], Array]


@dataclass(frozen=True)
class Truth:
    """One arm without noise. Shares of the budget are 0 to 1; `gone` is where nothing is finite any more."""

    metric: Curve
    loss: Curve
    roughness: Curve = np.ones_like
    """What the log of the noise of the loss is multiplied with."""
    onset: float | None = None
    gone: float | None = None
    events: tuple[tuple[float, str], ...] = ()


@dataclass(frozen=True)
class Body:
    """How an ordinary arm of a study improves; an arm jitters it a little."""

    gain: float
    """Share of the metric's start that is gained by the end, 0 to 1."""
    shape: str
    """exponential | power | sigmoid"""
    rate: float
    hump: float
    """Early rise, as a share: an average of weights is worse before it is better."""
    loss_floor: float
    loss_power: float
    loss_warm: float
    """Share of the budget after which the loss begins to fall as a power."""
    lag: float
    """Share of the budget by which the metric follows the weights (an average of them is validated)."""
    cadence: float
    """Share of the budget between two validations."""
    bumpiness: float
    """How often a healthy arm has an excursion that comes back: 0 to 1."""


def progress(body: Body, u_N: Array) -> Array:
    """0 at the start, 1 at the end, never falling."""
    value_N: Array
    if body.shape == "exponential":
        value_N = (1 - np.exp(-body.rate * u_N)) / (1 - np.exp(-body.rate))
    elif body.shape == "power":
        value_N = (1 - (1 + 12 * u_N) ** (-body.rate / 4)) / (1 - 13.0 ** (-body.rate / 4))
    else:
        centre, width = 0.5 / np.sqrt(body.rate), 0.45 / body.rate
        low, high = (1 / (1 + np.exp((centre - edge) / width)) for edge in (0.0, 1.0))
        value_N = (1 / (1 + np.exp((centre - u_N) / width)) - low) / (high - low)
    return value_N


def level(body: Body, u_N: Array) -> Array:
    """The ordinary metric of this body."""
    hump_N = body.hump * (u_N / 0.04) * np.exp(1 - u_N / 0.04)
    return (1 - body.gain * progress(body, u_N)) * (1 + hump_N)


def falling(body: Body, u_N: Array) -> Array:
    """The ordinary loss of this body."""
    return body.loss_floor + (1 - body.loss_floor) * (1 + u_N / body.loss_warm) ** -body.loss_power


def bump(u_N: Array, at: float, rise: float, fall: float) -> Array:
    """An excursion of height 1 that begins at `at`, with time constants `rise` and `fall`."""
    since_N = np.maximum(u_N - at, 0)
    shape_N = (1 - np.exp(-since_N / rise)) * np.exp(-since_N / fall)
    peak = rise * np.log(1 + fall / rise)
    value_N: Array = shape_N / ((1 - np.exp(-peak / rise)) * np.exp(-peak / fall))
    return value_N


def ramp(u_N: Array, start: float, power: float) -> Array:
    """0 until `start`, then rising to 1 at the end of the budget."""
    return np.clip((u_N - start) / (1 - start), 0, 1) ** power


def step_up(u_N: Array, at: float, width: float) -> Array:
    """0 before `at`, then rising to 1 with this time constant."""
    return 1 - np.exp(-np.maximum(u_N - at, 0) / width)


def decay(chance: np.random.Generator, body: Body) -> Truth:
    """Improves all the way; in bumpy studies sometimes with an excursion of up to 4 % that comes back."""
    bumps = []
    if chance.random() < body.bumpiness:
        for _ in range(chance.integers(1, 3)):
            width = chance.uniform(0.02, 0.06)
            bumps.append((chance.uniform(0.15, 0.8), width / 2, width / 2, chance.uniform(0.01, 0.04)))

    def metric(u_N: Array) -> Array:
        extra_N = np.zeros_like(u_N)
        for at, rise, fall, height in bumps:
            extra_N = np.maximum(extra_N, height * bump(u_N, at, rise, fall))
        return level(body, u_N) * (1 + extra_N)

    return Truth(metric, lambda u_N: falling(body, u_N))


def plateau(chance: np.random.Generator, body: Body) -> Truth:
    """At its floor before a third of the budget, where the others end, and wandering there."""
    end = (1 - body.gain) * chance.uniform(0.96, 1.02)
    early = replace(body, shape="exponential", rate=chance.uniform(9, 20), gain=1 - end)
    drift = chance.uniform(-0.006, 0.008)
    return Truth(lambda u_N: level(early, u_N) * (1 + drift * u_N), decay(chance, early).loss)


def spike(chance: np.random.Generator, body: Body) -> Truth:
    """One to three spikes of the loss, up to nine times as high, and bumps of the metric up to 3.5 %; all recover."""
    usual = decay(chance, body)
    spikes = []
    at = chance.uniform(0.06, 0.7)
    for _ in range(chance.choice([1, 1, 2, 3])):
        height = np.exp(chance.uniform(np.log(1.6), np.log(9.0)))
        spikes.append((at, chance.uniform(0.0003, 0.003), chance.uniform(0.002, 0.02), height - 1))
        at = min(0.82, at + chance.uniform(0.004, 0.2))
    top = chance.uniform(0.0, 0.035)
    fall = chance.uniform(0.015, 0.05)

    def loss(u_N: Array) -> Array:
        value_N: Array = usual.loss(u_N) * (
            1 + sum(height * bump(u_N, at, rise, fall) for at, rise, fall, height in spikes)
        )
        return value_N

    def metric(u_N: Array) -> Array:
        bumps = (bump(u_N, at, max(body.lag, 0.004), fall) for at, _rise, _fall, _height in spikes)
        value_N: Array = usual.metric(u_N) * (1 + top * np.maximum.reduce(list(bumps)))
        return value_N

    return Truth(metric, loss)


def lr_decay(chance: np.random.Generator, body: Body) -> Truth:
    """Flat, perhaps rising a little, until the learning rate falls; then it gains what was left."""
    at, gained = chance.uniform(0.6, 0.88), min(chance.uniform(0.02, 0.05), 0.6 * body.gain)
    early = replace(body, gain=1 - (1 - body.gain) / (1 - gained), rate=body.rate * 1.6)
    rise, width = chance.uniform(0, 0.012), chance.uniform(0.02, 0.06)
    drop = chance.uniform(0.05, 0.25)

    def metric(u_N: Array) -> Array:
        drift_N = rise * np.clip((u_N - at + 0.3) / 0.3, 0, 1) * (1 - step_up(u_N, at, width))
        return level(early, u_N) * (1 + drift_N) * (1 - gained * step_up(u_N, at, width))

    return Truth(metric, lambda u_N: falling(body, u_N) * (1 - drop * step_up(u_N, at, width)))


def late_rise(chance: np.random.Generator, body: Body) -> Truth:
    """Its best lies behind it and the end is up to 2.3 % worse, as in many healthy trainings."""
    best, rise, power = chance.uniform(0.5, 0.88), chance.uniform(0.007, 0.023), chance.uniform(1.0, 2.0)

    def metric(u_N: Array) -> Array:
        return level(body, np.minimum(u_N / best, 1)) * (1 + rise * ramp(u_N, best, power))

    return Truth(metric, lambda u_N: falling(body, u_N))


def repa_off(chance: np.random.Generator, body: Body) -> Truth:
    """An auxiliary loss is switched off, as declared: the loss changes its level, the metric bumps and recovers."""
    at, top = chance.uniform(0.25, 0.7), chance.uniform(0.008, 0.035)
    shift = chance.choice([chance.uniform(0.5, 0.93), chance.uniform(1.07, 1.7)])
    fall = chance.uniform(0.02, 0.06)

    def metric(u_N: Array) -> Array:
        return level(body, u_N) * (1 + top * bump(u_N, at, max(body.lag, 0.01), fall))

    return Truth(metric, lambda u_N: falling(body, u_N) * np.where(u_N > at, shift, 1.0), events=((at, "repa_off"),))


def slow_start(chance: np.random.Generator, body: Body) -> Truth:
    """Flat until up to 38 % of the budget, then it catches up."""
    flat_until = chance.uniform(0.12, 0.38)
    late = replace(body, shape="exponential", rate=chance.uniform(3, 6), hump=0.0)

    def metric(u_N: Array) -> Array:
        return level(late, np.clip((u_N - flat_until) / (1 - flat_until), 0, 1)) * (
            1 - 0.02 * body.gain * np.minimum(u_N / flat_until, 1)
        )

    return Truth(metric, lambda u_N: falling(replace(body, loss_warm=2 * body.loss_warm), u_N))


def laggard(chance: np.random.Generator, body: Body) -> Truth:
    """Slower than its siblings and behind them at the end, but improving all the while."""
    speed = chance.uniform(0.5, 0.8)
    return Truth(lambda u_N: level(body, speed * u_N), lambda u_N: falling(body, speed * u_N) * 1.05)


def collapse(chance: np.random.Generator, body: Body) -> Truth:
    """The metric turns and gets worse for good while the loss goes on falling as if nothing were wrong."""
    onset = chance.uniform(0.25, 0.72)
    return _worse_from(chance, body, onset, np.exp(chance.uniform(np.log(0.05), np.log(0.45))))


def late_collapse(chance: np.random.Generator, body: Body) -> Truth:
    """The same within the last 10 to 22 % of the budget."""
    return _worse_from(chance, body, chance.uniform(0.78, 0.90), chance.uniform(0.05, 0.25))


def _worse_from(chance: np.random.Generator, body: Body, onset: float, height: float) -> Truth:
    power = chance.uniform(1.0, 1.7)

    def metric(u_N: Array) -> Array:
        return level(body, np.minimum(u_N, onset)) * (1 + height * ramp(u_N, onset, power))

    return Truth(metric, lambda u_N: falling(body, u_N), onset=onset)


def explosion(chance: np.random.Generator, body: Body) -> Truth:
    """The loss becomes 3 to 100 times as high within 2 % of the budget and stays there; the metric follows."""
    onset, times = chance.uniform(0.05, 0.88), np.exp(chance.uniform(np.log(3.0), np.log(100.0)))
    width, wild = np.exp(chance.uniform(np.log(0.0008), np.log(0.007))), chance.uniform(1.0, 3.0)
    worse = chance.uniform(0.08, 0.9)

    def loss(u_N: Array) -> Array:
        value_N: Array = falling(body, np.minimum(u_N, onset)) * times ** step_up(u_N, onset, width)
        return value_N

    def metric(u_N: Array) -> Array:
        return level(body, np.minimum(u_N, onset)) * (1 + worse * step_up(u_N, onset, 0.02 + body.lag))

    return Truth(metric, loss, lambda u_N: np.where(u_N > onset, wild, 1.0), onset=onset)


def half_recovered(chance: np.random.Generator, body: Body) -> Truth:
    """An explosion that comes back only to 1.9 to 3.5 times the loss it had, and the metric only in part."""
    onset, peak = chance.uniform(0.08, 0.85), chance.uniform(4, 40)
    rest, fall = chance.uniform(1.9, 3.5), chance.uniform(0.003, 0.015)
    worse, back = chance.uniform(0.08, 0.35), chance.uniform(0.1, 0.35)

    def loss(u_N: Array) -> Array:
        since_N = np.maximum(u_N - onset, 0)
        lasting_N = step_up(u_N, onset, 0.0015) * (rest - 1 + (peak - rest) * np.exp(-since_N / fall))
        return falling(body, np.minimum(u_N, onset)) * (1 + lasting_N)

    def metric(u_N: Array) -> Array:
        lasting_N = step_up(u_N, onset, 0.01 + body.lag) * (1 - back * step_up(u_N, onset, 0.15))
        return level(body, np.minimum(u_N, onset)) * (1 + worse * lasting_N)

    return Truth(metric, loss, onset=onset)


def nan(chance: np.random.Generator, body: Body) -> Truth:
    """Nothing is finite from some step on; where the loss climbs for a moment before, that is the onset."""
    gone, before = chance.uniform(0.01, 0.97), chance.choice([0.0, chance.uniform(0.5, 4.0)])
    width = chance.uniform(0.001, 0.01)
    climbs_for = width * np.log(before / 0.05) if before else 0.0  # from 5 % above the usual loss on

    def loss(u_N: Array) -> Array:
        value_N: Array = falling(body, u_N) * (1 + before * np.exp(-np.maximum(gone - u_N, 0) / width))
        return value_N

    return Truth(lambda u_N: level(body, u_N), loss, onset=max(0.0, gone - climbs_for), gone=gone)


def stall(chance: np.random.Generator, body: Body) -> Truth:
    """Learns nothing, from the start or from a point on, while its siblings go on."""
    onset = 0.0 if chance.random() < 0.5 else chance.uniform(0.08, 0.3)
    creep, stuck = chance.uniform(0, 0.012), chance.uniform(0.0, 0.03)

    def metric(u_N: Array) -> Array:
        return level(replace(body, hump=0.0), np.minimum(u_N, onset)) * (1 - creep * ramp(u_N, onset, 0.7))

    return Truth(metric, lambda u_N: falling(body, np.minimum(u_N, onset + stuck)), onset=onset)


def oscillation(chance: np.random.Generator, body: Body) -> Truth:
    """Swings that grow, each coming back to about the level of the onset; the loss swings a little with them."""
    onset, height = chance.uniform(0.12, 0.45), chance.uniform(0.09, 0.28)
    period, power = chance.uniform(max(0.09, 3.2 * body.cadence), max(0.16, 4.5 * body.cadence)), chance.uniform(0.5, 1)
    echo, creep = chance.uniform(0, 0.6), chance.uniform(0, 0.015)

    def swing(u_N: Array) -> Array:
        value_N: Array = ramp(u_N, onset, power) * (1 - np.cos(2 * np.pi * np.maximum(u_N - onset, 0) / period)) / 2
        return value_N

    return Truth(
        lambda u_N: level(body, np.minimum(u_N, onset)) * (1 - creep * ramp(u_N, onset, 1)) * (1 + height * swing(u_N)),
        lambda u_N: falling(body, u_N) * (1 + echo * swing(u_N)),
        onset=onset,
    )


def jittered(chance: np.random.Generator, body: Body) -> Body:
    """The body of one arm: its siblings end within a few percent of it."""
    return replace(
        body,
        gain=1 - (1 - body.gain) * float(np.exp(0.02 * chance.standard_normal())),
        rate=body.rate * float(np.exp(0.12 * chance.standard_normal())),
        loss_floor=min(0.9, body.loss_floor * float(np.exp(0.1 * chance.standard_normal()))),
    )


def body_of(chance: np.random.Generator, gain: float, cadence: float, bumpiness: float) -> Body:
    """The body of a study. `gain` and `cadence` are shares; `bumpiness` is a probability."""
    return Body(
        gain=gain,
        shape=str(chance.choice(["exponential", "power", "sigmoid"])),
        rate=chance.uniform(2.0, 6.0),
        hump=chance.choice([0.0, chance.uniform(0.003, 0.02)]),
        loss_floor=chance.uniform(0.03, 0.5),
        loss_power=chance.uniform(0.5, 1.2),
        loss_warm=np.exp(chance.uniform(np.log(0.004), np.log(0.04))),
        lag=chance.uniform(0.0, 0.05),
        cadence=cadence,
        bumpiness=bumpiness,
    )


Kind = Callable[[np.random.Generator, Body], Truth]
HEALTHY: Mapping[str, Kind] = MappingProxyType(
    {
        "decay": decay,
        "plateau": plateau,
        "spike": spike,
        "lr_decay": lr_decay,
        "late_rise": late_rise,
        "repa_off": repa_off,
        "slow_start": slow_start,
        "laggard": laggard,
    }
)
SICK: Mapping[str, Kind] = MappingProxyType(
    {
        "collapse": collapse,
        "late_collapse": late_collapse,
        "explosion": explosion,
        "half_recovered": half_recovered,
        "nan": nan,
        "stall": stall,
        "oscillation": oscillation,
    }
)
