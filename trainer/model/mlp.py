"""The MLP of a block, in two makes.

Shapes: B samples, N image tokens, D channels.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import gelu, silu

from trainer.config import ModelConfig


class Mlp(nn.Module):
    """Two matrices with a tanh-approximated GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden, bias=False)
        self.fc2 = nn.Linear(hidden, width, bias=False)

    def forward(self, x_BND: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        return self.fc2(gelu(self.fc1(x_BND), approximate="tanh"))


class SwiGlu(nn.Module):
    """fc2(silu(gate(x)) fc1(x)) (arXiv 2002.05202): two thirds of the hidden channels for as many parameters."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, hidden, bias=False)
        self.fc1 = nn.Linear(width, hidden, bias=False)
        self.fc2 = nn.Linear(hidden, width, bias=False)

    def forward(self, x_BND: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        return self.fc2(silu(self.gate(x_BND)) * self.fc1(x_BND))


def build_mlp(config: ModelConfig) -> nn.Module:
    """The MLP of a configuration."""
    return (Mlp if config.mlp == "gelu" else SwiGlu)(config.width, config.mlp_hidden)
