"""From questions to images: conditions first, with whatever encoders they need, and only then the transformer.

Shapes: C channels, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trainer import randomness
from trainer.asking.computed import computed_conditions
from trainer.asking.encoders import ModelPlaces
from trainer.asking.question import Asked, Question
from trainer.asking.trained_run import TrainedRun
from trainer.checkpoint import load_for_evaluation
from trainer.config import NativeSamplerConfig, TrainerConfig
from trainer.data.shapes import stream_shapes
from trainer.device import choose_device
from trainer.errors import UsageError
from trainer.model.conditioning import STREAMS
from trainer.model.tread import Route, keep_from_noise
from trainer.objective.dropout import CATEGORIES
from trainer.sampler import COMMON, euler, predictor, time_grid


def conditions_of(run: TrainedRun, questions: Sequence[Question], places: ModelPlaces = ModelPlaces()) -> list[Asked]:  # noqa: B008 - a frozen value
    """The conditions of every question, on the host. Raises UsageError or DataError for what cannot be asked."""
    if run.config.data.source == "shards":
        from trainer.asking.stored import stored_conditions

        return stored_conditions(run, questions, places)
    if places != ModelPlaces():
        raise UsageError(
            f"this run computes its features itself (data source {run.config.data.source}) and uses no encoder: leave "
            "--t5, --dinov3, --detector and --pose-model out"
        )
    return [computed_conditions(run, question) for question in questions]


class Painter:
    """Draws images with one checkpoint. `weights` is raw or ema, `sampler` common or native."""

    def __init__(self, run: TrainedRun, weights: str, sampler: str) -> None:
        self._config = run.config
        self._device = choose_device(run.config)
        self._model, _, _ = load_for_evaluation(run.run_dir, run.step, weights, self._device)
        self.guidance: NativeSamplerConfig = run.config.sampler.native if sampler == "native" else COMMON

    @torch.no_grad()
    def draw(self, asked: Asked, seed: int) -> Tensor:
        """One image, not clamped: (C, H, W). The noise belongs to the seed and the size alone."""
        config, (height, width) = self._config, asked.size
        noise_BCHW = randomness.normal((1, 3, height, width), seed, "sample").to(self._device)
        predict = predictor(self._model, asked.conditions.to(self._device), self.guidance, self._route(asked, seed))
        grid = time_grid(config.validation.sampler_steps, config.objective.shift)
        return euler(predict, noise_BCHW * config.objective.noise_scale, grid)[0]

    def _route(self, asked: Asked, seed: int) -> Route:
        rows, columns = self._config.grid_of(*asked.size)
        noise_BN = randomness.uniform((1, rows * columns), seed, "sample", "route")
        keep_BK = keep_from_noise(noise_BN, self._config.kept_of(rows * columns)).to(self._device)
        return Route(keep_BK, *self._config.routed_blocks)


def was_trained(streams: tuple[str, ...], config: TrainerConfig) -> bool:
    """Whether a dropout category keeps just these of the run's streams."""
    shapes = stream_shapes(config)
    widths = (shapes.text_width, shapes.cls_width, shapes.patch_width, shapes.pose_joints)
    on = {name for name, width in zip(STREAMS, widths, strict=True) if width}
    kept = ({name for name, keep in zip(STREAMS, each.keeps, strict=True) if keep} & on for each in CATEGORIES)
    return set(streams) in list(kept)
