"""Which blocks are computed again in the backward pass, and what that leaves in memory: arithmetic, without torch.

A rough model: what a block keeps for the backward pass grows with the tokens it sees and with the width of the model,
and attention scores are never kept. A block that is computed again keeps its input alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from trainer.config import ActivationCheckpointingConfig, TrainerConfig

FLOATS_PER_TOKEN = 12  # numbers per token and channel that a block keeps, image and condition tokens alike: 9 measured
BYTES = {"fp32": 4.0, "bf16": 3.0, "fp16": 3.0}  # per kept number: under autocast the residual stream stays fp32
INPUT_BYTES = 4.0


def block_bytes(config: TrainerConfig, context_tokens: int, index: int) -> float:
    """Estimated bytes that block `index` keeps of one micro-batch; a routed block sees the kept tokens only."""
    first, last = config.routed_blocks
    is_routed = first <= index <= last and config.routed_steps == config.steps
    tokens = config.kept_tokens if is_routed else config.tokens
    numbers = config.batch * (tokens + context_tokens) * config.model.width * FLOATS_PER_TOKEN
    return numbers * BYTES[config.precision.compute]


def recomputed_blocks(config: TrainerConfig, context_tokens: int, blocks: int) -> tuple[int, ...]:
    """Which of so many blocks are computed again, ascending, 0-based."""
    sizes = [block_bytes(config, context_tokens, index) for index in range(blocks)]
    return choose(sizes, config.activation_checkpointing)


def choose(sizes: Sequence[float], wanted: ActivationCheckpointingConfig) -> tuple[int, ...]:
    """Which of the blocks whose activations have these sizes are computed again, ascending.

    A budget takes the largest first, the earlier of two equal ones, until what is left is at most its share of all.
    """
    if wanted.kind == "none":
        return ()
    if wanted.kind != "budget":
        return tuple(range(0, len(sizes), 1 if wanted.kind == "full" else wanted.every))
    left, allowed = sum(sizes), wanted.budget * sum(sizes)
    chosen = []
    for index in sorted(range(len(sizes)), key=lambda each: -sizes[each]):
        if left <= allowed:
            break
        chosen.append(index)
        left -= sizes[index]
    return tuple(sorted(chosen))


def activation_bytes(config: TrainerConfig, context_tokens: int, blocks: int) -> float:
    """Rough upper estimate of the activations of so many blocks at the peak, all tokens in every block.

    Inputs of the blocks that are computed again, one of them whole while its turn lasts, and all that the others keep.
    """
    tokens, again = config.tokens + context_tokens, recomputed_blocks(config, context_tokens, blocks)
    whole = config.batch * tokens * config.model.width * FLOATS_PER_TOKEN * BYTES[config.precision.compute]
    inputs = len(again) * config.batch * config.tokens * config.model.width * INPUT_BYTES
    return whole * (blocks - len(again) + bool(again)) + inputs
