"""From noise to an image: Euler steps from t = 1 (noise) to t = 0, with or without guidance.

Guidance combines predictions of the clean image x^. Nothing is clamped here: a clamp belongs to writer and metric.

Shapes: B samples, C channels, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from trainer.config import NativeSamplerConfig
from trainer.data.sample import Conditions
from trainer.model.conditioning import STREAMS
from trainer.model.nanodit import NanoDiT
from trainer.model.tread import Route
from trainer.objective.timesteps import shift_timesteps

Predict = Callable[[Tensor, float], Tensor]

COMMON = NativeSamplerConfig()  # dense, all conditions: the protocol that all arms of a study share
# What nested guidance adds, one after the other, and the name of the scale of each addition.
NESTED = (("text", ("text",)), ("dino", ("text", "cls", "patches")), ("pose", STREAMS))
DUAL = (("text", ("text",)), ("dino", ("cls", "patches")))  # what dual guidance goes towards, each from nothing


def time_grid(steps: int, shift: float = 1.0) -> tuple[float, ...]:
    """steps + 1 times from 1 to 0: t = 1 - i / steps, shifted as the training times are."""
    even = torch.tensor([1.0 - index / steps for index in range(steps + 1)], dtype=torch.float64)
    return tuple(shift_timesteps(even, shift).tolist())


def euler(predict: Predict, noise_BCHW: Tensor, grid: Sequence[float]) -> Tensor:
    """Follow the flow along `grid`: z <- x^ + (t_next / t) (z - x^); the last step, to t = 0, gives x^ itself.

    `noise_BCHW` is z at t = 1, already scaled.
    """
    z_BCHW = noise_BCHW
    for t, t_next in pairwise(grid):
        x_BCHW = predict(z_BCHW, t)
        z_BCHW = x_BCHW if t_next == 0.0 else x_BCHW + (t_next / t) * (z_BCHW - x_BCHW)
    return z_BCHW


def predictor(
    model: NanoDiT, conditions: Conditions, guidance: NativeSamplerConfig = COMMON, route: Route | None = None
) -> Predict:
    """The prediction x^(z, t) under one kind of guidance. `route` is what self-guidance routes by, and unused else."""
    guided = _guided(model, conditions, guidance, route)
    return guided if guidance.interval is None else within(guidance.interval, guided, dense(model, conditions))


def _guided(model: NanoDiT, conditions: Conditions, guidance: NativeSamplerConfig, route: Route | None) -> Predict:
    if guidance.kind == "self_guidance":
        assert route is not None, "self-guidance needs the routing of the run"
        return self_guided(model, conditions, route, guidance.scales["scale"])
    if guidance.kind == "nested_cfg":
        return nested_cfg(model, conditions, guidance.scales)
    return dual_cfg(model, conditions, guidance.scales) if guidance.kind == "dual_cfg" else dense(model, conditions)


def within(interval: tuple[float, float], guided: Predict, plain: Predict) -> Predict:
    """`guided` where low <= t <= high, `plain` elsewhere (Kynkaanniemi et al., arXiv 2404.07724, in our noise time)."""
    low, high = interval
    return lambda z_BCHW, t: (guided if low <= t <= high else plain)(z_BCHW, t)


def dense(model: NanoDiT, conditions: Conditions) -> Predict:
    """No guidance."""
    return lambda z_BCHW, t: model(z_BCHW, _times(z_BCHW, t), conditions).x_BCHW


def self_guided(model: NanoDiT, conditions: Conditions, route: Route, scale: float) -> Predict:
    """x^_routed + scale (x^_dense - x^_routed), the same mask at every step: scale 1 is dense, 0 is routed, exactly."""

    def predict(z_BCHW: Tensor, t: float) -> Tensor:
        times_B = _times(z_BCHW, t)
        routed_BCHW = model(z_BCHW, times_B, conditions, route=route).x_BCHW
        return torch.lerp(routed_BCHW, model(z_BCHW, times_B, conditions).x_BCHW, scale)

    return predict


def nested_cfg(model: NanoDiT, conditions: Conditions, scales: dict[str, float]) -> Predict:
    """x^_0 + s_text (x^_T - x^_0) + s_dino (x^_TD - x^_T) + s_pose (x^_TDP - x^_TD).

    From nothing over text and image features to all conditions: combinations that training has seen. All scales 1 give
    the prediction under all conditions. Streams that `conditions` does not have add nothing.
    """
    steps = [(scales[name], conditions.keep(streams)) for name, streams in NESTED]

    def predict(z_BCHW: Tensor, t: float) -> Tensor:
        times_B = _times(z_BCHW, t)
        current = conditions.keep(())
        result_BCHW: Tensor = model(z_BCHW, times_B, current).x_BCHW
        before_BCHW = result_BCHW
        for scale, following in steps:
            if following.streams == current.streams:
                continue
            after_BCHW = model(z_BCHW, times_B, following).x_BCHW
            result_BCHW = result_BCHW + scale * (after_BCHW - before_BCHW)
            before_BCHW, current = after_BCHW, following
        return result_BCHW

    return predict


def dual_cfg(model: NanoDiT, conditions: Conditions, scales: dict[str, float]) -> Predict:
    """x^_0 + s_text (x^_T - x^_0) + s_dino (x^_D - x^_0), pose dropped everywhere: the published guidance.

    D is CLS and patches without words, a combination that training never sees. Absent streams add nothing.
    """
    towards = [(scales[name], conditions.keep(streams)) for name, streams in DUAL]

    def predict(z_BCHW: Tensor, t: float) -> Tensor:
        times_B = _times(z_BCHW, t)
        nothing_BCHW: Tensor = model(z_BCHW, times_B, conditions.keep(())).x_BCHW
        result_BCHW = nothing_BCHW
        for scale, kept in towards:
            if kept.streams:
                result_BCHW = result_BCHW + scale * (model(z_BCHW, times_B, kept).x_BCHW - nothing_BCHW)
        return result_BCHW

    return predict


def _times(z_BCHW: Tensor, t: float) -> Tensor:
    return torch.full((z_BCHW.shape[0],), t, device=z_BCHW.device)
