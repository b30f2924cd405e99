"""Plays `python -m trainer` for tests of the runner: the same command line, files, signals and exit codes, no learning.

`quick_python` writes an interpreter that an arm can name as environment.python: `trainer check` is answered by the real
trainer, every other command by this file. In the run's folder `calls` notes each command line, `wait-autopsy` and
`wait-evaluate` hold those for as long as they are there, and `exit-autopsy` or `exit-evaluate` holds an exit code.
Beside the home `wait-train` keeps every training from its last step: none is over before a slow test has stopped it.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

EVERY = 5
BEST = 30
PAUSE_S = 0.01


def quick_python(folder: Path) -> Path:
    """An interpreter for `environment.python`."""
    path = folder / "quick-python"
    path.write_text(
        f'#!/bin/sh\ncase "$1 $3" in "-m check"|-c*) exec {sys.executable} "$@";; esac\n'
        f'exec {sys.executable} -P {Path(__file__).resolve()} "$@"\n'
    )
    path.chmod(0o755)
    return path


def main(argv: list[str]) -> int:
    """One command: train, evaluate or autopsy."""
    assert argv[:2] == ["-m", "trainer"], argv
    command, rest = argv[2], argv[3:]
    parser = argparse.ArgumentParser()
    parser.add_argument("place", type=Path)
    parser.add_argument("--run-dir", type=Path)
    parser.add_argument("--attempt", type=int, required=True)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--from-step", type=int)
    parser.add_argument("--from-run", type=Path)
    parser.add_argument("--budget-s", type=float)
    given = parser.parse_args(rest)
    run_dir = given.run_dir or given.place
    with (run_dir / "calls").open("a") as calls:
        calls.write(" ".join(argv[2:]) + "\n")
    with (run_dir / f"attempt-{given.attempt}" / "metrics.jsonl").open("a") as metrics:
        say(metrics, 0, kind="event", event="started", attempt=given.attempt)
        if command == "train":
            return train(given, run_dir, metrics)
        return afterwards(command, run_dir)


def train(given: argparse.Namespace, run_dir: Path, metrics: TextIO) -> int:
    """Steps until the budget is used up or somebody asks for a checkpoint and the end."""
    import yaml

    steps: int = yaml.safe_load(given.place.read_text())["trainer"]["steps"]
    asked: list[int] = []

    def ask(number: int, _frame: FrameType | None) -> None:
        asked.append(number)

    signal.signal(signal.SIGTERM, ask)
    step = first = begin(given, run_dir)
    if step:
        say(metrics, step, kind="event", event="rescued" if given.from_run else "resumed")
    seen = 0
    wait = run_dir.parents[2] / "wait-train"
    while step < steps and not asked:
        if step == steps - 1 and wait.exists():
            time.sleep(PAUSE_S)
            continue
        step += 1
        say(metrics, step, kind="train", **{"train/loss": 1.0 / step})
        seen = obey(run_dir, given.attempt, seen, step, metrics)
        if step % EVERY == 0:
            save(run_dir, step, metrics)
        time.sleep(PAUSE_S)
    if step > first:
        save(run_dir, step, metrics)
    return 0 if step >= steps else 75


def begin(given: argparse.Namespace, run_dir: Path) -> int:
    """The step of the checkpoint that the attempt goes on from."""
    saved = sorted(int(path.name[5:]) for path in (run_dir / "checkpoints").glob("step_*"))
    if given.resume and saved:
        return int(given.from_step if given.from_step is not None else saved[-1])
    if given.from_run is not None:
        assert (given.from_run / "checkpoints" / f"step_{given.from_step:06d}").is_dir()
        return int(given.from_step)
    return 0


def obey(run_dir: Path, attempt: int, seen: int, step: int, metrics: TextIO) -> int:
    """Confirm a control.json that is new and ours; returns its number."""
    wish = json.loads((run_dir / "control.json").read_bytes())
    if wish["attempt"] != attempt or wish["seq"] == seen:
        return seen
    say(metrics, step, kind="event", event="control_ack", seq=wish["seq"])
    return int(wish["seq"])


def save(run_dir: Path, step: int, metrics: TextIO) -> None:
    """A checkpoint and a light validation; the score is best at step BEST."""
    (run_dir / "checkpoints" / f"step_{step:06d}").mkdir(parents=True, exist_ok=True)
    say(metrics, step, kind="val", **{"val/recon_rmse": 1.0 + abs(step - BEST) / 1000})


def afterwards(command: str, run_dir: Path) -> int:
    """A final evaluation or an autopsy, as a test holds or breaks it."""
    while (run_dir / f"wait-{command}").exists():
        time.sleep(PAUSE_S)
    code = run_dir / f"exit-{command}"
    if code.exists():
        return int(code.read_text())
    if command == "autopsy":
        (run_dir / "autopsy").mkdir(exist_ok=True)
        (run_dir / "autopsy" / "autopsy.json").write_text(json.dumps({"conclusion": "the weights became worse"}))
    return 0


def say(metrics: TextIO, at: int, /, **values: Any) -> None:
    """One line of the metrics file."""
    metrics.write(json.dumps({"step": at, "time": time.time(), **values}) + "\n")
    metrics.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
