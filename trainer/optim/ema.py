"""Averages of the weights whose memory is a share of the run, unbiased from the first update on."""

from __future__ import annotations

import copy
from typing import Generic, TypeVar

import torch
from torch import nn

from trainer.config import EmaConfig
from trainer.config.ema import PUBLISHED
from trainer.optim.published_ema import published_decay

Model = TypeVar("Model", bound=nn.Module)


def decay(half_life: float, every: int, steps: int) -> float:
    """Factor per update for a half-life given as a share of a run of `steps`: 0.5^(every / (half_life steps))."""
    factor: float = 0.5 ** (every / (half_life * steps))
    return factor


class Ema(Generic[Model]):
    """One averaged copy of the model per half-life, in fp32; `models` maps a half-life to it, the first is "the" EMA.

    The published average comes before them, as "published", if it is asked for.

    n-th update: average += (1 - d) / (1 - d^n) (weights - average). The first update copies the weights, and after n
    updates the weights of update i count d^(n - i), normalised: no warm-up is needed. Before the first update the
    copies hold the initial weights.
    """

    def __init__(self, config: EmaConfig, model: Model, steps: int) -> None:
        self._every = config.every
        self._decays = {half_life: decay(half_life, config.every, steps) for half_life in config.half_lives}
        self.models: dict[float | str, Model] = {name: _frozen_copy(model) for name in config.averages}

    @property
    def first(self) -> Model:
        """The model that validation calls "ema"."""
        return next(iter(self.models.values()))

    def update(self, model: nn.Module, step: int) -> None:
        """Take in the weights after `step` optimizer steps; does nothing unless `step` is a multiple of `every`."""
        updates, rest = divmod(step, self._every)
        if rest:
            return
        weights = [parameter.detach() for parameter in model.parameters()]
        for name, average in self.models.items():
            torch._foreach_lerp_(list(average.parameters()), weights, self._share(name, updates, step))

    def _share(self, name: float | str, updates: int, step: int) -> float:
        """What the newest weights count in an average."""
        if name == PUBLISHED:
            return 1.0 - published_decay(step)
        assert isinstance(name, float), "all other averages are named after their half-life"
        d = self._decays[name]
        return (1.0 - d) / (1.0 - d**updates)


def _frozen_copy(model: Model) -> Model:
    return copy.deepcopy(model).requires_grad_(False).eval()
