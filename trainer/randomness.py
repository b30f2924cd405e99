"""Counter-based random streams: a draw depends on what it is for, never on what was drawn before.

    stream    key                     what is drawn
    init      parameter name          initial weights
    order     epoch                   the order of the training images in one epoch
    timestep  step, position          t of one sample
    noise     step, position          the noise of one sample
    dropout   step, position          which conditions one sample keeps
    route     step, position          which tokens one sample keeps
    maskdit   step, position          which tokens of one sample MaskDiT's encoder sees
    fit_pose  step, position          what the pose detector sees in one sample (fit_pose_grain: its noise)
    eval      sample id, eval seed    noise of a validation image (always with run seed 0: shared by all arms and seeds)

`step` counts finished optimizer steps before the draw (0 for the first update); `position` is the place of the sample
in the effective batch. Micro-batch size and device appear nowhere, so neither changes a draw: everything is drawn on
the CPU and then moved.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import torch
from torch import Tensor


def stream_seed(run_seed: int, stream: str, *key: int | str) -> int:
    """First 8 bytes, big-endian, of SHA-256 of the compact JSON [run_seed, stream, *key]: the seed of one stream."""
    text = json.dumps([run_seed, stream, *key], separators=(",", ":"))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def generator(run_seed: int, stream: str, *key: int | str) -> torch.Generator:
    """A fresh CPU generator at the start of one counter stream."""
    fresh = torch.Generator(device="cpu")
    fresh.manual_seed(stream_seed(run_seed, stream, *key))
    return fresh


def normal(shape: Sequence[int], run_seed: int, stream: str, *key: int | str) -> Tensor:
    """Standard normal float32 values on the CPU, a pure function of the arguments."""
    return torch.randn(tuple(shape), generator=generator(run_seed, stream, *key))


def uniform(shape: Sequence[int], run_seed: int, stream: str, *key: int | str) -> Tensor:
    """Uniform float32 values in [0, 1) on the CPU, a pure function of the arguments."""
    return torch.rand(tuple(shape), generator=generator(run_seed, stream, *key))


def normal_rows(shape: Sequence[int], run_seed: int, stream: str, step: int, positions: Sequence[int]) -> Tensor:
    """One standard normal draw of `shape` per position of the effective batch, stacked: (len(positions), *shape)."""
    return torch.stack([normal(shape, run_seed, stream, step, position) for position in positions])


def noise_rows(shape: Sequence[int], run_seed: int, step: int, positions: Sequence[int]) -> Tensor:
    """The noise of the images at some positions of the effective batch of one step: (len(positions), *shape)."""
    return normal_rows(shape, run_seed, "noise", step, positions)


def uniform_rows(shape: Sequence[int], run_seed: int, stream: str, step: int, positions: Sequence[int]) -> Tensor:
    """One uniform draw in [0, 1) of `shape` per position of the effective batch, stacked: (len(positions), *shape)."""
    return torch.stack([uniform(shape, run_seed, stream, step, position) for position in positions])
