"""The three sets of weights of a checkpoint: raw, the average, and another average of the same run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer.autopsy.rebuild import LARGEST_DISTANCE, combine
from trainer.checkpoint import ema_name, list_steps, read_state, read_weights
from trainer.config import TrainerConfig
from trainer.config.ema import PUBLISHED
from trainer.data.sample import StreamShapes
from trainer.model.nanodit import NanoDiT
from trainer.objective.prediction import empty_model
from trainer.optim.ema import decay

# The half-life that is rebuilt where only one is stored, and the one for runs that store just that.
OTHER, ELSE_OTHER = 0.20, 0.05


@dataclass(frozen=True, slots=True)
class Averages:
    """The half-lives that "ema" and "ema_alt" stand for, as shares of the run, and whether the second one is stored.

    The first may be "published" instead; then the second is stored.
    """

    first: float | str
    other: float
    stored: bool


@dataclass(frozen=True, slots=True)
class WeightSets:
    """Tensors by set (raw, ema, ema_alt) and parameter name.

    `distance` is that of a rebuilt ema_alt's weight profile from its target; `why_not` is set where ema_alt is missing.
    """

    tensors: Mapping[str, Mapping[str, Tensor]] = field(repr=False)
    distance: float | None = None
    why_not: str = ""

    @property
    def finite(self) -> bool:
        """Whether every number of the stored sets is finite."""
        stored = (self.tensors[name] for name in ("raw", "ema"))
        return all(bool(tensor.isfinite().all()) for tensors in stored for tensor in tensors.values())


def averages_of(state: Mapping[str, Any]) -> Averages:
    """What a checkpoint's state.json says about its averages."""
    settings = state["config"]["ema"]
    if settings.get("published"):
        return Averages(PUBLISHED, settings["half_lives"][0], True)
    first, *more = settings["half_lives"]
    rebuilt = OTHER if first != OTHER else ELSE_OTHER
    return Averages(first, more[0] if more else rebuilt, bool(more))


def load_sets(run_dir: Path, step: int) -> WeightSets:
    """All sets of one checkpoint, on the CPU. Raises CheckpointError for a file that cannot be read."""
    averages = averages_of(read_state(run_dir, step))
    tensors: dict[str, Mapping[str, Tensor]] = {
        "raw": read_weights(run_dir, step, "model"),
        "ema": read_weights(run_dir, step, ema_name(averages.first)),
    }
    if averages.stored:
        return WeightSets({**tensors, "ema_alt": read_weights(run_dir, step, ema_name(averages.other))})
    return _with_rebuilt(run_dir, step, averages, tensors)


def as_model(tensors: Mapping[str, Tensor], config: TrainerConfig, state: Mapping[str, Any], device: str) -> NanoDiT:
    """A model with these weights on a device, in eval mode and without gradients."""
    with torch.device("meta"):
        model = empty_model(config, StreamShapes(**state["streams"]))
    model.load_state_dict(dict(tensors), assign=True)
    return model.to(device).requires_grad_(False).eval()


def _with_rebuilt(
    run_dir: Path, step: int, averages: Averages, tensors: Mapping[str, Mapping[str, Tensor]]
) -> WeightSets:
    """ema_alt added up from the averages that were stored up to `step`, unless they resolve it too coarsely."""
    states = {at: read_state(run_dir, at) for at in list_steps(run_dir) if at <= step}
    settings = states[step]["config"]
    if any(state["config"]["steps"] != settings["steps"] for state in states.values()):
        return WeightSets(tensors, why_not="the run was extended, so its stored averages have several half-lives")
    every, total = settings["ema"]["every"], settings["steps"]
    stored = {at // every: at for at in sorted(states, reverse=True) if at // every}  # updates -> earliest such step
    counts = sorted(stored)
    if step // every == 0:  # before the first update every average is the initial weights
        return WeightSets({**tensors, "ema_alt": tensors["ema"]}, distance=0.0)
    assert isinstance(averages.first, float), "beside the published average there is always another one"
    found = combine(counts, decay(averages.first, every, total), decay(averages.other, every, total))
    if found.distance > LARGEST_DISTANCE:
        why_not = (
            f"only the average with half-life {averages.first:g} is stored, at steps "
            f"{', '.join(str(stored[count]) for count in counts)}; one of {averages.other:g} rebuilt from them would "
            f"be {found.distance:.2f} (total variation of its weight profile) away from it, above {LARGEST_DISTANCE:g}"
        )
        return WeightSets(tensors, distance=found.distance, why_not=why_not)
    return WeightSets(
        {**tensors, "ema_alt": _added_up(run_dir, [stored[count] for count in counts], averages, found.factors)},
        distance=found.distance,
    )


def _added_up(run_dir: Path, steps: list[int], averages: Averages, factors: tuple[float, ...]) -> dict[str, Tensor]:
    """Sum of factor times stored average, in fp64 because the factors partly cancel."""
    total: dict[str, Tensor] = {}
    for step, factor in zip(steps, factors, strict=True):
        for name, tensor in read_weights(run_dir, step, ema_name(averages.first)).items():
            part = tensor.double() * factor
            total[name] = part if name not in total else total[name].add_(part)
    return {name: tensor.float() for name, tensor in total.items()}
