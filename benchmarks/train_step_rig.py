"""One training of noise at any size, and what can be timed of it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from trainer.config import TrainerConfig
from trainer.control import StopRequest
from trainer.data.batches import Batches
from trainer.data.sample import Conditions, Sample, StreamShapes, to_unit_range
from trainer.document import parse_config
from trainer.meter import Meter
from trainer.model.tread import Route
from trainer.objective.draws import StepDraws
from trainer.objective.flow import Noisy, corrupt
from trainer.step import Learner

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

    def context(self, patches: str = "full") -> int:
        """Condition tokens of a sample that keeps all streams; of its patches all, one in four, or none."""
        rows, columns = self.patch_grid
        counts = {"full": self.patches, "pooled": (rows + 1) // 2 * ((columns + 1) // 2), "off": 0}
        return self.text + 1 + counts[patches] + JOINTS

    @property
    def patch_grid(self) -> tuple[int, int]:
        """Rows and columns of image features: a square where there is one."""
        side = math.isqrt(self.patches)
        return (side, side) if side * side == self.patches else (1, self.patches)


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

    def __init__(self, sizes: Sizes, has_patches: bool) -> None:
        self.sizes, self.has_patches = sizes, has_patches
        patches = sizes.features if has_patches else 0
        self.streams = StreamShapes(sizes.features, sizes.text, sizes.features, patches, JOINTS)
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
            patches_PD=half(sizes.patches, sizes.features) if self.has_patches else None,
            patch_grid=sizes.patch_grid if self.has_patches else (0, 0),
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


class Prepared(NamedTuple):
    """One micro-batch on the device, everything about it drawn."""

    conditions: Conditions
    present: Mapping[str, torch.Tensor]
    noisy: Noisy
    route: Route | None


class Rig:
    """One learner of one cell, and what can be timed of it."""

    def __init__(self, sizes: Sizes, cell: Cell, device: torch.device) -> None:
        self.config = configured(sizes, cell, device)
        self.device = device
        source = NoiseImages(sizes, self.config.streams.patches != "off")
        self.learner = Learner(self.config, source.streams, 0, device)
        self.batches = Batches(source, 0, self.config.samples_per_step)
        self.meter = Meter(self.config, device, self.learner.loss_names)
        self.at = 0
        self._data_s = self._seconds = 0.0
        self._everything = self._prepared(range(sizes.batch), dropout=False)

    def forward_backward(self) -> None:
        """The network under all conditions: no dropout, data, optimizer or metrics."""
        self._bare(self._everything)

    def step(self) -> None:
        """A whole training step."""
        begun = time.perf_counter()
        result = self.learner.step(self.batches, self.at, StopRequest())
        assert result is not None, "nobody asked for a stop"
        self.at += 1
        self.meter.add(result, time.perf_counter() - begun)
        self.meter.line()
        self._data_s += result.data_s
        self._seconds += time.perf_counter() - begun

    def bare(self) -> Callable[[], None]:
        """Network, loss and gradients of the samples of the next step, which are drawn now."""
        ready = [self._prepared(positions, dropout=True) for positions in self.learner.plan(self.at)]
        return lambda: [self._bare(each) for each in ready] and None

    @property
    def data_share(self) -> float:
        """Share of the time of all steps that went into waiting for data."""
        return self._data_s / max(self._seconds, 1e-9)

    def timed(self, what: Callable[[], Any]) -> float:
        """Seconds that `what` takes on the device."""
        clock = time.thread_time
        if self.device.type == "cuda":
            clock = time.perf_counter
            torch.cuda.synchronize()
        begun = clock()
        what()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return clock() - begun

    def _prepared(self, positions: Sequence[int], dropout: bool) -> Prepared:
        learner, device = self.learner, self.device
        batch = self.batches.batch(self.at, positions)
        draws = StepDraws(self.config, 0, self.at).of(positions, tuple(batch.pixels_BCHW.shape[2:]))
        x_BCHW = to_unit_range(batch.pixels_BCHW.to(device))
        noise_BCHW, t_B = draws.noise_BCHW.to(device), draws.t_B.to(device)
        noisy = Noisy(x_BCHW, noise_BCHW, t_B, corrupt(x_BCHW, noise_BCHW, t_B))
        keep = draws.keep_BK
        route = None if keep is None else Route(keep.to(device), *learner.config.routed_blocks)
        return Prepared(batch.conditions.to(device), draws.present if dropout else {}, noisy, route)

    def _bare(self, ready: Prepared) -> None:
        noisy = ready.noisy
        output = self.learner.network(noisy.z_BCHW, noisy.t_B, ready.conditions, ready.present, ready.route)
        self.learner.objective.loss(output, noisy).mean().backward()
        self.learner.optimizer.clear()


def configured(sizes: Sizes, cell: Cell, device: torch.device) -> TrainerConfig:
    """The configuration of one cell."""
    block: dict[str, Any] = {
        "steps": 100_000,
        "batch": sizes.batch,
        "device": device.type,
        "data": {"size": sizes.size, "samples": IMAGES, "held_out": 1},
        "validation": {"samples": 1},
        "model": {"width": sizes.width, "depth": sizes.depth, "heads": sizes.heads, "patch": sizes.patch},
        "optimizer": {"name": "adamw", "lr": 1e-4, "weight_decay": 0.01},
    }
    return parse_config({**block, **cell.changes})
