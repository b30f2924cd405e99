"""What a training step costs, and what of it is work: forward, backward, whole steps, TREAD beside its theory.

    python -m benchmarks.train_step                                  # the CPU sizes of the README, one thread
    python -m benchmarks.train_step --device cuda --width 768 --depth 18 --heads 12 --size 1024 --patch 16 \
        --text 512 --patches 4096 --batch 4 --precision bf16 bf16+compile fp8+compile

Data is noise of the asked sizes, kept in memory, with the seven-way dropout of training. Cells take turns, so that
whatever slows the machine slows all of them; medians, with the span of the middle half. On a CPU the clock is the time
of the one computing thread, on a GPU the wall clock between two synchronisations.

- *theory* is the ratio of the operations of all blocks (linear maps and attention; conditions are never routed).
- *products* are the matrix products and attentions that forward and backward asked for, repeated alone.
- *step* is everything a run does: data, draws, loss, gradients, optimizer, averages, metrics.
- *MFU*: operations of the model (forward x 3, only the tokens that are really computed, no recomputation) over what the
  device can do with dense bf16.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from trainer.config import TrainerConfig
from trainer.control import StopRequest
from trainer.data.batches import Batches
from trainer.data.sample import Conditions, Sample, StreamShapes, collate
from trainer.document import parse_config
from trainer.meter import Meter
from trainer.model.tread import Route, keep_from_noise
from trainer.step import Learner

PEAK_TFLOPS = {"H200": 989.0, "H100": 989.0, "A100": 312.0, "4090": 165.2, "L40S": 362.0}
"""Dense bf16 with fp32 accumulation, from the data sheets, by a part of the device's name."""

JOINTS = 133
IMAGES = 16
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm")


@dataclass(frozen=True)
class Sizes:
    """What is trained on. `text` and `patches` count condition tokens, `features` their numbers."""

    width: int = 192
    depth: int = 8
    heads: int = 6
    size: int = 256
    patch: int = 16
    text: int = 256
    patches: int = 211
    features: int = 64
    batch: int = 4

    @property
    def tokens(self) -> int:
        """Image tokens of a sample."""
        return (self.size // self.patch) ** 2

    @property
    def context(self) -> int:
        """Condition tokens of a sample that keeps all streams."""
        return self.text + 1 + self.patches + JOINTS


class Cell(NamedTuple):
    """One row: its name and what it changes in the configuration."""

    name: str
    changes: dict[str, Any]


class NoiseImages:
    """A source of images and features of noise, in memory."""

    notes: tuple[str, ...] = ("noise",)
    rejected: tuple[tuple[str, str], ...] = ()
    held_out_ids: tuple[str, ...] = ()
    probe_ids: tuple[str, ...] = ()

    def __init__(self, sizes: Sizes) -> None:
        self.sizes = sizes
        self.streams = StreamShapes(sizes.features, sizes.text, sizes.features, sizes.features, JOINTS)
        self.train_ids = tuple(str(index) for index in range(IMAGES))
        self._samples = {id: self._draw(id) for id in self.train_ids}

    def load(self, id: str) -> Sample:
        """The sample `id`."""
        return self._samples[id]

    def _draw(self, id: str) -> Sample:
        draw = np.random.default_rng(int(id))
        sizes = self.sizes

        def half(*shape: int) -> np.ndarray:
            return draw.standard_normal(shape).astype(np.float16)

        return Sample(
            id=id,
            caption="",
            pixels_HWC=draw.integers(0, 256, (sizes.size, sizes.size, 3), dtype=np.uint8),
            text_TD=half(sizes.text, sizes.features),
            cls_D=half(sizes.features),
            patches_PD=half(sizes.patches, sizes.features),
            patch_grid=(1, sizes.patches),
            pose_J3=half(JOINTS, 3),
        )


class Products(TorchDispatchMode):
    """Remembers every matrix product and attention with its arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        if name in PRODUCTS or "scaled_dot_product" in name:
            self.calls.append((function, args, kwargs or {}))
        return function(*args, **(kwargs or {}))

    def repeat(self) -> None:
        """All of them again, one after the other, and nothing else."""
        with torch.no_grad():
            for function, args, kwargs in self.calls:
                function(*args, **kwargs)


class Rig:
    """One learner of one cell, and what can be timed of it."""

    def __init__(self, sizes: Sizes, cell: Cell, device: torch.device) -> None:
        self.config = configured(sizes, cell, device)
        self.device = device
        source = NoiseImages(sizes)
        self.learner = Learner(self.config, source.streams, 0, device)
        self.batches = Batches(source, 0, self.config.samples_per_step)
        self.meter = Meter(self.config, device, self.learner.loss_names)
        self._step = 0
        self._data_s = self._seconds = 0.0
        batch = collate([source.load(id) for id in source.train_ids[: sizes.batch]])
        self._conditions: Conditions = batch.conditions.to(device)
        noise = torch.Generator().manual_seed(0)
        shape = (sizes.batch, 3, sizes.size, sizes.size)
        self._z_BCHW, self._goal_BCHW = (torch.randn(shape, generator=noise).to(device) for _ in range(2))
        self._t_B = torch.rand(sizes.batch, generator=noise).to(device)
        noise_BN = torch.rand(sizes.batch, sizes.tokens, generator=noise)
        keep_BK = keep_from_noise(noise_BN, self.config.kept_tokens).to(device)
        self._route = Route(keep_BK, *self.config.routed_blocks) if self.config.tread.enabled else None

    def forward_backward(self) -> None:
        """The model alone, under all conditions: no dropout, data, optimizer or metrics."""
        output = self.learner.model(self._z_BCHW, self._t_B, self._conditions, None, self._route)
        (output.x_BCHW - self._goal_BCHW).square().mean().backward()
        self.learner.optimizer.clear()

    def step(self) -> None:
        """A whole training step."""
        begun = time.perf_counter()
        result = self.learner.step(self.batches, self._step, StopRequest())
        assert result is not None, "nobody asked for a stop"
        self._step += 1
        self.meter.add(result, time.perf_counter() - begun)
        self.meter.line()
        self._data_s += result.data_s
        self._seconds += time.perf_counter() - begun

    def bare_step(self) -> None:
        """Forward and backward of the same micro-batches as `step` would take: losses, no optimizer, no metrics."""
        self.learner.forward_backward(self.batches, self._step)

    @property
    def data_share(self) -> float:
        """Share of the time of all steps that went into waiting for data."""
        return self._data_s / max(self._seconds, 1e-9)

    def timed(self, what: Callable[[], None]) -> float:
        """Seconds that `what` takes on the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            begun = time.perf_counter()
            what()
            torch.cuda.synchronize()
            return time.perf_counter() - begun
        begun = time.thread_time()
        what()
        return time.thread_time() - begun


def configured(sizes: Sizes, cell: Cell, device: torch.device) -> TrainerConfig:
    """The configuration of one cell."""
    block: dict[str, Any] = {
        "steps": 10_000,
        "batch": sizes.batch,
        "device": device.type,
        "data": {"size": sizes.size, "samples": IMAGES, "held_out": 1},
        "validation": {"samples": 1},
        "model": {"width": sizes.width, "depth": sizes.depth, "heads": sizes.heads, "patch": sizes.patch},
        "optimizer": {"name": "adamw", "lr": 1e-4, "weight_decay": 0.01},
    }
    return parse_config({**block, **cell.changes})
