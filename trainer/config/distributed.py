"""Several processes on one host."""

from __future__ import annotations

from typing import Literal

from trainer.config.base import Block, Positive


class DistributedConfig(Block):
    """How the processes of one training share the work; nothing here matters to one process alone.

    `ddp`: every process holds everything. `fsdp`: weights, averages and optimizer state are divided among them. `auto`:
    ddp below a thousand million parameters. A process that keeps the others waiting for `timeout_s` ends the training.
    Under fsdp the indicator opt/<block>/gradient_noise always comes from AdamW's moments.
    """

    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    timeout_s: Positive = 600.0
