"""What the arms of a synthetic study share: scale, budget, cadences and noise; and how a truth becomes a measurement.

Sizes of the noise come from real runs. The loss of a batch of 16 scatters like a Gumbel number of scale 0.2 in its log
(percentiles 1, 90, 99 and 99.9 at 0.70, 1.43, 2.3 and 3.7 times the median), the same batch being hard for every arm;
the log of the gradient norm follows it with correlation 0.88. A metric is taken on one fixed set of samples, so most of
its noise is a slow wander, partly the same in all arms, and only a part of it is new at each evaluation.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import study_kinds, study_strangers
from benchmarks.study_chance import Array, along, generator, gumbels, key, normals, uniforms, waves
from benchmarks.study_kinds import Curve, Truth

Steps = NDArray[np.int64]


@dataclass(frozen=True)
class Setting:
    """One study without its arms. Noise is relative; steps are optimizer steps."""

    seed: int
    profile: str
    steps_total: int
    cadence: float
    """Share of the budget between two validations."""
    val_at_zero: bool
    log_every: int
    direction: str
    start: float
    """The metric before training."""
    gain: float
    """Share of the start that an ordinary arm gains; for direction max the start is divided by what is left."""
    white_sd: float
    wander_sd: float
    wander_fastest: float
    """Cycles within the budget of the fastest part of the wander."""
    common: float
    """Share of the variance of the noise that all arms have together."""
    tail: float
    """How often a validation's own noise is three times as large."""
    loss_start: float
    loss_scatter: float
    """Gumbel scale of the log of one logged loss."""
    outlier_rate: float
    """How often a logged loss is 1.5 to 4 times as high for no reason, in all arms."""
    bumpiness: float
    body: Any = None
    """study_kinds.Body or study_strangers.Body."""

    def val_steps(self) -> list[int]:
        """The steps of regular validations, the last step included."""
        every = max(1, round(self.cadence * self.steps_total))
        steps = list(range(0 if self.val_at_zero else every, self.steps_total + 1, every))
        return steps if steps[-1] == self.steps_total else [*steps, self.steps_total]

    def log_steps(self) -> list[int]:
        """The steps of log lines."""
        return list(range(self.log_every, self.steps_total + 1, self.log_every))


def setting_of(seed: int, profile: str, *, with_stall: bool) -> Setting:
    """The setting of a study. One that holds a stalled arm has a metric that moves, or nothing would be missed."""
    chance = generator("setting", profile, seed)
    if profile == "stranger":
        setting = _stranger(chance, seed, with_stall)
        return replace(setting, body=study_strangers.body_of(chance, setting.gain, setting.cadence))
    setting = (_shift if profile == "shift" else _base)(chance, seed, with_stall)
    return replace(setting, body=study_kinds.body_of(chance, setting.gain, setting.cadence, setting.bumpiness))


def _base(chance: np.random.Generator, seed: int, with_stall: bool) -> Setting:
    scale = chance.choice(["lpips", "rmse", "fid"], p=[0.45, 0.3, 0.25])
    start, low, high = {
        "lpips": (chance.uniform(0.75, 1.0), 0.02, 0.45),
        "rmse": (chance.uniform(0.06, 0.6), 0.1, 0.6),
        "fid": (chance.uniform(60, 260), 0.4, 0.92),
    }[str(scale)]
    steps = int(chance.choice([800, 5_000, 20_000, 100_000]))
    lines = int(chance.choice([400, 800, 2000]))
    log_every = int(np.clip(round(steps / lines), 1, 50))
    return Setting(
        seed=seed, profile="base", steps_total=steps, cadence=float(chance.choice([0.025, 0.04, 0.05, 0.0625, 0.1])),
        val_at_zero=bool(chance.random() < 0.4), log_every=log_every,
        direction="max" if chance.random() < 0.1 else "min", start=start,
        gain=_log_uniform(chance, max(low, 0.15) if with_stall else low, high),
        white_sd=_log_uniform(chance, 0.0003, 0.0035), wander_sd=_log_uniform(chance, 0.0005, 0.005),
        wander_fastest=chance.uniform(3, 10), common=chance.uniform(0.1, 0.6), tail=0.0,
        loss_start=_log_uniform(chance, 0.05, 9.0), loss_scatter=_scatter(chance, log_every),
        outlier_rate=float(chance.choice([0.0, 0.002])), bumpiness=0.2,
    )  # fmt: skip


def _shift(chance: np.random.Generator, seed: int, with_stall: bool) -> Setting:
    log_every = int(chance.choice([20, 25, 50]))
    return Setting(
        seed=seed, profile="shift", steps_total=20_000, cadence=float(chance.choice([0.03, 0.045, 0.08])),
        val_at_zero=bool(chance.random() < 0.5), log_every=log_every,
        direction="max" if chance.random() < 0.2 else "min", start=chance.uniform(60, 160),
        gain=_log_uniform(chance, 0.3, 0.9),
        white_sd=_log_uniform(chance, 0.001, 0.007), wander_sd=_log_uniform(chance, 0.002, 0.008),
        wander_fastest=chance.uniform(4, 12), common=chance.uniform(0.0, 0.5), tail=0.02,
        loss_start=_log_uniform(chance, 0.05, 9.0), loss_scatter=1.3 * _scatter(chance, log_every),
        outlier_rate=0.002, bumpiness=0.5,
    )  # fmt: skip


def _stranger(chance: np.random.Generator, seed: int, with_stall: bool) -> Setting:
    steps = int(chance.choice([1_200, 7_813, 12_000, 31_250, 60_000]))
    log_every = max(1, steps // int(chance.choice([150, 300, 600])))
    return Setting(
        seed=seed, profile="stranger", steps_total=steps, cadence=chance.uniform(0.03, 0.11),
        val_at_zero=bool(chance.random() < 0.5), log_every=log_every,
        direction="max" if chance.random() < 0.25 else "min", start=_log_uniform(chance, 0.02, 400.0),
        gain=chance.uniform(0.2 if with_stall else 0.05, 0.8),
        white_sd=_log_uniform(chance, 0.0005, 0.005), wander_sd=_log_uniform(chance, 0.0005, 0.006),
        wander_fastest=0.0, common=0.3, tail=0.01,
        loss_start=_log_uniform(chance, 0.01, 12.0), loss_scatter=_log_uniform(chance, 0.01, 0.15),
        outlier_rate=float(chance.choice([0.0, 0.003])), bumpiness=0.3,
    )  # fmt: skip


def _log_uniform(chance: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(chance.uniform(np.log(low), np.log(high))))


def _scatter(chance: np.random.Generator, log_every: int) -> float:
    """Scale of the noise of one line: of one batch, or of the mean over the batches since the last line."""
    of_a_batch = _log_uniform(chance, 0.02, 0.22)
    return max(0.008, of_a_batch / np.sqrt(log_every)) if chance.random() < 0.65 else of_a_batch


def wander(setting: Setting, arm: int) -> Curve:
    """The slow part of an arm's evaluation noise, in the log: its own and what all arms of the study have in common."""
    parts = []
    for name, share in (("all", setting.common), (arm, 1 - setting.common)):
        sd = setting.wander_sd * np.sqrt(share)
        parts.append(_wander_part(setting, sd, name))
    return lambda u_N: parts[0](u_N) + parts[1](u_N)


def _wander_part(setting: Setting, sd: float, name: str | int) -> Curve:
    chance = generator("wander", setting.profile, setting.seed, name)
    if setting.profile == "stranger":
        return study_strangers.autoregressive(chance, sd)
    wave = waves(chance, sd, setting.wander_fastest)
    return lambda u_N: along(wave, u_N)


def metric(setting: Setting, truth: Truth, arm: int, steps_N: Steps, purpose: str) -> Array:
    """The metric that evaluations for this purpose (`val` or `probe`) give at these steps; nan where not finite."""
    u_N = steps_N / setting.steps_total
    white_N = np.zeros(len(steps_N))
    for name, share in (("all", setting.common), (arm, 1 - setting.common)):
        stream = key("white", setting.profile, setting.seed, name, "both" if name == "all" else purpose)
        white_N += np.sqrt(share) * normals(stream, steps_N)
    wild_N = uniforms(key("tail", setting.profile, setting.seed, arm, purpose), steps_N) < setting.tail
    noise_N = wander(setting, arm)(u_N) + setting.white_sd * white_N * np.where(wild_N, 3.0, 1.0)
    relative_N = truth.metric(u_N) * np.exp(noise_N)
    value_N = setting.start * relative_N if setting.direction == "min" else setting.start / relative_N
    return np.where(_is_finite(setting, truth, steps_N), value_N, np.nan)


def loss_and_gradient(setting: Setting, truth: Truth, arm: int, steps_N: Steps) -> tuple[Array, Array]:
    """The logged losses and gradient norms at these steps; nan where nothing is finite."""
    u_N = steps_N / setting.steps_total
    place = (setting.profile, setting.seed)
    own = 0.45
    batch_N = np.sqrt(1 - own**2) * normals(key("batch", *place), steps_N)
    noise_N = gumbels(batch_N + own * normals(key("loss", *place, arm), steps_N))
    scatter_N = setting.loss_scatter * truth.roughness(u_N)
    odd_N = uniforms(key("outlier", *place), steps_N)
    size_N = 1.5 + 2.5 * uniforms(key("outlier size", *place), steps_N)
    outlier_N = np.where(odd_N < setting.outlier_rate, size_N, 1.0)
    relative_N = truth.loss(u_N)
    with np.errstate(over="ignore"):
        loss_N = setting.loss_start * relative_N * outlier_N * np.exp(scatter_N * noise_N)
        other_N = normals(key("gradient", *place, arm), steps_N)
        gradient_N = relative_N**0.6 * outlier_N * np.exp(scatter_N * (2.1 * noise_N + 1.3 * other_N))
    finite_N = _is_finite(setting, truth, steps_N)
    return np.where(finite_N, loss_N, np.nan), np.where(finite_N, gradient_N, np.nan)


def _is_finite(setting: Setting, truth: Truth, steps_N: Steps) -> NDArray[np.bool_]:
    return steps_N < (np.inf if truth.gone is None else truth.gone * setting.steps_total)
