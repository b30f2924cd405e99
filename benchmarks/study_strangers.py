"""The profile `stranger`: the same kinds of arms, drawn the way somebody else might draw them.

Power laws of the step, straight pieces between knots, staircases and plateaus that wobble; noise is an autoregression;
spikes are boxes, explosions double until they hit a ceiling, swings are triangles. Nothing here is shared with
study_kinds.py but the type of the result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np

from benchmarks.study_chance import Array
from benchmarks.study_kinds import Curve, Truth

CELLS = 240


@dataclass(frozen=True)
class Body:
    """How the ordinary arm of a stranger's study improves: the knots of its metric and the power law of its loss."""

    shares_K: Array
    levels_K: Array
    wobble: float
    """Relative size of a slow triangle around the level once most is gained."""
    period: float
    loss_power: float
    loss_floor: float
    cadence: float


def body_of(chance: np.random.Generator, gain: float, cadence: float) -> Body:
    """The body of a study whose ordinary arm gains this share of its metric. `cadence` is a share of the budget."""
    shape = chance.choice(["power", "pieces", "stairs"])
    if shape == "power":
        shares_K = np.linspace(0, 1, 60) ** 2
        fallen_K = 1 - (1 + shares_K * np.exp(chance.uniform(1.5, 5))) ** -chance.uniform(0.25, 1.0)
    elif shape == "pieces":
        shares_K = np.array([0.0, *np.sort(chance.uniform(0.05, 0.95, 4)), 1.0])
        fallen_K = np.array([0.0, *np.cumsum(chance.exponential(1.0, 5) * np.array([3, 2, 1, 0.6, 0.4]))])
    else:
        count = int(chance.integers(3, 8))
        rises = np.sort(chance.uniform(0.02, 0.9, count))
        shares_K = np.array([0.0, *np.ravel(np.column_stack((rises, rises + 0.03))), 1.05])
        heights = np.cumsum(chance.uniform(0.3, 1.0, count) * np.linspace(1.6, 0.4, count))
        fallen_K = np.array([0.0, *np.ravel(np.column_stack((np.append(0.0, heights[:-1]), heights))), heights[-1]])
        shares_K = np.maximum.accumulate(shares_K)
    return Body(
        shares_K=shares_K,
        levels_K=1 - gain * fallen_K / fallen_K[-1],
        wobble=float(chance.choice([0.0, chance.uniform(0.002, 0.011)])),
        period=chance.uniform(0.12, 0.4),
        loss_power=chance.uniform(0.2, 0.7),
        loss_floor=chance.uniform(0.0, 0.6),
        cadence=cadence,
    )


def jittered(chance: np.random.Generator, body: Body) -> Body:
    """The body of one arm, a few percent from its siblings' at the end."""
    off = 0.025 * chance.standard_normal() / max(0.05, -np.log(body.levels_K[-1]))
    return replace(body, levels_K=body.levels_K ** (1 - off), period=chance.uniform(0.12, 0.4))


def autoregressive(chance: np.random.Generator, sd: float) -> Curve:
    """Noise of this standard deviation whose values along the budget follow an autoregression of the first order."""
    memory = chance.uniform(0.6, 0.93)
    values_C = np.empty(CELLS + 1)
    values_C[0] = chance.standard_normal()
    for cell in range(1, CELLS + 1):
        values_C[cell] = memory * values_C[cell - 1] + np.sqrt(1 - memory**2) * chance.standard_normal()
    return lambda u_N: sd * np.interp(u_N * CELLS, np.arange(CELLS + 1), values_C)


def _triangle(u_N: Array, period: float) -> Array:
    """A wave of straight pieces between -1 and 1 that begins at -1."""
    return 1 - 4 * np.abs((u_N / period) % 1 - 0.5)


def _level(body: Body, u_N: Array) -> Array:
    level_N = np.interp(u_N, body.shares_K, body.levels_K)
    settled_N = (1 - level_N) / (1 - body.levels_K[-1])
    value_N: Array = level_N * (1 + body.wobble * settled_N**4 * _triangle(u_N, body.period))
    return value_N


def _loss(body: Body, u_N: Array) -> Array:
    return body.loss_floor + (1 - body.loss_floor) * (1 + 300 * u_N) ** -body.loss_power


def _without_stairs(body: Body) -> Body:
    """The same way along a power law: a late or slow arm on stairs would stand still for longer than anyone waits."""
    shares_K = np.linspace(0, 1, 60) ** 2
    fallen_K = 1 - (1 + 20 * shares_K) ** -0.5
    gain = 1 - body.levels_K[-1]
    return replace(body, shares_K=shares_K, levels_K=1 - gain * fallen_K / fallen_K[-1])


def _usual(body: Body) -> Truth:
    return Truth(lambda u_N: _level(body, u_N), lambda u_N: _loss(body, u_N))


def _hill(u_N: Array, begin: float, top: float, end: float) -> Array:
    """Straight up from `begin` to 1 at `top`, straight down to 0 at `end`."""
    return np.interp(u_N, [begin, top, end], [0.0, 1.0, 0.0], left=0.0, right=0.0)


def decay(_chance: np.random.Generator, body: Body) -> Truth:
    """Improves along the knots of its study."""
    return _usual(body)


def plateau(chance: np.random.Generator, body: Body) -> Truth:
    """Reaches early what the others reach late, then wobbles there."""
    width, wobble = chance.uniform(0.08, 0.3), chance.uniform(0.0, 0.011)
    end = body.levels_K[-1] * chance.uniform(0.98, 1.015)
    early = replace(body, shares_K=np.array([0.0, width, 1.0]), levels_K=np.array([1.0, end, end]), wobble=wobble)
    return _usual(early)


def bumpy(chance: np.random.Generator, body: Body) -> Truth:
    """One or two hills of the metric of up to 4 % that come down again, with nothing to see in the loss."""
    usual = _usual(body)
    hills = []
    for _ in range(chance.integers(1, 3)):
        begin, width = chance.uniform(0.12, 0.7), chance.uniform(0.05, 0.2)
        hills.append((begin, begin + width * chance.uniform(0.3, 0.6), begin + width, chance.uniform(0.012, 0.04)))

    def metric(u_N: Array) -> Array:
        heights = [height * _hill(u_N, begin, top, end) for begin, top, end, height in hills]
        value_N: Array = usual.metric(u_N) * (1 + np.maximum.reduce(heights))
        return value_N

    return Truth(metric, usual.loss)


def spike(chance: np.random.Generator, body: Body) -> Truth:
    """The loss stands at 2 to 9 times its level for up to 1.5 % of the budget and drops back; the metric has a hill."""
    usual = _usual(body)
    at, width, times = chance.uniform(0.05, 0.8), chance.uniform(0.001, 0.015), chance.uniform(2, 9)
    height, over = chance.uniform(0, 0.035), chance.uniform(0.04, 0.12)
    return Truth(
        lambda u_N: usual.metric(u_N) * (1 + height * _hill(u_N, at, at + width, at + width + over)),
        lambda u_N: usual.loss(u_N) * np.where((u_N > at) & (u_N < at + width), times, 1.0),
    )


def lr_decay(chance: np.random.Generator, body: Body) -> Truth:
    """Flat for long, then one more stair down when the learning rate falls."""
    at, gained = chance.uniform(0.55, 0.88), chance.uniform(0.02, 0.05)
    end = body.levels_K[-1]
    stair = replace(
        body,
        shares_K=np.array([0.0, 0.4 * at, at, at + 0.04, 1.0]),
        levels_K=np.array([1.0, end * (1 + gained), end * (1 + gained), end * 1.004, end]),
        wobble=body.wobble / 2,
    )
    return Truth(_usual(stair).metric, lambda u_N: _loss(body, u_N) * np.where(u_N > at, 0.85, 1.0))


def late_rise(chance: np.random.Generator, body: Body) -> Truth:
    """A straight rise of up to 2.3 % in what is left after its best."""
    best, rise = chance.uniform(0.55, 0.9), chance.uniform(0.006, 0.023)
    calm = replace(body, wobble=body.wobble / 3)

    def metric(u_N: Array) -> Array:
        return _level(calm, np.minimum(u_N / best, 1.0)) * (1 + rise * np.clip((u_N - best) / (1 - best), 0, 1))

    return Truth(metric, lambda u_N: _loss(body, u_N))


def regime(chance: np.random.Generator, body: Body) -> Truth:
    """A declared change (resolution, or an auxiliary loss ends) moves the level of the loss; the metric has a hill."""
    at, top, times = chance.uniform(0.2, 0.7), chance.uniform(0.005, 0.035), chance.choice([0.6, 0.8, 1.3, 1.8])
    usual, name = _usual(body), str(chance.choice(["repa_off", "resolution"]))
    return Truth(
        lambda u_N: usual.metric(u_N) * (1 + top * _hill(u_N, at, at + 0.02, at + 0.15)),
        lambda u_N: usual.loss(u_N) * np.where(u_N > at, times, 1.0),
        events=((at, name),),
    )


def slow_start(chance: np.random.Generator, body: Body) -> Truth:
    """Nothing for up to 35 % of the budget, then the whole way."""
    until, smooth = chance.uniform(0.1, 0.35), _without_stairs(body)

    def metric(u_N: Array) -> Array:
        return _level(smooth, np.clip((u_N - until) / (1 - until), 0, 1))

    return Truth(metric, lambda u_N: _loss(body, u_N))


def laggard(chance: np.random.Generator, body: Body) -> Truth:
    """Half to four fifths as far as the others at any time."""
    speed, smooth = chance.uniform(0.5, 0.85), _without_stairs(body)
    return Truth(lambda u_N: _level(smooth, speed * u_N), lambda u_N: _loss(body, speed * u_N))


def collapse(chance: np.random.Generator, body: Body) -> Truth:
    """From the onset on worse in straight pieces of uneven slope, some of them nearly flat; the loss knows nothing."""
    return _worse_from(chance, body, chance.uniform(0.2, 0.7), chance.uniform(0.06, 0.6))


def late_collapse(chance: np.random.Generator, body: Body) -> Truth:
    """The same in the last 12 to 25 %."""
    return _worse_from(chance, body, chance.uniform(0.75, 0.88), chance.uniform(0.055, 0.3))


def _worse_from(chance: np.random.Generator, body: Body, onset: float, height: float) -> Truth:
    calm = replace(body, wobble=body.wobble / 3)
    knots_K = np.linspace(onset, 1.0, int(chance.integers(2, 6)))
    rises_K = np.append(0.0, np.cumsum(chance.uniform(0.15, 1.0, len(knots_K) - 1)))
    rises_K *= height / rises_K[-1]
    return Truth(
        lambda u_N: _level(calm, np.minimum(u_N, onset)) * (1 + np.interp(u_N, knots_K, rises_K)),
        lambda u_N: _loss(body, u_N),
        onset=onset,
    )


def jump(chance: np.random.Generator, body: Body) -> Truth:
    """The metric jumps by 6 to 50 % from one validation to the next and stays there; the loss knows nothing."""
    onset, height = chance.uniform(0.15, 0.8), chance.uniform(0.06, 0.5)

    def metric(u_N: Array) -> Array:
        return _level(body, np.minimum(u_N, onset)) * np.where(u_N > onset, 1 + height, 1.0)

    return Truth(metric, lambda u_N: _loss(body, u_N), onset=onset)


def explosion(chance: np.random.Generator, body: Body) -> Truth:
    """The loss doubles every 0.05 to 0.5 % of the budget up to 4 to 100,000 times; the metric is ruined."""
    onset, double = chance.uniform(0.04, 0.9), chance.uniform(0.0005, 0.005)
    ceiling, worse = np.exp(chance.uniform(np.log(4), np.log(1e5))), chance.uniform(0.1, 2.0)

    def loss(u_N: Array) -> Array:
        doublings_N = np.minimum(np.maximum(u_N - onset, 0) / double, np.log2(ceiling))
        value_N: Array = _loss(body, np.minimum(u_N, onset)) * 2**doublings_N
        return value_N

    def metric(u_N: Array) -> Array:
        return _level(body, np.minimum(u_N, onset)) * (1 + worse * np.clip((u_N - onset) / 0.04, 0, 1))

    return Truth(metric, loss, lambda u_N: np.where(u_N > onset, 2.0, 1.0), onset=onset)


def half_recovered(chance: np.random.Generator, body: Body) -> Truth:
    """A box of 5 to 50 times the loss, then 2 to 3.5 times for good; the metric keeps at least 6 % of the damage."""
    onset, width = chance.uniform(0.08, 0.85), chance.uniform(0.002, 0.02)
    box, rest, worse = chance.uniform(5, 50), chance.uniform(2, 3.5), chance.uniform(0.06, 0.4)

    def loss(u_N: Array) -> Array:
        times_N = np.where(u_N < onset + width, box, rest)
        return _loss(body, np.minimum(u_N, onset)) * np.where(u_N > onset, times_N, 1.0)

    def metric(u_N: Array) -> Array:
        return _level(body, np.minimum(u_N, onset)) * (1 + worse * np.clip((u_N - onset) / 0.03, 0, 1))

    return Truth(metric, loss, onset=onset)


def nan(chance: np.random.Generator, body: Body) -> Truth:
    """Nothing is finite any more, without a warning."""
    onset, usual = chance.uniform(0.005, 0.98), _usual(body)
    return replace(usual, onset=onset, gone=onset)


def stall(chance: np.random.Generator, body: Body) -> Truth:
    """Stops at its level, often from the beginning, while the others go on."""
    onset = float(chance.choice([0.0, chance.uniform(0.05, 0.25)]))
    return Truth(
        lambda u_N: (
            _level(replace(body, wobble=0.0), np.minimum(u_N, onset)) * (1 + 0.003 * _triangle(u_N, body.period))
        ),
        lambda u_N: _loss(body, np.minimum(u_N, onset + 0.02)),
        onset=onset,
    )


def oscillation(chance: np.random.Generator, body: Body) -> Truth:
    """Triangles whose height grows along a straight line."""
    onset, height = chance.uniform(0.1, 0.4), chance.uniform(0.1, 0.3)
    period = chance.uniform(max(0.1, 3.2 * body.cadence), max(0.18, 4.2 * body.cadence))

    def metric(u_N: Array) -> Array:
        since_N = np.maximum(u_N - onset, 0)
        swing_N = since_N / (1 - onset) * (1 + _triangle(since_N, period)) / 2
        return _level(body, np.minimum(u_N, onset)) * (1 + height * swing_N)

    return Truth(metric, lambda u_N: _loss(body, u_N), onset=onset)


Kind = Callable[[np.random.Generator, Body], Truth]
HEALTHY: Mapping[str, Kind] = MappingProxyType(
    {
        "decay": decay,
        "plateau": plateau,
        "bumpy": bumpy,
        "spike": spike,
        "lr_decay": lr_decay,
        "late_rise": late_rise,
        "repa_off": regime,
        "slow_start": slow_start,
        "laggard": laggard,
    }
)
SICK: Mapping[str, Kind] = MappingProxyType(
    {
        "collapse": collapse,
        "late_collapse": late_collapse,
        "jump": jump,
        "explosion": explosion,
        "half_recovered": half_recovered,
        "nan": nan,
        "stall": stall,
        "oscillation": oscillation,
    }
)
