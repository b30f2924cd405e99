"""TREAD token routing (arXiv 2501.04765): some image tokens skip the middle blocks and come back unchanged.

Shapes: B samples, N image tokens, K kept tokens, D channels.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Route:
    """Which tokens of each sample go through blocks `first` to `last` (0-based, inclusive).

    `keep_BK` holds ascending int64 token indices, one row per sample: every sample has its own mask.
    """

    keep_BK: Tensor
    first: int
    last: int

    def select(self, index: Tensor) -> Route:
        """The routes of some samples of the batch."""
        return Route(self.keep_BK[index], self.first, self.last)


def keep_from_noise(noise_BN: Tensor, kept: int) -> Tensor:
    """Indices of the `kept` smallest noise values of each row, in ascending order of index: (B, kept) int64."""
    return noise_BN.argsort(dim=1)[:, :kept].sort(dim=1).values


def gather_tokens(x_BND: Tensor, keep_BK: Tensor) -> Tensor:
    """The kept tokens of each sample, in raster order: (B, K, D)."""
    return x_BND.gather(1, _channels(keep_BK, x_BND))


def scatter_tokens(x_BND: Tensor, kept_BKD: Tensor, keep_BK: Tensor) -> Tensor:
    """A copy of `x_BND` in which the kept tokens are replaced; all other tokens are exactly those of `x_BND`."""
    return x_BND.scatter(1, _channels(keep_BK, x_BND), kept_BKD)


def _channels(keep_BK: Tensor, x_BND: Tensor) -> Tensor:
    return keep_BK.unsqueeze(-1).expand(-1, -1, x_BND.shape[-1])
