"""Flow matching: z = (1 - t) x + t s noise, velocity v = s noise - x, t = 1 is noise.

Shapes: B samples, C channels, H x W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

MIN_T = 0.05  # the one floor of t that prediction, target and velocity share


@dataclass(frozen=True, slots=True)
class Noisy:
    """Images on their way to noise: `x_BCHW` clean in [-1, 1], `noise_BCHW` standard normal, `t_B` in [0, 1]."""

    x_BCHW: Tensor
    noise_BCHW: Tensor
    t_B: Tensor
    z_BCHW: Tensor
    noise_scale: float = 1.0

    @property
    def velocity_BCHW(self) -> Tensor:
        """s noise - x."""
        return self.noise_scale * self.noise_BCHW - self.x_BCHW


def corrupt(x_BCHW: Tensor, noise_BCHW: Tensor, t_B: Tensor, noise_scale: float = 1.0) -> Tensor:
    """The noisy image z at times t."""
    t_B111 = t_B[:, None, None, None]
    return (1.0 - t_B111) * x_BCHW + (t_B111 * noise_scale) * noise_BCHW


def velocity(z_BCHW: Tensor, predicted_BCHW: Tensor, t_B: Tensor, floor: float = MIN_T) -> Tensor:
    """The velocity that a predicted clean image implies: (z - x^) / max(t, floor)."""
    return (z_BCHW - predicted_BCHW) / t_B.clamp(min=floor)[:, None, None, None]


def over_time(error_B: Tensor, t_B: Tensor) -> Tensor:
    """error / max(t, 0.05)^2: what an error of the clean image is as an error of the velocity; (B,)."""
    return error_B / t_B.clamp(min=MIN_T).square()


def mean_per_sample(square_BCHW: Tensor, weight_B1HW: Tensor | None = None) -> Tensor:
    """Mean over channels and pixels, each pixel counted `weight` times if weights are given: (B,)."""
    weighted = square_BCHW if weight_B1HW is None else square_BCHW * weight_B1HW
    return weighted.flatten(1).mean(1)
