"""Fits the keypoint detector on drawn portraits of its own.

Shapes: B samples, C channels, H x W pixels, J joints, U uniform draws of one sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import affine_grid, binary_cross_entropy_with_logits, grid_sample

from trainer import randomness
from trainer.data.anatomy import joints_of
from trainer.data.drawing import draw
from trainer.data.portraits import portrait_of
from trainer.data.sample import to_unit_range
from trainer.pose.detector import LARGEST_SIDE, KeypointDetector, unfitted

BATCH = 32
PEAK_LR = 4e-3
_ZOOM, _SHIFT = 0.05, 0.1  # in shares of the frame, and of half of it
_GRAIN = 0.1  # standard deviation of the strongest noise on an image that still shows a portrait
_NO_PORTRAIT = 5  # one sample in so many shows none
_PIECES = 4
_PLACE_SCALE, _SHAPE_SCALE = 0.1, 0.1  # errors of so much of half the frame cost 1


@dataclass(frozen=True, slots=True)
class Portraits:
    """Images in [-1, 1] and their joints."""

    x_BCHW: Tensor
    joints_BJ3: Tensor


def portraits(first: int, count: int, size: int) -> Portraits:
    """Portraits pose000000, pose000001, …: ids that no run trains on, holds out or probes, as those are p0…."""
    drawn = [portrait_of(f"pose{index:06d}") for index in range(first, first + count)]
    pixels = np.stack([draw(each, size, size).pixels_HWC for each in drawn]).transpose(0, 3, 1, 2).copy()
    joints = np.stack([joints_of(each, size, size) for each in drawn])
    return Portraits(to_unit_range(torch.from_numpy(pixels)), torch.from_numpy(joints))


def fit(train: Portraits, steps: int, seed: int, say: Callable[[int, float], None]) -> KeypointDetector:
    """Adam with a cosine to 0 on batches of 32; `say` hears of step and loss now and then.

    Every draw is a counter stream of (seed, step, position), so the same call gives the same weights.
    """
    net = unfitted(min(train.x_BCHW.shape[-1], LARGEST_SIDE))
    _initialise(net, train.joints_BJ3, seed)
    optimizer = torch.optim.Adam(net.parameters(), lr=PEAK_LR)
    positions = range(BATCH)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = PEAK_LR * 0.5 * (1 + math.cos(math.pi * step / steps))
        draws_BU = randomness.uniform_rows((6 + _PIECES**2,), seed, "fit_pose", step, positions)
        grain_BCHW = randomness.normal_rows(train.x_BCHW.shape[1:], seed, "fit_pose_grain", step, positions)
        loss = _loss(net, *_augmented(train, draws_BU, grain_BCHW))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 0 or step == steps - 1:
            say(step + 1, loss.item())
    return net.eval()


def _augmented(train: Portraits, draws_BU: Tensor, grain_BCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Images, their joints, and which show a portrait at all: moved, grainy, some cut to pieces or pure noise."""
    chosen_B = (draws_BU[:, 0] * len(train.x_BCHW)).long()
    moves_B = torch.arange(BATCH) % 2  # the others stay where portraits are drawn
    zoom_B = 1 + moves_B * _ZOOM * (2 * draws_BU[:, 1] - 1)
    shift_B2 = moves_B[:, None] * _SHIFT * (2 * draws_BU[:, 2:4] - 1)
    x_BCHW, joints_BJ3 = _moved(train.x_BCHW[chosen_B], train.joints_BJ3[chosen_B], zoom_B, shift_B2)
    kind_B = torch.arange(BATCH) % _NO_PORTRAIT
    shows_B = kind_B != 0
    pieces_B = (kind_B == 0) & (draws_BU[:, 5] < 0.5)
    noise_B = (kind_B == 0) & ~pieces_B
    x_BCHW = torch.where(_wide(pieces_B), _in_pieces(x_BCHW, draws_BU[:, 6:]), x_BCHW)
    strength_B = torch.where(noise_B, 1.0, _GRAIN * draws_BU[:, 4].square())
    x_BCHW = torch.where(_wide(noise_B), 0.0, x_BCHW) + _wide(strength_B) * grain_BCHW
    return x_BCHW.clamp(-1, 1), joints_BJ3, shows_B


def _moved(x_BCHW: Tensor, joints_BJ3: Tensor, zoom_B: Tensor, shift_B2: Tensor) -> tuple[Tensor, Tensor]:
    """Images looked at through a window of `zoom` around `shift`; joints that leave the frame get confidence 0."""
    theta_B23 = torch.cat([torch.diag_embed(zoom_B[:, None].expand(-1, 2)), shift_B2[:, :, None]], dim=2)
    grid_BHW2 = affine_grid(theta_B23, list(x_BCHW.shape), align_corners=False)
    moved_BCHW = grid_sample(x_BCHW, grid_BHW2, padding_mode="border", align_corners=False)
    place_BJ2 = (joints_BJ3[..., :2] - shift_B2[:, None]) / zoom_B[:, None, None]
    inside_BJ = place_BJ2.abs().amax(dim=2) <= 1.0
    return moved_BCHW, torch.cat([place_BJ2, (joints_BJ3[..., 2] * inside_BJ)[..., None]], dim=2)


def _in_pieces(x_BCHW: Tensor, order_BU: Tensor) -> Tensor:
    """Images cut into 4 x 4 pieces that are laid out anew, edges that do not divide left as they are."""
    side = x_BCHW.shape[-1] // _PIECES
    inner_BCHW = x_BCHW[..., : side * _PIECES, : side * _PIECES]
    batch, channels = x_BCHW.shape[:2]
    pieces = inner_BCHW.reshape(batch, channels, _PIECES, side, _PIECES, side).permute(0, 2, 4, 1, 3, 5)
    pieces = pieces.flatten(1, 2)[torch.arange(batch)[:, None], order_BU.argsort(dim=1)]
    laid = pieces.unflatten(1, (_PIECES, _PIECES)).permute(0, 3, 1, 4, 2, 5).reshape(inner_BCHW.shape)
    result_BCHW = x_BCHW.clone()
    result_BCHW[..., : side * _PIECES, : side * _PIECES] = laid
    return result_BCHW


def _loss(net: KeypointDetector, x_BCHW: Tensor, joints_BJ3: Tensor, shows_B: Tensor) -> Tensor:
    """Squared errors of place (mean over the visible joints of a portrait) and of shape (what is left at each joint),
    in units of their usual size, and the cross-entropy of being visible."""
    found_BJ3: Tensor = net(x_BCHW)
    visible_BJ = (joints_BJ3[..., 2] > 0) & shows_B[:, None]
    share_BJ1 = (visible_BJ / visible_BJ.sum(dim=1, keepdim=True).clamp(min=1))[..., None]
    apart_BJ2 = found_BJ3[..., :2] - joints_BJ3[..., :2]
    place_B12 = (apart_BJ2 * share_BJ1).sum(dim=1, keepdim=True)
    shape_BJ2 = (apart_BJ2 - place_B12) * share_BJ1.sqrt()
    error = (place_B12 / _PLACE_SCALE).square().sum() + (shape_BJ2 / _SHAPE_SCALE).square().sum()
    visible = binary_cross_entropy_with_logits(found_BJ3[..., 2], visible_BJ.float())
    return error / visible_BJ.any(dim=1).sum().clamp(min=1) + visible


def _initialise(net: KeypointDetector, joints_BJ3: Tensor, seed: int) -> None:
    """Normal weights of variance 2 / fan-in (He et al. 2015), biases 0, and a head that begins at the mean joints."""
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if parameter.dim() == 1:
                parameter.zero_()
            else:
                spread = math.sqrt(2.0 / parameter[0].numel()) * (0.1 if name.startswith("head") else 1.0)
                parameter.copy_(spread * randomness.normal(parameter.shape, seed, "init", name))
        seen_BJ1 = (joints_BJ3[..., 2:] > 0).float()
        mean_J2 = (joints_BJ3[..., :2] * seen_BJ1).sum(dim=0) / seen_BJ1.sum(dim=0).clamp(min=1)
        net.head.bias.view(-1, 3)[:, :2].copy_(mean_J2)


def _wide(value_B: Tensor) -> Tensor:
    return value_B[:, None, None, None]
