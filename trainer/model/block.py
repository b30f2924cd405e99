"""One transformer block: self-attention, cross-attention and MLP, each behind a gate that starts at zero.

Shapes: B samples, N image tokens, S condition tokens, D channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm

from trainer.model.attention import Attention
from trainer.model.conditioning import Group

CHUNKS = 9  # shift, scale and gate for each of self-attention, cross-attention and MLP


class Mlp(nn.Module):
    """Two matrices with a tanh-approximated GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden, bias=False)
        self.fc2 = nn.Linear(hidden, width, bias=False)

    def forward(self, x_BND: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        return self.fc2(gelu(self.fc1(x_BND), approximate="tanh"))


class Block(nn.Module):
    """Gated adaLN-Zero block (arXiv 2212.09748), extended by cross-attention: nine modulation vectors."""

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.modulation = nn.Linear(width, CHUNKS * width)
        self.self = Attention(width, heads)
        self.cross = Attention(width, heads)
        self.mlp = Mlp(width, round(width * mlp_ratio))

    def forward(self, x_BND: Tensor, drive_BD: Tensor, groups: tuple[Group, ...]) -> Tensor:
        """`drive_BD` is SiLU of the adaLN input (time plus image CLS); `groups` cover the samples in order."""
        chunks = self.modulation(drive_BD).unsqueeze(1).chunk(CHUNKS, dim=-1)
        h_BND = modulate(x_BND, chunks[0], chunks[1])
        x_BND = torch.addcmul(x_BND, chunks[2], self.self(h_BND, h_BND))
        h_BND = modulate(x_BND, chunks[3], chunks[4])
        x_BND = torch.addcmul(x_BND, chunks[5], self._attend(h_BND, groups))
        h_BND = modulate(x_BND, chunks[6], chunks[7])
        return torch.addcmul(x_BND, chunks[8], self.mlp(h_BND))

    def _attend(self, h_BND: Tensor, groups: tuple[Group, ...]) -> Tensor:
        """Cross-attention, once per group of samples with similarly long contexts."""
        parts = h_BND.split([len(group.tokens_GSD) for group in groups])
        pairs = zip(parts, groups, strict=True)
        return torch.cat([self.cross(part, group.tokens_GSD, group.mask_G11S) for part, group in pairs])


def modulate(x_BND: Tensor, shift_B1D: Tensor, scale_B1D: Tensor) -> Tensor:
    """Layer norm without parameters of its own, then scale and shift per sample."""
    return torch.addcmul(shift_B1D, layer_norm(x_BND, x_BND.shape[-1:], eps=1e-6), 1 + scale_B1D)
