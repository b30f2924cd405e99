"""Synthetic studies with known labels: what a training would have logged, and what a probe at any step would measure.

`study(seed, profile)` draws 4 to 10 arms that share their data, their evaluation samples and their budget. Profiles:
`base`; `shift` (another scale, 20,000 steps, other cadences, more noise); `stranger` (another author's way to draw
curves, study_strangers.py). Everything is a function of (seed, profile), and none of it knows a threshold of the judge.

Labels keep a margin: a healthy arm truly ends less than 2.5 % above its best, a sick one more than 4.5 %; a stalled one
ends at least 6 % behind the middle of its siblings, which moved at least 6 % after it stopped. What lies between is not
generated, because no label would be right there. Only the part of the noise that is new at each evaluation has no
margin.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from benchmarks import study_kinds, study_strangers
from benchmarks.study_chance import Array, generator
from benchmarks.study_kinds import Truth
from benchmarks.study_setting import Setting, loss_and_gradient, metric, setting_of, wander

PROFILES = ("base", "shift", "stranger")
SICK_SHARE = 0.4
"""How often an arm is drawn sick; at most half of a study is."""
ATTEMPTS = 300
"""Draws of one arm until it keeps the margin of its label."""
HEALTHY_END, SICK_END, STALL_GAP = 0.025, 0.045, 0.06
GRID_N = np.linspace(0.0, 1.0, 601)


@dataclass(frozen=True)
class Label:
    """What is true of an arm. `onset` is the step from which it is sick, None for a healthy one."""

    sick: bool
    kind: str
    onset: int | None


@dataclass(frozen=True)
class Arm:
    """One arm as it would have been recorded; None stands for a value that is not finite."""

    study: str
    arm: int
    steps_total: int
    direction: str
    events: list[tuple[int, str]]
    val_steps: list[int]
    val_metric: list[float | None]
    log_steps: list[int]
    train_loss: list[float | None]
    grad_norm: list[float | None]
    label: Label
    truth: Truth = field(repr=False, compare=False)
    setting: Setting = field(repr=False, compare=False)

    @property
    def name(self) -> str:
        """SEED/PROFILE/ARM, by which one arm is found again."""
        return f"{self.study}/{self.arm}"

    def probe(self, step: int) -> float:
        """What an evaluation of its own at this step would have measured; nan where nothing is finite any more."""
        return float(metric(self.setting, self.truth, self.arm, np.array([step]), "probe")[0])


def study(seed: int, profile: str) -> list[Arm]:
    """The arms of one study. An arm whose own noise alone would break any label (one in some 10,000) is left out.

    Raises ValueError for a profile that does not exist.
    """
    if profile not in PROFILES:
        raise ValueError(f"{profile!r} is no profile; allowed: {', '.join(PROFILES)}")
    source = study_strangers if profile == "stranger" else study_kinds
    kinds = _kinds(generator("kinds", profile, seed), source)
    setting = setting_of(seed, profile, with_stall="stall" in kinds)
    truths: dict[int, Truth] = {}
    for number in sorted(range(len(kinds)), key=lambda number: _LATE.get(kinds[number], 0)):
        siblings = [truths[other] for other in sorted(truths) if kinds[other] in source.HEALTHY]
        truth = _truth(setting, source, kinds[number], number, siblings)
        if truth is None:
            # This study has no room for that kind (a plateau among arms that all end elsewhere): an ordinary arm then.
            kinds[number], truth = "decay", _truth(setting, source, "decay", number, siblings)
        if truth is not None:
            truths[number] = truth
    return [_recorded(setting, kinds[number], truths[number], number) for number in sorted(truths)]


_LATE = {"plateau": 1, "laggard": 1, "slow_start": 1, "lr_decay": 1, "stall": 2}
"""Kinds that are compared with their siblings are drawn after them."""


def line(arm: Arm) -> str:
    """One line of JSON, as `runner backtest` reads it, with the kind inside the label."""
    names = [name for name in Arm.__dataclass_fields__ if name not in ("label", "truth", "setting")]
    document: dict[str, Any] = {name: getattr(arm, name) for name in names}
    return json.dumps(document | {"label": asdict(arm.label)}, separators=(",", ":"), allow_nan=False)


def _kinds(chance: np.random.Generator, source: Any) -> list[str]:
    healthy: Sequence[str] = [*source.HEALTHY, "decay"]
    sick: Sequence[str] = list(source.SICK)
    count = int(chance.integers(4, 11))
    kinds: list[str] = []
    for _ in range(count):
        is_sick = chance.random() < SICK_SHARE and sum(kind in source.SICK for kind in kinds) < count // 2
        kinds.append(str(chance.choice(sick if is_sick else healthy)))
    # One stalled arm at most, and only beside three healthy ones: otherwise nothing says that it could have learnt.
    wells = sum(kind in source.HEALTHY for kind in kinds)
    for number, kind in enumerate(kinds):
        if kind == "stall" and (wells < 3 or "stall" in kinds[:number]):
            kinds[number] = "collapse"
    return kinds


def _truth(setting: Setting, source: Any, kind: str, number: int, siblings: Sequence[Truth]) -> Truth | None:
    """The first draw that keeps the margin of its label, with the slow noise counted in; None when none does."""
    noise_N = np.exp(wander(setting, number)(GRID_N))
    # What is worse than its best must be so where it is validated, or nobody could ever say it.
    seen_N = np.array(setting.val_steps()) / setting.steps_total
    seen_noise_N = np.exp(wander(setting, number)(seen_N))
    others = [truth.metric(GRID_N) for truth in siblings]
    for attempt in range(ATTEMPTS):
        chance = generator("arm", setting.profile, setting.seed, number, attempt)
        body = source.jittered(chance, setting.body)
        truth: Truth = (source.HEALTHY | source.SICK)[kind](chance, body)
        level_N = truth.metric(GRID_N) * noise_N
        if kind in source.HEALTHY:
            keeps = _is_healthy(level_N, others)
        elif kind == "stall":
            keeps = _is_stalled(level_N, others, truth.onset or 0.0)
        else:
            seen_level_N = truth.metric(seen_N) * seen_noise_N
            keeps = truth.gone is not None or _is_sick(seen_level_N, swings=kind == "oscillation")
        if keeps:
            return truth
    return None


def _is_healthy(level_N: Array, others: Sequence[Array]) -> bool:
    """It ends near its best, and is not far behind its siblings unless it still moves."""
    if level_N[-1] > (1 + HEALTHY_END) * level_N.min():
        return False
    if not others:
        return True
    middle = float(np.median([other_N[-1] for other_N in others]))
    moves = level_N[-1] < 0.97 * level_N[len(level_N) // 2]
    return bool(moves or level_N[-1] < (1 + STALL_GAP / 2) * middle)


def _is_sick(level_N: Array, *, swings: bool) -> bool:
    """It ends beyond the margin above its best; one that swings may end anywhere, if it left its best twice."""
    if not swings:
        return bool(level_N[-1] > (1 + SICK_END) * level_N.min())
    is_off_N = level_N > (1 + SICK_END) * np.minimum.accumulate(level_N)
    return int(np.count_nonzero(is_off_N[1:] & ~is_off_N[:-1])) >= 2


def _is_stalled(level_N: Array, others: Sequence[Array], onset: float) -> bool:
    """It stays where it was at the onset, and its siblings do not."""
    begin = math.ceil(onset * (len(level_N) - 1))
    middle_N = np.median(others, axis=0)
    moved = middle_N[-1] < (1 - STALL_GAP) * middle_N[begin]
    return bool(moved and level_N[-1] > (1 + STALL_GAP) * middle_N[-1] and level_N[-1] > 0.98 * level_N[begin])


def _recorded(setting: Setting, kind: str, truth: Truth, number: int) -> Arm:
    val_steps, log_steps = setting.val_steps(), setting.log_steps()
    loss_N, gradient_N = loss_and_gradient(setting, truth, number, np.array(log_steps))
    values_N = metric(setting, truth, number, np.array(val_steps), "val")
    onset = None if truth.onset is None else math.ceil(truth.onset * setting.steps_total)
    return Arm(
        study=f"{setting.seed}/{setting.profile}",
        arm=number,
        steps_total=setting.steps_total,
        direction=setting.direction,
        events=[(math.ceil(share * setting.steps_total), name) for share, name in truth.events],
        val_steps=val_steps,
        val_metric=_plain(values_N),
        log_steps=log_steps,
        train_loss=_plain(loss_N),
        grad_norm=_plain(gradient_N),
        label=Label(onset is not None, kind, onset),
        truth=truth,
        setting=setting,
    )


def _plain(values_N: Array) -> list[float | None]:
    """Six significant digits, as a log would have them; None where it is not finite."""
    return [float(f"{value:.6g}") if math.isfinite(value) else None for value in values_N.tolist()]
