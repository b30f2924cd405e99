"""`python -m trainer evaluate RUN_DIR`: the full validation of checkpoints that are already there, or other prompts."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from trainer.asking.encoders import add_places, places_of
from trainer.asking.prompts import Manner, draw_prompts
from trainer.checkpoint import list_steps, load_for_evaluation, read_state
from trainer.data import open_source
from trainer.device import cap_threads, choose_device, gpu_uuids
from trainer.document import Document, load_document
from trainer.errors import EXIT_DONE, UsageError
from trainer.evaluate.scores import PREFIXES, Variant
from trainer.evaluate.suite import Validation
from trainer.scores import Scores
from trainer.telemetry import Telemetry, plain


def main(argv: list[str]) -> int:
    """Evaluate, write validation/step_*/ and print the metrics."""
    arguments = _parser().parse_args(argv)
    if arguments.prompts is not None:
        return _draw_prompts(arguments)
    _refuse_without_prompts(arguments)
    results = evaluate(arguments.run_dir, arguments.step, arguments.attempt)
    chosen = {step: _chosen(metrics, arguments) for step, metrics in results.items()}
    print(_as_json(arguments.run_dir, chosen) if arguments.json else _as_table(chosen))
    return EXIT_DONE


def _draw_prompts(arguments: argparse.Namespace) -> int:
    if arguments.attempt is not None:
        raise UsageError("--prompts makes no metrics that --attempt could append; allowed: one of them")
    given = {name: getattr(arguments, name) for name in ("weights", "sampler", "seeds", "bucket")}
    manner = Manner(**{name: value for name, value in given.items() if value is not None})
    made = draw_prompts(
        arguments.run_dir, arguments.prompts, arguments.step, arguments.out, manner, places_of(arguments)
    )
    if arguments.json:
        print(json.dumps(made, indent=1, ensure_ascii=False))
        return EXIT_DONE
    images = len(made["prompts"]) * len(made["seeds"])
    print(
        f"{made['folder']}: {images} images of {len(made['prompts'])} prompts, step {made['step']}, {made['guidance']}"
    )
    for note in made["notes"]:
        print(f"note: {note}")
    for one in made["prompts"]:
        for note in one["notes"]:
            print(f"note: line {one['line']}: {note}")
    return EXIT_DONE


def _refuse_without_prompts(arguments: argparse.Namespace) -> None:
    given = {"--out": arguments.out, "--seeds": arguments.seeds, "--bucket": arguments.bucket}
    given |= {f"--{name.replace('_', '-')}": value for name, value in asdict(places_of(arguments)).items()}
    useless = [option for option, value in given.items() if value is not None]
    if useless:
        raise UsageError(f"{', '.join(useless)} without --prompts: the validation asks what is stored with the data")


def evaluate(run_dir: Path, step: int | None = None, attempt: int | None = None) -> dict[int, dict[str, float]]:
    """Full validation of one step, or of the last and the best one: metrics by step.

    With `attempt` the metrics that no earlier attempt has written for that step are appended to its metrics.jsonl.
    Raises UsageError when there is no such run or checkpoint.
    """
    cap_threads()
    if not (run_dir / "config.yaml").is_file():
        raise UsageError(f"{run_dir} is no run directory: it has no config.yaml")
    document = load_document(run_dir / "config.yaml")
    steps = _steps(run_dir, document) if step is None else [step]
    for each in steps:
        load_for_evaluation(run_dir, each, "ema", "cpu")  # refuses an unknown step before anything is written
    if attempt is None:
        return _evaluate(run_dir, document, steps)
    with Telemetry(run_dir / f"attempt-{attempt}") as telemetry:
        device = str(choose_device(document.config))
        telemetry.event(steps[0], "started", attempt=attempt, device=device, gpu_uuids=gpu_uuids(), steps=steps)
        results = _evaluate(run_dir, document, steps)
        for each, metrics in results.items():
            known = _known(run_dir, each)
            telemetry.metrics("val", each, {name: value for name, value in metrics.items() if name not in known})
        telemetry.event(steps[0], "finished")
        telemetry.sync()
    return results


def _evaluate(run_dir: Path, document: Document, steps: list[int]) -> dict[int, dict[str, float]]:
    device = choose_device(document.config)
    validation = Validation(document.config, open_source(document.config, document.seed), device, document.run, run_dir)
    results = {}
    for step in steps:
        weights = {name: load_for_evaluation(run_dir, step, name, device)[0] for name in ("raw", "ema")}
        results[step] = validation.full(step, weights, document.config.sampler.native).metrics
    return results


def _steps(run_dir: Path, document: Document) -> list[int]:
    """The newest checkpoint and the best one that is kept, if they differ."""
    steps = list_steps(run_dir)
    if not steps:
        raise UsageError(f"{run_dir} has no complete checkpoint")
    scores = Scores(run_dir, document.config)
    scores.restore(until=steps[-1])
    best = scores.best([step for step in steps if read_state(run_dir, step)["finite"]])
    return [steps[-1]] if best is None or best == steps[-1] else [steps[-1], best]


def _known(run_dir: Path, step: int) -> set[str]:
    """Names of the metrics that earlier attempts have written for a step; unfinished lines do not count."""
    names: set[str] = set()
    for path in run_dir.glob("attempt-*/metrics.jsonl"):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                content = json.loads(line)
            except ValueError:
                continue
            if isinstance(content, dict) and content.get("kind") == "val" and content.get("step") == step:
                names.update(content)
    return names


def _chosen(metrics: Mapping[str, float], arguments: argparse.Namespace) -> dict[str, float]:
    """The metrics of the weights and sampler that the command line asks for."""
    prefixes = {
        PREFIXES[Variant(weights, sampler)]
        for weights in ([arguments.weights] if arguments.weights else ["raw", "ema"])
        for sampler in ([arguments.sampler] if arguments.sampler else ["common", "native"])
    }
    return {name: value for name, value in metrics.items() if name.partition("/")[0] in prefixes}


def _as_json(run_dir: Path, chosen: Mapping[int, Mapping[str, float]]) -> str:
    steps = {str(step): {name: plain(value) for name, value in metrics.items()} for step, metrics in chosen.items()}
    return json.dumps({"run_dir": str(run_dir), "steps": steps}, indent=1, allow_nan=False)


def _as_table(chosen: Mapping[int, Mapping[str, float]]) -> str:
    """One line a metric, one column a step."""
    names = list(dict.fromkeys(name for metrics in chosen.values() for name in metrics))
    width = max(map(len, names), default=6)
    lines = [" ".join(["metric".ljust(width), *(f"step {step}".rjust(12) for step in chosen)])]
    for name in names:
        cells = (f"{metrics[name]:.4f}" if name in metrics else "-" for metrics in chosen.values())
        lines.append(" ".join([name.ljust(width), *(cell.rjust(12) for cell in cells)]))
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m trainer evaluate",
        description="Full validation of a checkpoint (default: the last and the best one) into RUN_DIR/validation.",
    )
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    parser.add_argument("--step", type=int, help="the checkpoint of this step")
    parser.add_argument("--weights", choices=("raw", "ema"), help="print metrics of these weights only")
    parser.add_argument("--sampler", choices=("common", "native"), help="print metrics of this sampler only")
    parser.add_argument("--attempt", type=int, help="append new metrics to RUN_DIR/attempt-N/metrics.jsonl")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    prompts = parser.add_argument_group("other prompts, in place of the validation")
    prompts.add_argument("--prompts", type=Path, metavar="FILE", help="draw every line of a text file")
    prompts.add_argument(
        "--out", type=Path, metavar="DIR", help="folder of the images (default: in RUN_DIR/validation)"
    )
    prompts.add_argument("--seeds", type=_count, metavar="N", help="noises of each prompt (default 4)")
    prompts.add_argument("--bucket", metavar="WxH", help="shape of the images, one of the run's buckets")
    add_places(parser)
    return parser


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not at least 1")
    return number
