"""AsymFlow (arXiv 2605.12964): noise is predicted in a small subspace of each patch, the clean image everywhere else.

Patches are flattened as (C, p, p). P = A A^T projects onto the `rank` directions A in which training patches vary most.
The head y estimates u_A = P (s noise) - x. Inside the subspace that is a velocity, outside minus the clean patch:

    loss = mean[|P (y - (s noise - x))|^2 + |(I - P)(y + x)|^2 / max(t, 0.05)^2]
    velocity u^ = P y + (I - P)(z + y) / t,     x^ = z - t u^ = P (z - t y) - (I - P) y

Rank 0 is x-prediction with y = -x^; full rank is v-prediction.

Shapes: B samples, C channels, H x W pixels, N patches, F = C p p numbers of a patch, R rank.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trainer.model.nanodit import Output
from trainer.model.patches import from_patches, to_patches
from trainer.objective.flow import Noisy, mean_per_sample, over_time


class AsymFlow(nn.Module):
    """The asymmetric prediction on one basis, which is stored with the weights of the model."""

    basis_FR: Tensor

    def __init__(self, patch: int, features: int, rank: int, basis_FR: Tensor | None = None) -> None:
        super().__init__()
        self.patch = patch
        given = torch.zeros(features, rank) if basis_FR is None else basis_FR
        assert given.shape == (features, rank), f"a basis of {tuple(given.shape)} for patches of {features}"
        self.register_buffer("basis_FR", given)

    def project(self, image_BCHW: Tensor) -> Tensor:
        """P applied to every patch of an image: (B, C, H, W)."""
        grid = (image_BCHW.shape[2] // self.patch, image_BCHW.shape[3] // self.patch)
        coordinates_BNR = to_patches(image_BCHW, self.patch) @ self.basis_FR
        return from_patches(coordinates_BNR @ self.basis_FR.T, grid, self.patch)

    def clean(self, y_BCHW: Tensor, z_BCHW: Tensor, t_B: Tensor) -> Tensor:
        """P (z - t y) - (I - P) y, written with one projection: P (z + (1 - t) y) - y."""
        t_B111 = t_B[:, None, None, None]
        return self.project(z_BCHW + (1.0 - t_B111) * y_BCHW) - y_BCHW

    def loss(self, output: Output, noisy: Noisy, weight_B1HW: Tensor | None = None) -> Tensor:
        """The two squared errors, each where it belongs: (B,)."""
        y_BCHW = output.head_BCHW
        outside_BCHW = y_BCHW + noisy.x_BCHW
        inside_BCHW = self.project(outside_BCHW - noisy.noise_scale * noisy.noise_BCHW)
        outside_BCHW = outside_BCHW - self.project(outside_BCHW)
        inside_B = mean_per_sample(inside_BCHW.square(), weight_B1HW)
        return inside_B + over_time(mean_per_sample(outside_BCHW.square(), weight_B1HW), noisy.t_B)
