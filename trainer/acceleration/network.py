"""The network that a training step runs: the model itself, or a twin of it that computes the same in another way.

The twin has its own modules and the model's own parameters. FP8 layers, compiled blocks and blocks that are computed
again exist in the twin only: names in checkpoints, averages, optimizers and validation never see them, and a checkpoint
can be evaluated where none of them runs.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from trainer.acceleration.budget import recomputed_blocks
from trainer.config import CompileConfig, TrainerConfig
from trainer.data.shapes import StreamShapes
from trainer.model.nanodit import NanoDiT
from trainer.precision.fp8 import convert, plan_of
from trainer.precision.plan import lines
from trainer.size import context_tokens

Model = TypeVar("Model", bound=nn.Module)
RECOMPILE_LIMIT = 64  # two token counts, one or two groups of each length; torch gives up after 8


def training_network(model: NanoDiT, config: TrainerConfig, streams: StreamShapes) -> NanoDiT:
    """What to call in a training step; `model` itself where nothing asks for a twin."""
    again = recomputed_blocks(config, context_tokens(config, streams), len(model.blocks))
    fp8 = config.precision.fp8
    if not (fp8.enabled or again or config.compile.enabled):
        return model
    twin = twin_of(model)
    twin.few_shapes = config.compile.enabled or fp8.enabled
    if fp8.enabled:
        convert(twin, fp8)
    for index, block in enumerate(twin.blocks):
        if config.compile.enabled:
            compile_block(block, config.compile)
        if index in again:
            compute_again(block)
    return twin


def described(modules: nn.ModuleDict, config: TrainerConfig, streams: StreamShapes) -> dict[str, Any]:
    """What became of the configuration, for the first line of an attempt: format, FP8 plan, blocks computed again.

    `modules` holds the model under its name, and what auxiliary losses train beside it.
    """
    fp8, blocks = config.precision.fp8, config.model.block_count
    return {
        "compute": config.precision.compute,
        "fp8_plan": lines(plan_of(modules, fp8)) if fp8.enabled else [],
        "recomputed_blocks": list(recomputed_blocks(config, context_tokens(config, streams), blocks)),
        "compiled_blocks": blocks if config.compile.enabled else 0,
    }


def twin_of(model: Model) -> Model:
    """A copy of the modules of a model around the same parameters and buffers, which are not copied."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)


def compile_block(block: nn.Module, wanted: CompileConfig) -> None:
    """Compile the forward pass of a block in place; its graph must be whole."""
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, RECOMPILE_LIMIT)
    block.forward = torch.compile(
        block.forward,
        fullgraph=True,
        dynamic=True if wanted.dynamic else None,
        backend=wanted.backend,
        mode=None if wanted.mode == "default" else wanted.mode,
    )


def compute_again(block: nn.Module) -> None:
    """Keep nothing of a block but its input, and compute it again in the backward pass.

    Blocks draw no random number, so no generator has to be rewound: every draw of a step is an argument.
    """
    block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
