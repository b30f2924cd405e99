"""The transformer and the conditions it sees."""

from __future__ import annotations

from typing import Literal

from trainer.config.base import Block, Count, Positive

Stream = Literal["full", "off"]


class ModelConfig(Block):
    """Size of the transformer: channels, blocks, attention heads, side of a patch in pixels, MLP width / width."""

    width: Count = 64
    depth: Count = 6
    heads: Count = 4
    patch: Count = 4
    mlp_ratio: Positive = 4.0


class StreamsConfig(Block):
    """Which conditions the model sees: caption tokens, image CLS, image patches, 133 body joints."""

    text: Stream = "full"
    cls: Stream = "full"
    patches: Stream = "full"
    pose: Stream = "full"
