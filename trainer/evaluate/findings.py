"""What one validation gathers before it is written.

Shapes: B samples, C channels, H x W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from PIL import Image
from torch import Tensor

from trainer.evaluate.scores import Score


@dataclass
class Findings:
    """Scores, images (B, C, H, W) of the first samples by variant and eval seed, and contact sheets by name."""

    scores: list[Score] = field(default_factory=list)
    drawn: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    sheets: dict[str, Image.Image] = field(default_factory=dict)

    def shown(self, most: int) -> dict[str, Tensor]:
        """At most so many images of every variant, of the first eval seed."""
        return {variant: images[:most] for (variant, eval_seed), images in self.drawn.items() if eval_seed == 0}
