"""What the optimizer's indicators cost: training steps of quickstart size with and without them, in one process.

Two equal learners take turns, step by step, so that whatever slows the machine slows both. *Inside* is the time of the
indicators' own calls in a measured step, spread over ten steps. *Beside* compares that step with the same one of the
other learner, spread over ten, too: it would see what a cold cache costs, but is as noisy as the machine (± half of the
span of the middle half). Medians; CPU time of the one thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
import yaml

from trainer.config import TrainerConfig
from trainer.control import StopRequest
from trainer.data import open_source
from trainer.data.batches import Batches
from trainer.document import parse_config
from trainer.indicators.recorder import Measurement, Recorder
from trainer.step import Learner

BASE = Path(__file__).resolve().parent.parent / "arms/base/quickstart.yaml"
ARMS: dict[str, dict[str, Any]] = {
    "AdamW": {},
    "AdamW, two micro-batches": {"batch": 8, "accumulation": 2},
    "TREAD + AdamW": {"tread": {"enabled": True}},
    "TREAD + Muon": {"tread": {"enabled": True}, "optimizer": {"name": "muon", "lr": 2e-3, "warmup_steps": 50}},
}
TURNS = 12
QUICK_TURNS = 4
STEPS = 10


class Stopwatch:
    """Adds up the CPU time of the calls that go through it."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """The same call, timed."""

        def timed(*arguments: Any) -> Any:
            begun = time.thread_time()
            result = call(*arguments)
            self.seconds += time.thread_time() - begun
            return result

        return timed

    def watch(self, recorder: Recorder) -> None:
        """Time everything that `recorder` is asked to do."""
        begin = self.around(recorder.begin)

        def watched(step: int) -> Measurement | None:
            measurement: Measurement | None = begin(step)
            if measurement is not None:
                for name in ("micro_batch_done", "gradients_done", "before_update", "finish"):
                    setattr(measurement, name, self.around(getattr(measurement, name)))
            return measurement

        recorder.begin = watched  # type: ignore[method-assign]


def run(quick: bool) -> dict[str, Any]:
    """All measurements, as plain JSON values."""
    torch.set_num_threads(1)
    turns = QUICK_TURNS if quick else TURNS
    rows = []
    for name, changes in ARMS.items():
        rows.append({"arm": name, **_row(changes, turns)})
        print(f"  {rows[-1]}", flush=True)
    return {"benchmark": "indicators", "quick": quick, "turns": turns, "steps": STEPS, "rows": rows}


def table(result: Mapping[str, Any]) -> str:
    """The result as a Markdown table."""
    lines = ["| arm | a step, ms | inside, % of the steps | beside, % of the steps |", "|---|--:|--:|--:|"]
    for row in result["rows"]:
        beside = f"{row['beside_percent']:.1f} ± {row['beside_spread']:.1f}"
        lines.append(f"| {row['arm']} | {row['step_ms']:.0f} | {row['inside_percent']:.2f} | {beside} |")
    return "\n".join(lines)


def _row(changes: Mapping[str, Any], turns: int) -> dict[str, float]:
    configs = [_config(changes, enabled) for enabled in (False, True)]
    source = open_source(configs[0])
    batches = Batches(source, 0, configs[0].samples_per_step)
    learners = [Learner(config, source.streams, 0, torch.device("cpu")) for config in configs]
    inside = Stopwatch()
    inside.watch(learners[1].recorder)
    seconds: tuple[list[float], list[float]] = ([], [])
    measuring: list[float] = []
    for step in range(turns * STEPS + STEPS):
        batches.batch(step, range(configs[0].samples_per_step))  # drawn now, at nobody's expense
        inside.seconds = 0.0
        for which in (0, 1) if step // STEPS % 2 else (1, 0):
            seconds[which].append(_step(learners[which], batches, step, inside))
        measuring.append(inside.seconds)
    without, with_them = (values[STEPS:] for values in seconds)  # the first steps warm up
    usual = median(without)
    # In these steps, and only in these, one of the two has measured.
    ratios = [
        own / other for own, other in zip(with_them[STEPS - 1 :: STEPS], without[STEPS - 1 :: STEPS], strict=True)
    ]
    return {
        "step_ms": 1000.0 * usual,
        "inside_percent": 100.0 * median(measuring[2 * STEPS - 1 :: STEPS]) / (STEPS * usual),
        "beside_percent": 100.0 * (median(ratios) - 1.0) / STEPS,
        "beside_spread": 100.0 * _half_span(ratios) / STEPS,
    }


def _step(learner: Learner, batches: Batches, step: int, inside: Stopwatch) -> float:
    """CPU time of one step, its indicators written out if it has some."""
    begun = time.thread_time()
    result = learner.step(batches, step, StopRequest())
    if result is not None and result.reading is not None:
        inside.around(result.reading.metrics)()
    return time.thread_time() - begun


def _half_span(values: Sequence[float]) -> float:
    """Half the distance between the quartiles."""
    quarter = len(values) // 4
    ordered = sorted(values)
    return (ordered[-1 - quarter] - ordered[quarter]) / 2


def _config(changes: Mapping[str, Any], enabled: bool) -> TrainerConfig:
    block = yaml.safe_load(BASE.read_text())["trainer"]
    block["optimizer"]["lr"] = float(block["optimizer"]["lr"])  # YAML 1.1 reads 2e-3 as a word
    return parse_config({**block, **changes, "indicators": {"enabled": enabled, "every": STEPS}})
