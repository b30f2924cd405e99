"""How an image is drawn in an autopsy: dense, routed, guided, and guided with other strengths.

Shapes: B samples, C channels, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.config import NATIVE_SCALES, NativeSamplerConfig, TrainerConfig
from trainer.data.sample import Conditions
from trainer.model.nanodit import NanoDiT, Output
from trainer.model.tread import Route
from trainer.sampler import Predict, dense, predictor

WEIGHTS = ("raw", "ema", "ema_alt")
PASSES = ("dense", "routed", "guided")
SWEEP = (1.0, 1.5, 3.0)

Make = Callable[[NanoDiT, Conditions, Route], Predict]


@dataclass(frozen=True, slots=True)
class Pass:
    """One way to draw: its name, what scores.csv calls its sampler, the weights that draw it, and the prediction."""

    name: str
    sampler: str
    weights: tuple[str, ...]
    make: Make


@dataclass(frozen=True, slots=True)
class Passes:
    """All ways to draw for one run.

    `sweep` maps a strength w to the name of the pass that draws it; `why_not` a name to the reason why there is none.
    """

    all: tuple[Pass, ...]
    sweep: dict[float, str]
    sweep_kind: str
    why_not: dict[str, str]


def plan_passes(config: TrainerConfig) -> Passes:
    """What can be drawn for this run: routing needs TREAD, guidance needs a guided `sampler.native`.

    The sweep uses the native kind of guidance, and self-guidance for a run with routing but without a native guidance.
    w is the scale of self-guidance, or every scale of nested guidance; at w = 1 both are the dense pass. The published
    dual guidance has no such scale: there w = 1 is no pass of ours, so it is not swept.
    """
    native = config.sampler.native
    found = [Pass("dense", "common", WEIGHTS, lambda model, conditions, route: dense(model, conditions))]
    why_not = {}
    if config.tread.enabled:
        found.append(Pass("routed", "autopsy", WEIGHTS, _routed))
    else:
        why_not["routed"] = "this run trains without routing"
    if native.kind != "dense":
        found.append(Pass("guided", "native", WEIGHTS, _guided(native)))
    else:
        why_not["guided"] = "sampler.native is dense: this arm draws without guidance"
    kind = _sweep_kind(config)
    if not kind:
        none = "this run has neither a native guidance nor routing"
        why_not["sweep"] = none if native.kind == "dense" else f"no scale of {native.kind} is the dense pass"
        return Passes(tuple(found), {}, kind, why_not)
    sweep = {1.0: "dense"}
    for w in SWEEP[1:]:
        guidance = _with_strength(kind, w, native.interval)
        if kind == native.kind and guidance.scales == native.scales:
            sweep[w] = "guided"  # drawn already
            continue
        sweep[w] = f"w={w:g}"
        found.append(Pass(sweep[w], "autopsy", ("ema",), _guided(guidance)))
    return Passes(tuple(found), sweep, kind, why_not)


def told(guidance: NativeSamplerConfig) -> str:
    """A guidance in words: `self_guidance (scale 3)`, `dense`."""
    scales = ", ".join(f"{name} {value:g}" for name, value in guidance.scales.items())
    only = "" if guidance.interval is None else ", t in [{:g}, {:g}]".format(*guidance.interval)
    return f"{guidance.kind} ({scales}{only})" if scales else guidance.kind


def _sweep_kind(config: TrainerConfig) -> str:
    if config.sampler.native.kind == "dual_cfg":
        return ""
    if config.sampler.native.kind != "dense":
        return config.sampler.native.kind
    return "self_guidance" if config.tread.enabled else ""


def _with_strength(kind: str, w: float, interval: tuple[float, float] | None) -> NativeSamplerConfig:
    scales = {name: w for name, _ in NATIVE_SCALES[kind]}
    return NativeSamplerConfig.model_validate({"kind": kind, **scales, "interval": interval})


def _guided(guidance: NativeSamplerConfig) -> Make:
    return lambda model, conditions, route: predictor(model, conditions, guidance, route)


def _routed(model: NanoDiT, conditions: Conditions, route: Route) -> Predict:
    """Tokens are routed as in training; what self-guidance of scale 0 gives, for half the work."""

    def predict(z_BCHW: Tensor, t: float) -> Tensor:
        times_B = torch.full((len(z_BCHW),), t, device=z_BCHW.device)
        output: Output = model(z_BCHW, times_B, conditions, route=route)
        return output.x_BCHW

    return predict
