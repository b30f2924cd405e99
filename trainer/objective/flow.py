"""Flow matching with x-prediction: z = (1 - t) x + t s noise, velocity v = s noise - x, t = 1 is noise.

Shapes: B samples, C channels, H x W pixels.
"""

from __future__ import annotations

from torch import Tensor

MIN_T = 0.05  # the one floor of t that prediction, target and velocity share


def corrupt(x_BCHW: Tensor, noise_BCHW: Tensor, t_B: Tensor, noise_scale: float = 1.0) -> Tensor:
    """The noisy image z at times t."""
    t_B111 = t_B[:, None, None, None]
    return (1.0 - t_B111) * x_BCHW + (t_B111 * noise_scale) * noise_BCHW


def velocity(z_BCHW: Tensor, predicted_BCHW: Tensor, t_B: Tensor, floor: float = MIN_T) -> Tensor:
    """The velocity that a predicted clean image implies: (z - x^) / max(t, floor)."""
    return (z_BCHW - predicted_BCHW) / t_B.clamp(min=floor)[:, None, None, None]


def x_prediction_loss(predicted_BCHW: Tensor, x_BCHW: Tensor, t_B: Tensor) -> Tensor:
    """Per sample: mean[(x^ - x)^2] / max(t, 0.05)^2, which is the squared error of the velocity; (B,)."""
    error_B = (predicted_BCHW - x_BCHW).square().flatten(1).mean(1)
    return error_B / t_B.clamp(min=MIN_T).square()
