"""Multi-head attention with RMS-normalised queries and keys, used for both self- and cross-attention.

Shapes: B samples, N queries, S keys, D channels, H heads, E = D / H channels per head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from trainer.model.fused import project
from trainer.model.positions import rotate

EPSILON = 1e-6


class Attention(nn.Module):
    """Scaled dot-product attention; q, k and v are separate matrices, so that Muon orthogonalises each one alone.

    One gain per channel scales the normalised queries. Keys need none: only products of queries and keys matter.
    Without `qk_norm` both stay as they are.
    """

    def __init__(self, width: int, heads: int, qk_norm: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width, bias=False)
        self.k = nn.Linear(width, width, bias=False)
        self.v = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.gain_D = nn.Parameter(torch.empty(width)) if qk_norm else None

    def forward(
        self,
        x_BND: Tensor,
        context_BSD: Tensor,
        mask_B11S: Tensor | None = None,
        rotation_BNE: Tensor | None = None,
    ) -> Tensor:
        """Attend from `x_BND` to `context_BSD`; a False in the boolean mask hides that key from every query.

        `rotation_BNE` turns queries and keys by the places of their tokens: self-attention only.
        """
        if context_BSD is x_BND:
            q_BND, k_BSD, v_BSD = project(x_BND, self.q, self.k, self.v)
        else:
            q_BND, (k_BSD, v_BSD) = self.q(x_BND), project(context_BSD, self.k, self.v)
        q_BNHE, k_BSHE = self._normalise(self._split(q_BND), self._split(k_BSD))
        if rotation_BNE is not None:
            q_BNHE, k_BSHE = rotate(q_BNHE, rotation_BNE), rotate(k_BSHE, rotation_BNE)
        q_BHNE, k_BHSE, v_BHSE = (part.transpose(1, 2) for part in (q_BNHE, k_BSHE, self._split(v_BSD)))
        y_BHNE = scaled_dot_product_attention(q_BHNE, k_BHSE, v_BHSE, attn_mask=mask_B11S)
        return self.out(y_BHNE.transpose(1, 2).flatten(2))

    def _normalise(self, q_BNHE: Tensor, k_BSHE: Tensor) -> tuple[Tensor, Tensor]:
        if self.gain_D is None:
            return q_BNHE, k_BSHE
        return self._split(RmsNorm.apply(q_BNHE).flatten(2) * self.gain_D), RmsNorm.apply(k_BSHE)

    def _split(self, x_BND: Tensor) -> Tensor:
        return x_BND.unflatten(-1, (self.heads, -1))


class RmsNorm(torch.autograd.Function):
    """x / rms(x) over the last dimension; a third of the time of the composite operation on a CPU, forth and back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Any shape; the last dimension is normalised."""
        # The norm of a half-precision vector is fp32: its square would overflow in fp16.
        wide = torch.promote_types(x.dtype, torch.float32)
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide)
        inverse = length.square_().div_(x.shape[-1]).add_(EPSILON).rsqrt_()
        y = (x * inverse).to(x.dtype)
        ctx.save_for_backward(y, inverse)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """d/dx of y = x / rms(x): (grad - y mean(grad y)) / rms(x)."""
        y, inverse = ctx.saved_tensors
        wide = grad.to(inverse.dtype)
        share = (wide * y).mean(-1, keepdim=True)
        return torch.addcmul(wide, y, share, value=-1).mul_(inverse).to(y.dtype)
