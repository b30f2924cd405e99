"""What one validation gathers before it is written.

Shapes: B samples, C channels, H x W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from trainer.evaluate.cfg_divergence import CfgDivergence
from trainer.evaluate.dino_swap import DinoSwap
from trainer.evaluate.protocols import EvalSet
from trainer.evaluate.scores import Score


@dataclass
class Findings:
    """What was found on the samples of one shape.

    Scores, images (B, C, H, W) of the first samples by variant and eval seed, and of eval seed 0 what sheets show. A
    variant that is drawn for the first samples only is absent where none of them has this shape.
    """

    inputs: EvalSet
    scores: list[Score] = field(default_factory=list)
    drawn: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    swap: DinoSwap | None = None
    divergence: CfgDivergence | None = None

    def shown(self, most: int) -> dict[str, Tensor]:
        """Images of every variant, of the first eval seed, of at most `most` samples of all shapes."""
        count = self.inputs.among_first(most)
        return {variant: images[:count] for (variant, eval_seed), images in self.drawn.items() if eval_seed == 0}
