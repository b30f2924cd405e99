"""How checkpoints are scored."""

from __future__ import annotations

from trainer.config.base import Block, Count
from trainer.config.grid import GridConfig
from trainer.config.pose import PoseConfig


class ValidationConfig(Block):
    """A validation at step 0 and every `every` steps on `samples` held-out images, `sampler_steps` Euler steps each."""

    every: Count = 100
    samples: Count = 48
    sampler_steps: Count = 8
    eval_seeds: Count = 1
    grid: GridConfig = GridConfig()
    pose: PoseConfig = PoseConfig()
