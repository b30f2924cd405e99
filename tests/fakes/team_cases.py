"""Several tiny trainings by one team, which costs only one start of a process: `python -m tests.fakes.team_cases`.

The environment says who belongs to the team, as torchrun writes it. The leader, a test, orders one training after the
other.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from trainer.control import StopRequest
from trainer.data import open_source
from trainer.data.batches import Batches
from trainer.distributed.following import follow, share_beginning
from trainer.distributed.launch import open_team
from trainer.distributed.sharding import strategy
from trainer.distributed.team import Processes, Team
from trainer.document import load_document, parse_config
from trainer.step import Learner

STEPS = 4
SEED = 5
FIRST = {"cosine": 47}  # gradients are compared every 50 steps
BLOCK: dict[str, Any] = {
    "steps": 20,
    "batch": 2,
    "device": "cpu",
    "data": {"size": 16, "samples": 24, "held_out": 4},
    "model": {"width": 16, "depth": 3, "heads": 2, "patch": 4},
    "tread": {"enabled": True},
    "repa": {"enabled": True, "after_block": 1, "stop": {"kind": "linear", "start": 0.1, "end": 0.9}},
    "validation": {"samples": 4},
    "indicators": {"every": 2},
}
MUON = {"name": "muon", "lr": 2e-3, "weight_decay": 0.01, "warmup_steps": 2, "clip": 0.5}
COSINE = {"enabled": True, "after_block": 1, "stop": {"kind": "gradient_cosine", "end": 0.9}}
CASES: dict[str, dict[str, Any]] = {
    "adamw": {"accumulation": 4, "optimizer": {**MUON, "name": "adamw"}},
    "muon": {"accumulation": 2, "optimizer": MUON},
    "cosine": {"accumulation": 2, "optimizer": {**MUON, "name": "normuon"}, "steps": 100, "repa": COSINE},
    "muon, fsdp": {"accumulation": 2, "optimizer": MUON, "distributed": {"strategy": "fsdp"}},
    "stable adamw, fsdp": {
        "accumulation": 4,
        "optimizer": {**MUON, "name": "stable_adamw"},
        "distributed": {"strategy": "fsdp"},
    },
}


def block(case: str) -> dict[str, Any]:
    """The trainer block of one case."""
    return {**BLOCK, **CASES[case]}


def trained(case: str, team: Team) -> dict[str, Any]:
    """Lead one training: what every step reported, and what a checkpoint would store."""
    config, seed = parse_config(block(case)), SEED
    source = open_source(config, seed)
    learner = Learner(config, source.streams, seed, team.device, team=team)
    share_beginning(learner)
    batches = Batches(source, seed, config.samples_per_step)
    first = FIRST.get(case, 0)
    results = [learner.step(batches, step, StopRequest()) for step in range(first, first + STEPS)]
    whole = learner.whole()
    return {
        "losses": [result.losses_L for result in results],
        "extra": [result.extra for result in results],
        "grad_norms": [result.grad_norm for result in results],
        "readings": [result.reading.metrics() for result in results if result.reading is not None],
        "strategy": strategy(learner),
        "held": sum(parameter.numel() for parameter in learner.modules.parameters()),
        "modules": whole.modules.state_dict(),
        "averages": [model.state_dict() for model in whole.ema.models.values()],
        "optimizer": whole.optimizer.state_dict(),
    }


def main() -> None:
    """Follow the leader through one training after the other."""
    torch.set_num_threads(1)
    with open_team(parse_config({**BLOCK, "accumulation": 2}), None, ()) as team:
        assert isinstance(team, Processes), "the environment names no team"
        while (order := team.next_order())["do"] == "train":
            follow(load_document(Path(order["config"])), Path(order["run_dir"]), team, StopRequest())


if __name__ == "__main__":
    main()
