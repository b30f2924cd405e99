"""Whether the blocks are compiled."""

from __future__ import annotations

from typing import Literal

from trainer.config.base import Block


class CompileConfig(Block):
    """torch.compile for each block of the network that trains; validation runs what is not compiled.

    `dynamic: false` compiles for the sizes that come first, and once more for those that turn out to change (lengths of
    contexts, sizes of groups); true takes every size as variable from the start. `mode` is one of torch.compile and
    belongs to inductor; `aot_eager` captures the same graphs without generating code, which shows where capture fails.
    """

    enabled: bool = False
    backend: Literal["inductor", "aot_eager"] = "inductor"
    mode: Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] = "default"
    dynamic: bool = False
