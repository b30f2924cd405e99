"""Weights that are read or drawn once and never change: freezing, naming and reading them."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from trainer.errors import ConfigError, Issue

Net = TypeVar("Net", bound=nn.Module)


def frozen(net: Net) -> Net:
    """The network in eval mode, without gradients for its weights."""
    return net.requires_grad_(False).eval()


def weights_hash(net: nn.Module) -> str:
    """What identifies the weights of a network: 16 hex digits of SHA-256 over names and bytes of all of them."""
    digest = hashlib.sha256()
    for name, value in sorted(net.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def draw_weights(net: nn.Module, seed: int = 0) -> None:
    """Fill a network from its own generator: matrices and kernels of variance 2 / inputs (He et al. 2015), biases 0.

    Vectors of norms keep the ones and zeros that their modules give them.
    """
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if parameter.dim() > 1:
                spread = (2.0 / parameter[0].numel()) ** 0.5
                parameter.copy_(spread * torch.randn(parameter.shape, generator=source))
            elif name.endswith("bias"):
                parameter.zero_()


def read_weights(path: Path, key: str, what: str) -> dict[str, Tensor]:
    """The tensors of a .safetensors or a torch file. Raises ConfigError for `key` that says `what` should be there."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise ConfigError([Issue(key, f"{path} cannot be read: {error}", f"random, or {what}")]) from error
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ConfigError([Issue(key, f"{path} holds no table of weights", f"random, or {what}")])
    return found
