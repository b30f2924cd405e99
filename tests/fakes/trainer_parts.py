"""A tiny image source and a stand-in for validation, so that training itself can be tested in seconds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from trainer.config import ModelConfig, TrainerConfig
from trainer.data.sample import Conditions, Sample, StreamShapes
from trainer.data.shapes import stream_shapes
from trainer.document import parse_config
from trainer.model.nanodit import NanoDiT

TINY: dict[str, Any] = {
    "steps": 8,
    "batch": 4,
    "data": {"size": 8, "samples": 12, "held_out": 4},
    "model": {"width": 16, "depth": 4, "heads": 2, "patch": 2},
    "validation": {"every": 4, "samples": 4, "sampler_steps": 2},
}
SHAPES = StreamShapes(text_width=6, text_length=5, cls_width=7, patch_width=8, pose_joints=9)


def tiny(**changes: Any) -> dict[str, Any]:
    """The tiny trainer block with some top-level keys replaced."""
    return {**TINY, **changes}


def tiny_config(**changes: Any) -> TrainerConfig:
    """The tiny configuration with some top-level keys replaced."""
    return parse_config(tiny(**changes))


def random_conditions(batch: int, shapes: StreamShapes = SHAPES, seed: int = 0, patches: int = 16) -> Conditions:
    """Conditions full of noise; captions have 1 to text_length words."""
    source = torch.Generator().manual_seed(seed)
    lengths_B1 = torch.randint(1, shapes.text_length + 1, (batch, 1), generator=source)
    return Conditions(
        text_BTD=torch.randn(batch, shapes.text_length, shapes.text_width, generator=source),
        text_mask_BT=torch.arange(shapes.text_length) < lengths_B1,
        cls_BD=torch.randn(batch, shapes.cls_width, generator=source),
        patches_BPD=torch.randn(batch, patches, shapes.patch_width, generator=source),
        patch_grid=(int(patches**0.5), int(patches**0.5)),
        pose_BJ3=torch.rand(batch, shapes.pose_joints, 3, generator=source),
    )


def randomise(module: nn.Module, seed: int = 0) -> None:
    """Overwrite all parameters with noise, so that nothing is hidden behind a gate of zero."""
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=source))


def random_model(config: ModelConfig | None = None, pooled: tuple[str, ...] = ()) -> NanoDiT:
    """The tiny model, or one of `config`, with noise for weights."""
    built = NanoDiT(tiny_config().model if config is None else config, SHAPES, pooled=pooled)
    randomise(built)
    return built


class NoiseSource:
    """Images and features of pure noise, twelve to train on, four to look at; none to probe unless a subclass asks."""

    notes: tuple[str, ...] = ("pure noise",)
    probe_images = 0
    rejected: tuple[tuple[str, str], ...] = ()

    def __init__(self, config: TrainerConfig, seed: int) -> None:
        self.streams = stream_shapes(config)
        self.train_ids = tuple(f"train-{index}" for index in range(config.data.samples))
        self.held_out_ids = tuple(f"held-{index}" for index in range(config.data.held_out))
        self.probe_ids = tuple(f"probe-{index}" for index in range(self.probe_images))
        self._size = config.data.size
        self._patches = config.tokens
        self._config, self._seed = config, seed
        self._has_parts = config.segmentation.enabled

    def at_size(self, size: int) -> NoiseSource:
        """Other noise under the same ids."""
        return type(self)(self._config.at_size(size), self._seed)

    def load(self, id: str) -> Sample:
        """The same noise for the same id."""
        draw = np.random.default_rng(list(id.encode()))
        shapes, size = self.streams, self._size
        half = {
            name: draw.standard_normal(shape).astype(np.float16) for name, shape in self._feature_shapes(draw).items()
        }
        return Sample(
            id=id,
            caption="noise",
            pixels_HWC=draw.integers(0, 256, (size, size, 3), dtype=np.uint8),
            text_TD=half["text"] if shapes.text_width else None,
            cls_D=half["cls"] if shapes.cls_width else None,
            patches_PD=half["patches"] if shapes.patch_width else None,
            patch_grid=(int(self._patches**0.5),) * 2,
            pose_J3=half["pose"] if shapes.pose_joints else None,
            parts_HW=draw.integers(0, 7, (size, size), dtype=np.uint8) if self._has_parts else None,
        )

    def _feature_shapes(self, draw: np.random.Generator) -> dict[str, tuple[int, ...]]:
        shapes = self.streams
        return {
            "text": (int(draw.integers(1, 6)), shapes.text_width),
            "cls": (shapes.cls_width,),
            "patches": (self._patches, shapes.patch_width),
            "pose": (shapes.pose_joints, 3),
        }


@dataclass(frozen=True, slots=True)
class Scored:
    """What a validation hands back."""

    metrics: dict[str, float]


class WeightSum:
    """A validation whose score is a function of the weights; writes meta.json last, as the real one does."""

    calls: list[tuple[str, int]]

    def __init__(self, config: TrainerConfig, source: Any, device: torch.device, run_id: str, run_dir: Path) -> None:
        self._run_dir = run_dir
        type(self).calls = []

    def light(self, step: int, weights: Mapping[str, nn.Module]) -> Scored:
        """Sums of the absolute weights."""
        return self._score("light", step, weights, {})

    def full(self, step: int, weights: Mapping[str, nn.Module], native: Any) -> Scored:
        """As light, and one more metric."""
        return self._score("full", step, weights, {"val_native/recon_rmse": 1.0})

    def _score(self, kind: str, step: int, weights: Mapping[str, nn.Module], more: dict[str, float]) -> Scored:
        self.calls.append((kind, step))
        folder = self._run_dir / "validation" / f"step_{step:06d}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "meta.json").write_text(json.dumps({"step": step, "kind": kind, "complete": True}))
        names = {"ema": "val/recon_rmse", "raw": "val_raw/recon_rmse"}
        return Scored({names[key]: _size(model) for key, model in weights.items()} | more)


def _size(model: nn.Module) -> float:
    return sum(float(parameter.detach().double().abs().sum()) for parameter in model.parameters())
