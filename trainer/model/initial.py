"""Initial weights: every parameter is drawn from a counter stream keyed by its own name.

So a module that is added or left out changes the initial weights of no other one, and arms of one seed start alike.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from trainer import randomness

EMBEDDING_STD = 0.02
_ZERO = ("modulation", "shared_modulation", "lora_up", "head", "smooth")


def initialise(module: nn.Module, run_seed: int, prefix: str = "", published: bool = False) -> None:
    """Draw all parameters of `module` in place.

    Zero: all biases, modulation (adaLN-Zero; of a low-rank one the second factor), head and the closing convolution, so
    that gated blocks start as identities and the first prediction is 0. One: query gains. Normal with std 0.02: null
    and mask tokens, type and joint embeddings. All other matrices: Xavier uniform.

    `published`: Xavier uniform for modulation and head too, zero for null tokens, std 1 for joint embeddings.
    """
    draw = _published if published else _initial
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(draw(prefix + name, parameter, run_seed))


def _initial(name: str, parameter: Tensor, run_seed: int) -> Tensor:
    owner, _, leaf = name.rpartition(".")
    if leaf == "bias" or owner.split(".")[-1] in _ZERO:
        return torch.zeros(parameter.shape)
    if leaf == "gain_D":
        return torch.ones(parameter.shape)
    if leaf != "weight":
        return EMBEDDING_STD * randomness.normal(parameter.shape, run_seed, "init", name)
    return _xavier(name, parameter, run_seed)


def _published(name: str, parameter: Tensor, run_seed: int) -> Tensor:
    owner, _, leaf = name.rpartition(".")
    if leaf in ("null_D", "unseen_JD"):
        return torch.zeros(parameter.shape)
    if leaf == "joint_JD":
        return randomness.normal(parameter.shape, run_seed, "init", name)
    if leaf == "weight" and owner.split(".")[-1] != "smooth":
        return _xavier(name, parameter, run_seed)
    return _initial(name, parameter, run_seed)


def _xavier(name: str, parameter: Tensor, run_seed: int) -> Tensor:
    fan_out, fan_in = parameter.shape[0], parameter[0].numel()
    bound = math.sqrt(6.0 / (fan_in + fan_out))
    return (2.0 * randomness.uniform(parameter.shape, run_seed, "init", name) - 1.0) * bound
