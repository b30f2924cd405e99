"""What alignment demands."""

from __future__ import annotations

from collections.abc import Iterator

from trainer.config import TrainerConfig
from trainer.data.shapes import stream_shapes
from trainer.errors import Issue


def rules(config: TrainerConfig) -> Iterator[Issue]:
    """Every demand that `config` does not meet."""
    repa = config.repa
    if not repa.enabled:
        return
    if not stream_shapes(config).patch_width:
        yield Issue("repa.enabled", "alignment needs image patches as its teacher, and this run has none", "false")
    if config.repa_block >= config.model.depth:
        yield Issue(
            "repa.after_block",
            f"there is no block {config.repa_block} in a model of depth {config.model.depth}",
            f"0 to {config.model.depth - 1}",
        )
    if config.repa_end <= 0:
        yield Issue("repa.stop.end", "alignment would end before it starts", "a share above 0")
    if repa.stop.kind == "linear" and repa.stop.start >= config.repa_end:
        yield Issue("repa.stop.start", "the line must start before it ends", f"a share below {config.repa_end}")
    first, last = config.routed_blocks
    if repa.projector == "conv" and config.routed_steps and first <= config.repa_block <= last:
        yield Issue(
            "repa.projector",
            f"a convolution needs all tokens of the grid, but block {config.repa_block} sees some of them",
            ("mlp", "linear"),
        )
