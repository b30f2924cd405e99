"""One transformer block: self-attention, cross-attention and MLP, each behind a gate that starts at zero.

Shapes: B samples, N image tokens, S condition tokens, D channels, E channels per head.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trainer.config import ModelConfig
from trainer.model.attention import Attention
from trainer.model.conditioning import Group
from trainer.model.fused import Gate
from trainer.model.mlp import build_mlp
from trainer.model.modulation import NORMS, Drive, block_modulation, chunks_of, modulate


class Block(nn.Module):
    """Gated adaLN-Zero block (arXiv 2212.09748), extended by cross-attention: nine modulation vectors.

    Without gates it has six and adds each part as it is.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.modulation = block_modulation(config)
        self.self = Attention(config.width, config.heads, config.qk_norm)
        self.cross = Attention(config.width, config.heads, config.qk_norm)
        self.mlp = build_mlp(config)
        self.gates, self.chunks, self.norm = config.gates, config.adaln_chunks, NORMS[config.norm]

    def forward(
        self, x_BND: Tensor, drive: Drive, groups: tuple[Group, ...], rotation_BNE: Tensor | None = None
    ) -> Tensor:
        """`groups` cover the samples in order; `rotation_BNE` turns queries and keys of self-attention."""
        chunks = chunks_of(self.modulation, drive, self.chunks)
        step = self.chunks // 3
        of_self, of_cross, of_mlp = chunks[:step], chunks[step : 2 * step], chunks[2 * step :]
        h_BND = modulate(x_BND, of_self[0], of_self[1], self.norm)
        x_BND = self._add(x_BND, self.self(h_BND, h_BND, rotation_BNE=rotation_BNE), of_self)
        h_BND = modulate(x_BND, of_cross[0], of_cross[1], self.norm)
        x_BND = self._add(x_BND, self._attend(h_BND, groups), of_cross)
        h_BND = modulate(x_BND, of_mlp[0], of_mlp[1], self.norm)
        return self._add(x_BND, self.mlp(h_BND), of_mlp)

    def _add(self, x_BND: Tensor, part_BND: Tensor, chunks: tuple[Tensor, ...]) -> Tensor:
        return Gate.apply(x_BND, chunks[2], part_BND) if self.gates else x_BND + part_BND

    def _attend(self, h_BND: Tensor, groups: tuple[Group, ...]) -> Tensor:
        """Cross-attention, once per group of samples with similarly long contexts."""
        parts = h_BND.split([len(group.tokens_GSD) for group in groups])
        pairs = zip(parts, groups, strict=True)
        return torch.cat([self.cross(part, group.tokens_GSD, group.mask_G11S) for part, group in pairs])
