"""`python -m trainer check`: is this configuration usable, and how large is the run? Imports no torch.

`check --json` reads a JSON array of {"id", "config"} (the trainer block; and "processes", the number that would train
it together, default 1) on stdin and writes an array of results in the same order. `check CONFIG.yaml` prints the same
for a person.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trainer import rules, size
from trainer.config import TrainerConfig, filled
from trainer.data.shapes import stream_shapes
from trainer.document import load_document, parse_config
from trainer.errors import EXIT_DONE, ConfigError, UsageError
from trainer.rules.distributed import shared_by

ABILITIES = ("extended",)
"""What a runner may ask beside a plain run: to resume with more steps than a checkpoint was made for."""


def main(argv: list[str]) -> int:
    """Run the command. With --json 0 means that the question was answered; each answer has its own `ok`."""
    parser = argparse.ArgumentParser(prog="python -m trainer check", description=__doc__.split("\n")[0])
    parser.add_argument("config", nargs="?", type=Path, help="a resolved configuration file")
    parser.add_argument("--json", action="store_true", help='answer [{"id", "config"}, …] from stdin with JSON')
    arguments = parser.parse_args(argv)
    if arguments.json == (arguments.config is not None):
        parser.error("give either CONFIG or --json")
    return _answer_json() if arguments.json else _describe(arguments.config)


def check(identity: Any, block: Any, processes: int = 1) -> dict[str, Any]:
    """One result: what is wrong with a trainer block or, when nothing is, how large the run is.

    `processes` is the number of those that would train it together.
    """
    try:
        config = parse_config(block)
        if issues := list(shared_by(config, processes)):
            raise ConfigError(issues)
        return {"id": identity, "ok": True, "errors": [], **measure(config)}
    except ConfigError as error:
        unknown = dict.fromkeys(("steps_total", "parameters", "flops_per_sample", "memory_mib"))
        return {
            "id": identity,
            "ok": False,
            "errors": [asdict(issue) for issue in error.issues],
            **unknown,
            "notes": [],
        }


def measure(config: TrainerConfig) -> dict[str, Any]:
    """Sizes and notes of a usable configuration, and the configuration with every default written out."""
    streams = stream_shapes(config)
    return {
        "steps_total": config.steps,
        "samples_per_step": config.samples_per_step,
        "parameters": size.parameters(config, streams),
        "flops_per_sample": size.flops_per_sample(config, streams),
        "memory_mib": round(size.memory_mib(config, streams), 1),
        "checkpoint_mib": round(size.checkpoint_mib(config, streams), 1),
        "notes": rules.notes(config),
        "abilities": list(ABILITIES),
        "config": filled(config),
    }


def _answer_json() -> int:
    try:
        questions = json.load(sys.stdin)
    except json.JSONDecodeError as error:
        raise UsageError(f"stdin is not JSON: {error}") from error
    if not isinstance(questions, list) or not all(
        isinstance(q, dict) and {"id", "config"} <= set(q) for q in questions
    ):
        raise UsageError('stdin must hold a JSON array of {"id", "config"}')
    print(
        json.dumps([check(question["id"], question["config"], question.get("processes", 1)) for question in questions])
    )
    return EXIT_DONE


def _describe(path: Path) -> int:
    sizes = measure(load_document(path).config)
    print(f"{path}: usable")
    print(f"  steps             {sizes['steps_total']} of {sizes['samples_per_step']} images")
    print(f"  parameters        {sizes['parameters']:,}")
    print(f"  TFLOP per sample  {sizes['flops_per_sample'] / 1e12:.3g}")
    print(f"  memory            {sizes['memory_mib']:.0f} MiB")
    print(f"  one checkpoint    {sizes['checkpoint_mib']:.0f} MiB")
    for note in sizes["notes"]:
        print(f"  note: {note}")
    return EXIT_DONE
