"""Small but real runs of the trainer, for what comes after training."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.fakes.trainer_parts import NoiseSource, WeightSum
from trainer import session, train
from trainer.control import StopRequest

SMALL: dict[str, Any] = {
    "steps": 6,
    "batch": 4,
    "device": "cpu",
    "data": {"size": 16, "samples": 16, "held_out": 6},
    "model": {"width": 16, "depth": 4, "heads": 2, "patch": 4},
    "optimizer": {"lr": 0.01},
    "tread": {"enabled": True},
    "validation": {"every": 2, "samples": 6, "sampler_steps": 2},
    "sampler": {"native": {"kind": "self_guidance", "scale": 2.0}},
    "checkpoint": {"keep": {"last": 2, "best": {"metric": "val/recon_rmse"}}},
}


def trained(run_dir: Path, **changes: Any) -> Path:
    """Train a small run to its end and return its directory."""
    config = run_dir.with_suffix(".yaml")
    config.write_text(yaml.safe_dump({"seed": 1, "run": "small", "trainer": {**SMALL, **changes}}))
    assert train.train(config, run_dir) == 0
    return run_dir


def training_on_noise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, Path]]:
    """What trains in this process on noise, with a validation that only adds up weights."""
    monkeypatch.setattr(train, "open_source", NoiseSource)
    monkeypatch.setattr(session, "Validation", WeightSum)

    def start(
        name: str, block: dict[str, Any], stop: StopRequest | None = None, seed: int = 7, **options: Any
    ) -> tuple[int, Path]:
        config = tmp_path / f"{name}.yaml"
        config.write_text(json.dumps({"seed": seed, "run": name, "trainer": block}))
        stop = StopRequest() if stop is None else stop
        return train.train(config, tmp_path / name, stop=stop, **options), tmp_path / name

    return start


def metrics_at(run_dir: Path, step: int, attempt: int = 1) -> dict[str, float]:
    """All validation metrics that an attempt wrote for a step."""
    found: dict[str, float] = {}
    for line in (run_dir / f"attempt-{attempt}" / "metrics.jsonl").read_text().splitlines():
        content = json.loads(line)
        if content["kind"] == "val" and content["step"] == step:
            assert not found.keys() & {name for name in content if "/" in name}, "a metric was written twice"
            found |= {name: value for name, value in content.items() if "/" in name}
    return found
