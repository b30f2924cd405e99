"""The transformer and the conditions it sees."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from trainer.config.base import Block, Count, Positive

Stream = Literal["full", "pooled", "off"]

LANES = 16  # SwiGLU's hidden channels come in multiples of this, as matrix units want them


class AdaLnConfig(Block):
    """Where the modulation of a block comes from: a linear map of its own, or one map that all blocks share.

    `shared` adds a map of rank `rank` per block to the shared one; `rank` matters to it alone.
    """

    kind: Literal["per_block", "shared"] = "per_block"
    rank: Count = 8


class MaskDitConfig(Block):
    """MaskDiT (arXiv 2306.09305): in training the blocks see 1 - `ratio` of the tokens of a sample.

    `decoder_depth` further blocks see all places, a learned mask token where a token is missing; the clean image that
    is predicted there counts `weight` times in the loss. Sampling hides nothing.
    """

    enabled: bool = False
    ratio: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.75
    decoder_depth: Count = 4
    weight: Positive = 0.1


class ModelConfig(Block):
    """The transformer: channels, blocks, attention heads, side of a patch in pixels, MLP width / width; and its parts.

    `bottleneck`: patches are narrowed to this many numbers on their way in (null = not at all). `mlp: swiglu` has three
    matrices of two thirds of the width that `gelu` has. `condition_norm`, `type_embeddings`: layer norm and a learned
    vector for every stream of conditions. `null_joints`: a learned token per joint stands for one of confidence < 0.05.
    `initial_weights: published` starts no modulation and no head at zero; it needs reference_parity.
    """

    width: Count = 64
    depth: Count = 6
    heads: Count = 4
    patch: Count = 4
    mlp_ratio: Positive = 4.0
    bottleneck: Count | None = None
    adaln: AdaLnConfig = AdaLnConfig()
    gates: bool = True
    final_modulation: bool = True
    qk_norm: bool = True
    positions: Literal["sincos", "rope"] = "sincos"
    mlp: Literal["gelu", "swiglu"] = "gelu"
    norm: Literal["layer", "rms"] = "layer"
    condition_norm: bool = True
    type_embeddings: bool = True
    null_joints: bool = False
    initial_weights: Literal["default", "published"] = "default"
    maskdit: MaskDitConfig = MaskDitConfig()

    @property
    def block_count(self) -> int:
        """Blocks in all: `depth`, and those of the decoder if there is one."""
        return self.depth + (self.maskdit.decoder_depth if self.maskdit.enabled else 0)

    @property
    def mlp_hidden(self) -> int:
        """Channels between the matrices of an MLP; SwiGLU's rounded to the nearest multiple of 16."""
        if self.mlp == "gelu":
            return round(self.width * self.mlp_ratio)
        return LANES * round(self.width * self.mlp_ratio * 2 / 3 / LANES)

    @property
    def adaln_chunks(self) -> int:
        """Modulation vectors of a block: shift and scale, and the gate if there are gates, for each of its parts."""
        return 9 if self.gates else 6


class StreamsConfig(Block):
    """Which conditions the model sees: caption tokens, image CLS, image patches, 133 body joints.

    `pooled`: all words as one token, all joints as one token, two by two neighbouring patches as one.
    """

    text: Stream = "full"
    cls: Stream = "full"
    patches: Stream = "full"
    pose: Stream = "full"

    @property
    def pooled(self) -> frozenset[str]:
        """The streams that are averaged before the model sees them."""
        return frozenset(name for name, value in self if value == "pooled")
