"""Recorded losses of tiny trainings: `python -m tests.fakes.golden_curves` records them again.

Record again only when a curve was meant to change, and say why in the commit.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from trainer.control import StopRequest
from trainer.data import open_source
from trainer.data.batches import Batches
from trainer.document import parse_config
from trainer.objective.basis import fit_basis, training_patches
from trainer.step import Learner

FILE = Path(__file__).resolve().parent.parent / "data" / "golden_curves.json"
STEPS = 30
BLOCK: dict[str, Any] = {
    "steps": STEPS,
    "batch": 8,
    "device": "cpu",
    "data": {"size": 16, "samples": 48, "held_out": 4},
    "model": {"width": 32, "depth": 4, "heads": 2, "patch": 4},
    "optimizer": {"name": "adamw", "lr": 2e-3, "weight_decay": 0.01, "warmup_steps": 5},
    "validation": {"samples": 4},
    "indicators": {"enabled": False},
}
MUON = {"name": "muon", "lr": 2e-3, "weight_decay": 0.01, "warmup_steps": 5}
REPA = {"enabled": True, "after_block": 1, "stop": {"kind": "linear", "start": 0.3, "end": 0.8}}
CASES: dict[str, dict[str, Any]] = {
    "adamw": {},
    "tread": {"tread": {"enabled": True}},
    "tread, muon": {"tread": {"enabled": True}, "optimizer": MUON},
    "tread, muon, repa": {"tread": {"enabled": True}, "optimizer": MUON, "repa": REPA},
    "v": {"objective": {"prediction": "v"}},
    "asymflow, shift": {"objective": {"prediction": "asymflow", "shift": 3.0, "uniform_share": 0.1}},
    "normuon, two micro-batches": {"optimizer": {**MUON, "name": "normuon"}, "batch": 4, "accumulation": 2},
    "perceptual, weights of pixels": {
        "perceptual": {"lpips": {"enabled": True, "net": "squeeze", "size": 32}, "dino": {"enabled": True, "size": 28}},
        "segmentation": {"enabled": True},
    },
    "stable adamw": {"optimizer": {"name": "stable_adamw", "lr": 2e-3, "warmup_steps": 5}},
}


def curve(case: str) -> list[float]:
    """The loss of every step of one training."""
    config = parse_config({**BLOCK, **CASES[case]})
    source = open_source(config, 0)
    basis_FR = None if config.asymflow is None else fit_basis(training_patches(config, source), config.asymflow.rank)[0]
    learner = Learner(config, source.streams, 3, torch.device("cpu"), basis_FR)
    batches = Batches(source, 3, config.samples_per_step)
    results = [learner.step(batches, step, StopRequest()) for step in range(STEPS)]
    return [float(result.losses_L[0]) for result in results if result is not None]


if __name__ == "__main__":
    torch.set_num_threads(1)
    FILE.write_text(json.dumps({case: curve(case) for case in CASES}, indent=1) + "\n")
