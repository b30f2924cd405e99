"""Adaptive layer norm: what time and image CLS do to every block (adaLN-Zero, arXiv 2212.09748).

The modulation of a block is a linear map of its own, or one map for all blocks plus a low-rank one of its own. Every
map that ends in a modulation starts at zero, so that gated blocks start as identities.

Shapes: B samples, N image tokens, D channels, M numbers that modulate a block.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.functional import layer_norm

from trainer.config import ModelConfig
from trainer.model.attention import RmsNorm
from trainer.model.fused import ScaleShift

Norm = Callable[[Tensor], Tensor]


class Drive(NamedTuple):
    """What modulates all blocks: SiLU of the adaLN input (time plus image CLS), and the shared modulation if any."""

    input_BD: Tensor
    shared_BM: Tensor | None


class LowRank(nn.Module):
    """A linear map of rank `rank` (LoRA, arXiv 2106.09685); its second factor starts at zero."""

    def __init__(self, width: int, outputs: int, rank: int) -> None:
        super().__init__()
        self.lora_down = nn.Linear(width, rank, bias=False)
        self.lora_up = nn.Linear(rank, outputs, bias=False)

    def forward(self, x_BD: Tensor) -> Tensor:
        """(B, D) -> (B, M)."""
        return self.lora_up(self.lora_down(x_BD))


def shared_modulation(config: ModelConfig) -> nn.Module | None:
    """The map that all blocks share; None where each has its own."""
    return nn.Linear(config.width, config.adaln_chunks * config.width) if config.adaln.kind == "shared" else None


def block_modulation(config: ModelConfig) -> nn.Module:
    """The map that belongs to one block."""
    outputs = config.adaln_chunks * config.width
    if config.adaln.kind == "shared":
        return LowRank(config.width, outputs, config.adaln.rank)
    return nn.Linear(config.width, outputs)


def chunks_of(own: nn.Module, drive: Drive, count: int) -> tuple[Tensor, ...]:
    """The `count` modulation vectors of a block: (B, 1, D) each."""
    modulation_BM = own(drive.input_BD)
    if drive.shared_BM is not None:
        modulation_BM = drive.shared_BM + modulation_BM
    return modulation_BM.unsqueeze(1).chunk(count, dim=-1)


def modulate(x_BND: Tensor, shift_B1D: Tensor, scale_B1D: Tensor, norm: Norm) -> Tensor:
    """Norm without parameters of its own, then scale and shift per sample."""
    return ScaleShift.apply(norm(x_BND), shift_B1D, scale_B1D)


def layer(x_BND: Tensor) -> Tensor:
    """Layer norm over the channels."""
    return layer_norm(x_BND, x_BND.shape[-1:], eps=1e-6)


def rms(x_BND: Tensor) -> Tensor:
    """x / rms(x) over the channels (arXiv 1910.07467): the mean stays."""
    return RmsNorm.apply(x_BND)


NORMS: dict[str, Norm] = {"layer": layer, "rms": rms}
