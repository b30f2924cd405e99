"""In which number formats the model computes."""

from __future__ import annotations

from typing import Literal

from trainer.config.base import Block


class Fp8Config(Block):
    """Matrix products of the blocks in 8-bit floating point, by torchao's dynamic scaling (arXiv 2209.05433).

    `recipe`: one scale per tensor or one per row. `filter: auto` converts only shapes large enough to gain by it on an
    H100, as torchao measured it; `all` converts every matrix that can be. `emulate` computes the same numbers without
    the hardware, slowly. Training only: validation computes in `precision.compute`.
    """

    enabled: bool = False
    recipe: Literal["tensorwise", "rowwise"] = "tensorwise"
    filter: Literal["auto", "all"] = "auto"
    emulate: bool = False


class PrecisionConfig(Block):
    """What the model computes in; weights, averages, optimizer and losses are fp32 whatever stands here.

    bf16 and fp16 mean autocast around the networks, in training and in validation alike; fp16 scales the loss, too.
    """

    compute: Literal["fp32", "bf16", "fp16"] = "fp32"
    fp8: Fp8Config = Fp8Config()
