"""Which parameters the indicators put together."""

from __future__ import annotations

import re
from typing import NamedTuple

from torch import nn

from trainer.config import TrainerConfig

_BLOCK = re.compile(r"model\.blocks\.(\d+)\.")
_HEAD = re.compile(r"model\.(modulation|head|smooth)\.")


class Member(NamedTuple):
    """A parameter under its name, and whether it has AdamW's moments (else Muon or NorMuon moves it)."""

    name: str
    parameter: nn.Parameter
    is_adamw: bool


class Block(NamedTuple):
    """Parameters that share their indicators. `is_routed` is None for what is no transformer block."""

    name: str
    members: tuple[Member, ...]
    is_routed: bool | None


def block_of(name: str) -> str | None:
    """The block of a parameter by its name in the learner's modules; None for a parameter outside the model."""
    if match := _BLOCK.match(name):
        return f"block_{int(match[1]):02d}"
    if _HEAD.match(name):
        return "head"
    return "embed" if name.startswith("model.") else None


def blocks_of(modules: nn.ModuleDict, muon: frozenset[str], config: TrainerConfig) -> tuple[Block, ...]:
    """All blocks with their parameters: transformer blocks in their order, then embed and head."""
    members: dict[str, list[Member]] = {}
    for name, parameter in modules.named_parameters():
        if (block := block_of(name)) is not None:
            members.setdefault(block, []).append(Member(name, parameter, name not in muon))
    first, last = config.routed_blocks
    names = [f"block_{index:02d}" for index in range(config.model.block_count)]
    is_routed = {name: config.tread.enabled and first <= index <= last for index, name in enumerate(names)}
    return tuple(Block(name, tuple(members[name]), is_routed.get(name)) for name in (*names, "embed", "head"))
