"""Which parameter is moved by which optimizer, decided by name and kind of module."""

from __future__ import annotations

import re
from typing import NamedTuple

from torch import nn

_MUON_NAME = re.compile(r"blocks\.\d+\.((self|cross)\.(q|k|v|out)|mlp\.(fc1|fc2|gate))\.weight")


class ParameterGroups(NamedTuple):
    """Names of all trained parameters, in the order of the modules; each name is in exactly one group.

    `muon`: matrices inside the blocks, if Muon or NorMuon moves them. `decayed`: other 2-D weights of linear maps.
    `plain`: everything else (norms, biases, null tokens, embeddings, convolutions), never decayed. With AdamW or
    StableAdamW alone `muon` is empty.
    """

    muon: tuple[str, ...]
    decayed: tuple[str, ...]
    plain: tuple[str, ...]


def published_groups(module: nn.Module, use_muon: bool) -> ParameterGroups:
    """The published sorting: Muon moves whatever has two dimensions, embeddings too, and everything decays."""
    shapes = {name: parameter.ndim for name, parameter in module.named_parameters()}
    muon = tuple(name for name, dimensions in shapes.items() if use_muon and dimensions == 2)
    return ParameterGroups(muon, tuple(name for name in shapes if name not in muon), ())


def parameter_groups(module: nn.Module, use_muon: bool) -> ParameterGroups:
    """Sort the parameters of `module` into groups.

    Raises ValueError when a name says that Muon moves a parameter, and it is no 2-D weight of a linear map: an
    embedding's rows or a convolution's kernels are no directions that could be made orthogonal.
    """
    matrices = {
        f"{name}.weight" if name else "weight"
        for name, part in module.named_modules()
        if isinstance(part, nn.Linear) and part.weight.ndim == 2
    }
    names = [name for name, _ in module.named_parameters()]
    muon = tuple(name for name in names if use_muon and _MUON_NAME.search(name))
    if strangers := [name for name in muon if name not in matrices]:
        owner = type(module.get_submodule(strangers[0].rpartition(".")[0])).__name__
        raise ValueError(
            f"{strangers[0]} is named like a matrix for Muon and belongs to {owner}; "
            "allowed: 2-D weights of nn.Linear under this name, or another name"
        )
    decayed = tuple(name for name in names if name in matrices and name not in muon)
    plain = tuple(name for name in names if name not in matrices)
    return ParameterGroups(muon, decayed, plain)
