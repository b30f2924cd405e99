"""Evaluation sets and models with known answers, for the metrics of a validation."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from trainer.data import open_source
from trainer.data.sample import Conditions
from trainer.document import parse_config
from trainer.evaluate.protocols import EvalSet, eval_sets
from trainer.model.nanodit import Output


def eval_set(size: int = 32, samples: int = 24, **blocks: object) -> EvalSet:
    """The first procedural held-out portraits under a small configuration."""
    block = {"steps": 4, "data": {"size": size, "samples": 8, "held_out": samples}}
    config = parse_config({**block, "validation": {"samples": samples, "sampler_steps": 2}, **blocks})
    [inputs] = eval_sets(config, open_source(config), torch.device("cpu"))
    return inputs


class Oracle:
    """A model that knows the answer as a function of its conditions."""

    def __init__(self, answer: Callable[[Tensor, Conditions], Tensor]) -> None:
        self._answer = answer

    def __call__(self, z_BCHW: Tensor, t_B: Tensor, conditions: Conditions, route: object = None) -> Output:
        """The answer as a prediction of x."""
        x_BCHW = self._answer(z_BCHW, conditions)
        return Output(x_BCHW, None, x_BCHW)
