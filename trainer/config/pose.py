"""How the pose of generated images is scored."""

from __future__ import annotations

from trainer.config.base import Block


class PoseConfig(Block):
    """`detector` is a file of `python -m trainer fit-pose` on the machine that trains; null: pose is not scored."""

    detector: str | None = None
