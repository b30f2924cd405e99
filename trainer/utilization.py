"""Model FLOPs utilisation: the share of what a GPU can do that a training run makes use of.

Operations are those of the model: forward and backward as three forward passes, attention included, routed tokens not
counted, nothing recomputed counted twice, no frozen network. They are divided by the device's dense bf16 peak with fp32
accumulation; under FP8 that is a bf16-equivalent share.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from trainer import size
from trainer.config import TrainerConfig
from trainer.data.shapes import StreamShapes

PEAK_TFLOPS = {
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100": 989.0,
    "B200": 2250.0,
    "A100": 312.0,
    "L40S": 362.0,
    "L4": 121.0,
    "RTX 5090": 209.5,
    "RTX 4090": 165.2,
    "RTX 3090": 71.0,
}
"""Dense bf16 with fp32 accumulation, from the makers' data sheets, by a part of the device's name; the first fits."""


def peak_of_run(config: TrainerConfig, device: torch.device, processes: int) -> float | None:
    """Operations per second that all GPUs of a run can do; None on a CPU, in fp32, or on a GPU that is not known."""
    if device.type != "cuda" or config.precision.compute == "fp32":
        return None
    peak = peak_flops(torch.cuda.get_device_name(device))
    return None if peak is None else processes * peak


def peak_flops(device_name: str) -> float | None:
    """Operations per second at most; None for a device whose figure is not known."""
    words = f" {device_name} ".replace("-", " ")
    return next((1e12 * peak for name, peak in PEAK_TFLOPS.items() if f" {name} " in words), None)


def step_flops(
    config: TrainerConfig,
    streams: StreamShapes,
    categories: Sequence[tuple[float, Sequence[str]]],
    side: int,
    is_routed: bool,
) -> float:
    """Operations of an optimizer step on square images of so many pixels, in the mean over what is dropped.

    `categories` holds the probability of every way to drop conditions, and the streams that it keeps; a dropped stream
    is one token. Captions count at their full length.
    """
    config = config.at_size(side)
    tokens = size.stream_tokens(config, streams)
    context = sum(
        probability * sum(count if name in kept else min(count, 1) for name, count in tokens.items())
        for probability, kept in categories
    )
    return 3.0 * config.samples_per_step * size.forward_flops(config, streams, is_routed, context)
