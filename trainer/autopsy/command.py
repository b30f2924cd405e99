"""`python -m trainer autopsy RUN_DIR`: what went wrong between the best checkpoint of a run and the newest one."""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trainer.autopsy.examined import Examined
from trainer.autopsy.measure import Budget, Compare, Models, measure, paired
from trainer.autopsy.pair import Kept, Pair, choose_pair
from trainer.autopsy.passes import WEIGHTS, Passes, plan_passes, told
from trainer.autopsy.record import as_document, as_table, write
from trainer.autopsy.shares import Finding, find
from trainer.autopsy.weights import WeightSets, as_model, averages_of, load_sets
from trainer.checkpoint import list_steps, read_state
from trainer.config import TrainerConfig
from trainer.data import open_source
from trainer.device import cap_threads, choose_device, gpu_uuids
from trainer.document import Document, load_document
from trainer.errors import EXIT_DONE, UsageError
from trainer.evaluate.perceptual import BACKBONE, Lpips, lpips_on
from trainer.evaluate.protocols import comparable_hash, eval_sets
from trainer.evaluate.reconstruction import perceptual, rmse
from trainer.scores import Scores
from trainer.telemetry import Telemetry

METRICS = ("recon_rmse", "recon_lpips")
Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the command line asks for; `budget_s` bounds the whole autopsy, in seconds."""

    best: int | None = None
    stop: int | None = None
    budget_s: float | None = None


@dataclass(frozen=True, slots=True)
class _Chosen:
    """The two checkpoints with their weights, or why there is nothing to load, and the averages that they carry."""

    pair: Pair
    sets: dict[int, WeightSets]


def main(argv: list[str]) -> int:
    """Perform the autopsy, write RUN_DIR/autopsy and print what was found."""
    arguments = _parser().parse_args(argv)
    wanted = Wanted(arguments.best, arguments.stop, arguments.budget_s)
    document = autopsy(arguments.run_dir, wanted, arguments.attempt)
    print(json.dumps(document, indent=1, allow_nan=False) if arguments.json else as_table(document))
    return EXIT_DONE


def autopsy(
    run_dir: Path, wanted: Wanted | None = None, attempt: int | None = None, now: Clock = time.monotonic
) -> dict[str, Any]:
    """Compare two checkpoints of a run; returns the content of autopsy.json.

    With `attempt` it announces itself in the metrics.jsonl of that attempt. Raises UsageError when there is no such run
    or nothing to compare, CheckpointError and DataError when a file cannot be read.
    """
    started, wanted = now(), wanted or Wanted()
    cap_threads()
    if not (run_dir / "config.yaml").is_file():
        raise UsageError(f"{run_dir} is no run directory: it has no config.yaml")
    run = load_document(run_dir / "config.yaml")
    chosen = _choose(run_dir, run.config, wanted)
    if attempt is None:
        return _examine(run_dir, run, chosen, wanted, now, started)
    with Telemetry(run_dir / f"attempt-{attempt}") as telemetry:
        steps, device = [chosen.pair.best, chosen.pair.stop], str(choose_device(run.config))
        telemetry.event(steps[1], "started", attempt=attempt, device=device, gpu_uuids=gpu_uuids(), steps=steps)
        document = _examine(run_dir, run, chosen, wanted, now, started)
        telemetry.event(steps[1], "finished", blamed=document["blamed"])
        telemetry.sync()
    return document


def _choose(run_dir: Path, config: TrainerConfig, wanted: Wanted) -> _Chosen:
    """The pair with its weights. What state.json calls finite is believed only after looking at the numbers."""
    steps = list_steps(run_dir)
    finite = {step for step in steps if read_state(run_dir, step)["finite"]}
    scores = Scores(run_dir, config)
    scores.restore(until=max(steps, default=0))
    scored = [step for step in steps if step in scores]
    loaded: dict[int, WeightSets] = {}
    while True:
        pair = choose_pair(Kept(steps, finite, scored, scores.best), wanted.best, wanted.stop)
        if pair.why_not:
            return _Chosen(pair, {})
        for step in (pair.best, pair.stop):
            loaded.setdefault(step, load_sets(run_dir, step))
        broken = {step for step in (pair.best, pair.stop) if not loaded[step].finite}
        if not broken:
            return _Chosen(pair, {step: loaded[step] for step in (pair.best, pair.stop)})
        finite -= broken


def _examine(
    run_dir: Path, run: Document, chosen: _Chosen, wanted: Wanted, now: Clock, started: float
) -> dict[str, Any]:
    """Measure, conclude and write."""
    config, device = run.config, str(choose_device(run.config))
    passes, lpips = plan_passes(config), lpips_on(device)
    metric, direction, reason = _metric(config)
    sets = eval_sets(config, open_source(config, run.seed), torch.device(device))
    available = sum(len(inputs.ids) for inputs in sets)
    models = _models(run_dir, config, chosen, device)
    left_s = (lambda: None) if wanted.budget_s is None else (lambda: wanted.budget_s - (now() - started))
    rows = measure(sets, models, passes.all, _compare(metric, lpips), Budget(left_s), now) if models else []
    finding = find(paired(rows, chosen.pair.best, chosen.pair.stop), direction) if models else None
    samples = len({row.sample_id for row in rows})
    examined = Examined(
        run=run.run,
        pair=chosen.pair,
        metric=metric,
        reason=reason,
        direction=direction,
        native=told(config.sampler.native),
        averages=averages_of(read_state(run_dir, chosen.pair.best)),
        distances={step: sets.distance for step, sets in chosen.sets.items() if sets.distance is not None},
        passes=passes,
        finding=finding,
        not_measured=_not_measured(chosen, passes, finding, samples, available, wanted.budget_s),
        eval_set=comparable_hash(sets, lpips.hash),
        samples=samples,
        available=available,
        eval_seeds=len(sets[0].eval_seeds),
        seconds=now() - started,
    )
    document = as_document(examined)
    write(run_dir, document, rows)
    return document


def _metric(config: TrainerConfig) -> tuple[str, str, str]:
    """Metric, direction, and why this metric: that of the run's best checkpoint if it is a reconstruction score."""
    best = config.checkpoint.keep.best
    if best is not None and best.metric.rpartition("/")[2] in METRICS:
        return best.metric.rpartition("/")[2], best.direction, f"checkpoint.keep.best is {best.metric}"
    if BACKBONE.startswith("random"):
        return "recon_rmse", "min", "checkpoint.keep.best names no reconstruction score, and LPIPS has random weights"
    return "recon_lpips", "min", "checkpoint.keep.best names no reconstruction score"


def _compare(metric: str, lpips: Lpips) -> Compare:
    if metric == "recon_rmse":
        return rmse
    return lambda generated_BCHW, real_BCHW: perceptual(generated_BCHW, real_BCHW, lpips)


def _models(run_dir: Path, config: TrainerConfig, chosen: _Chosen, device: str) -> Models:
    """Models of both steps; ema_alt only if both have it, because a difference needs two."""
    names = [name for name in WEIGHTS if all(name in sets.tensors for sets in chosen.sets.values())]
    return {
        step: {name: as_model(sets.tensors[name], config, read_state(run_dir, step), device) for name in names}
        for step, sets in chosen.sets.items()
    }


def _not_measured(
    chosen: _Chosen, passes: Passes, finding: Finding | None, samples: int, available: int, budget_s: float | None
) -> dict[str, str]:
    """What is missing from the full table, and why."""
    if finding is None:
        return {"everything": chosen.pair.why_not}
    missing = dict(passes.why_not)
    for cause, drawn in (("routing", "routed"), ("guidance", "guided")):
        if drawn in missing:
            missing[cause] = missing[drawn]
    for step, sets in chosen.sets.items():
        if sets.why_not:
            missing["ema_alt"] = f"step {step}: {sets.why_not}"
    for (weights, drawn), count in finding.invalid.items():
        if count:
            missing[f"{weights}, {drawn}"] = f"{count} of {samples} samples have no finite score at both steps"
    if samples < available:
        missing["samples"] = f"{samples} of {available} fitted into {budget_s:g} s"
    return missing


def _seconds(text: str) -> float:
    """A positive number of seconds. Raises argparse.ArgumentTypeError."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is no positive number of seconds")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m trainer autopsy",
        description="Compare the best checkpoint of a run with the newest one: raw and averaged weights, dense, routed "
        "and guided passes, sample by sample. Writes RUN_DIR/autopsy.",
    )
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    parser.add_argument("--best", type=int, metavar="STEP", help="the good checkpoint (default: the best by score)")
    parser.add_argument("--stop", type=int, metavar="STEP", help="the bad checkpoint (default: the newest)")
    parser.add_argument("--attempt", type=int, help="announce it in RUN_DIR/attempt-N/metrics.jsonl")
    parser.add_argument("--budget-s", type=_seconds, metavar="S", help="use only as many samples as fit into S seconds")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    return parser
