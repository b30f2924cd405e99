"""Arms of the repository that were written for large GPUs: all of their switches, at a size that a CPU trains."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from runner.spec import ResolvedArm, read_study_arms
from tests.fakes.shards import sample, square_set
from tests.fakes.trainer_parts import randomise
from trainer import size
from trainer.config import TrainerConfig
from trainer.control import StopRequest
from trainer.data import open_source
from trainer.data.batches import open_batches
from trainer.data.shapes import stream_shapes
from trainer.document import parse_config
from trainer.objective.basis import basis_of_run
from trainer.objective.prediction import empty_model
from trainer.objective.repa import Projector
from trainer.step import Learner, StepResult

SMALL: Mapping[str, Any] = {
    "trainer.steps": 40,
    "trainer.batch": 4,
    "trainer.accumulation": 1,
    "trainer.device": "cpu",
    "trainer.data.size": 32,
    "trainer.data.workers": 0,
    "trainer.model.width": 32,
    "trainer.model.depth": 9,
    "trainer.model.heads": 2,
    "trainer.model.patch": 4,
    "trainer.optimizer.warmup_steps": 0,
    "trainer.optimizer.lr": "1e-2",
    "trainer.validation.every": 40,
    "trainer.compile.enabled": "false",
    "resources.gpus": 0,
}


def small_portraits(root: Path, side: int = 32, count: int = 12) -> Path:
    """A set of square shards with part maps."""
    parts = (np.arange(side**2) // 5 % 28).reshape(side, side).astype(np.uint8)
    return square_set(root, [sample(f"s{index}", side, side, **{"seg.npy": parts}) for index in range(count)], side)


def small_arms(paths: Sequence[Path], **more: Any) -> dict[str, ResolvedArm]:
    """The arms by name with model, images, steps and batch reduced; every technique stays."""
    sets = [f"{key}={value}" for key, value in {**SMALL, **more}.items()]
    return {arm.arm: arm for arm in read_study_arms(paths, sets=sets)}


def config_of(arm: ResolvedArm) -> TrainerConfig:
    """The trainer's configuration of an arm."""
    assert arm.trainer is not None
    return parse_config(dict(arm.trainer))


def steps_of(config: TrainerConfig, run_dir: Path, count: int = 2) -> tuple[Learner, list[StepResult]]:
    """The first updates of a configuration from its own data, all its weights random."""
    run_dir.mkdir()
    source = open_source(config)
    learner = Learner(config, source.streams, 0, torch.device("cpu"), basis_of_run(config, source, run_dir))
    randomise(learner.model)  # behind gates of zero no block would do anything yet
    batches, stop = open_batches(config, source, 0), StopRequest()
    results = [learner.step(batches, step, stop) for step in range(count)]
    return learner, [result for result in results if result is not None]


def fingerprint(learner: Learner) -> str:
    """What all trained numbers of a learner come to, so that any difference shows."""
    digest = hashlib.sha256()
    for parameter in learner.modules["model"].parameters():
        digest.update(parameter.detach().numpy().tobytes())
    return digest.hexdigest()


def full_size(config: TrainerConfig) -> tuple[int, int]:
    """Trained numbers by building the modules without memory, and by arithmetic."""
    streams = stream_shapes(config)
    with torch.device("meta"):
        modules: list[nn.Module] = [empty_model(config, streams)]
        if config.repa.enabled:
            modules.append(Projector(config.repa.projector, config.model.width, streams.patch_width))
    built = sum(parameter.numel() for module in modules for parameter in module.parameters())
    return built, size.parameters(config, streams)
