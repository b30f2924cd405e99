"""How long it takes to run many short commands on four slots: ours, xargs, submitit's local executor, ray tune.

All contenders run in turn within each repeat, so that whatever else the machine does hits all of them alike.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from benchmarks.peers import REQUIREMENTS, python_of, version

ROOT = Path(__file__).resolve().parent.parent
SLOTS = 4
COMMANDS: Mapping[str, Sequence[str]] = {"true": ("true",), "python -c pass": ("python3", "-c", "pass")}
SIZES = (20, 100, 500)
QUICK_SIZES = (20, 100)
REPEATS = 5
END_WITHIN_S = 600.0
LARGEST = {"submitit": 500, "ray": 100}
"""The most arms that a peer runs within three minutes on two cores; larger sizes are left out for it."""


@dataclass(frozen=True, slots=True)
class Took:
    """One measurement: seconds from the command to the last end, and from the first start to the last end.

    `gaps_ms` are the times between the end of one command and the start of the next on the same slot.
    """

    total_s: float
    work_s: float
    gaps_ms: tuple[float, ...] = ()
    start_s: float = 0.0


def ours(count: int, command: Sequence[str], folder: Path, files: bool = False) -> Took:
    """`runner launch`, one arm with many seeds, or with `files` one arm file for each run."""
    paths = _arm_files(folder / "arms", count, command) if files else _one_arm_file(folder / "arms", count, command)
    home = folder / "runs"
    begun = time.time()
    subprocess.run(
        [sys.executable, "-m", "runner.cli", "launch", *paths, "--slots", str(SLOTS), "--home", str(home), "--detach"],
        check=True, env=_environment(), cwd=folder, capture_output=True,
    )  # fmt: skip
    spans = _await_ends(home, count)
    _await_controller(home)
    started, ended = min(start for _, start, _ in spans), max(end for _, _, end in spans)
    return Took(ended - begun, ended - started, _gaps_ms(spans), started - begun)


def xargs(count: int, command: Sequence[str], folder: Path) -> Took:
    """`xargs -P4`: starts and waits, and does nothing else."""
    begun = time.monotonic()
    argv = ["xargs", "-P", str(SLOTS), "-I", "{}", *_resolved(command)]
    subprocess.run(argv, input="".join(f"{at}\n" for at in range(count)), text=True, check=True, cwd=folder)
    took_s = time.monotonic() - begun
    return Took(took_s, took_s)


SUBMITIT = """
import json, sys, time
import submitit
count, slots, folder, command = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:]
executor = submitit.AutoExecutor(folder=folder, cluster="local")
executor.update_parameters(timeout_min=10)
begun, waiting, running = time.monotonic(), count, []
while waiting or running:  # it has no queue of its own: every job that is submitted starts at once
    while waiting and len(running) < slots:
        running.append(executor.submit(submitit.helpers.CommandFunction(command)))
        waiting -= 1
    running = [job for job in running if not job.done()]
    time.sleep(0.01)
print(json.dumps({"work_s": time.monotonic() - begun}))
"""

RAY = """
import json, subprocess, sys, time
count, slots, folder, command = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:]
import ray
from ray import tune
ray.init(num_cpus=slots, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
def trial(config):
    subprocess.run(command, check=True)
    return {"code": 0}
begun = time.monotonic()
tuner = tune.Tuner(
    tune.with_resources(trial, {"cpu": 1}),
    tune_config=tune.TuneConfig(num_samples=count, max_concurrent_trials=slots),
    run_config=tune.RunConfig(storage_path=folder, verbose=0),
)
results = tuner.fit()
print(json.dumps({"work_s": time.monotonic() - begun}))
sys.exit(1 if results.errors else 0)
"""


def peer(name: str, script: str) -> Callable[[int, Sequence[str], Path], Took]:
    """A contender that is a small script in an environment of its own."""
    python = python_of(name, REQUIREMENTS[name])

    def run(count: int, command: Sequence[str], folder: Path) -> Took:
        begun = time.monotonic()
        done = subprocess.run(
            [python, "-c", script, str(count), str(SLOTS), str(folder), *_resolved(command)],
            capture_output=True, text=True, timeout=END_WITHIN_S, cwd=folder,
            env={**os.environ, "RAY_DEDUP_LOGS": "0", "RAY_AIR_NEW_OUTPUT": "0", "RAY_USAGE_STATS_ENABLED": "0"},
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{name} failed: {done.stderr[-2000:]}")
        took_s = time.monotonic() - begun
        return Took(took_s, float(json.loads(done.stdout.strip().splitlines()[-1])["work_s"]))

    return run


def run(quick: bool) -> dict[str, Any]:
    """All measurements, as plain JSON values."""
    repeats = 1 if quick else REPEATS
    contenders: dict[str, Callable[[int, Sequence[str], Path], Took]] = {
        "armature": ours,
        "armature, a file an arm": lambda count, command, folder: ours(count, command, folder, files=True),
        "xargs": xargs,
        "submitit": peer("submitit", SUBMITIT),
        "ray": peer("ray", RAY),
    }
    measured: dict[tuple[str, str, int], list[Took]] = {}
    for repeat in range(repeats):
        for count in QUICK_SIZES if quick else SIZES:
            for label, command in COMMANDS.items():
                for name, contender in contenders.items():
                    if _is_left_out(name, label, count, quick):
                        continue
                    took = _measured(contender, count, command)
                    measured.setdefault((name, label, count), []).append(took)
                    print(f"  {repeat + 1}/{repeats} {name}, {count} x {label}: {took.total_s:.2f} s", flush=True)
    versions = {name: version(requirement) for name, requirement in REQUIREMENTS.items()}
    versions["xargs"] = subprocess.run(["xargs", "--version"], capture_output=True, text=True).stdout.splitlines()[0]
    return {
        "benchmark": "launch", "quick": quick, "slots": SLOTS, "repeats": repeats, "versions": versions,
        "rows": [_row(*key, measured[key]) for key in measured],
    }  # fmt: skip


def table(result: Mapping[str, Any]) -> str:
    """The result as a Markdown table."""
    heads = ("arms", "command", "tool", "all in all, s", "without start-up, s", "times xargs (without start-up)")
    lines = [f"| {' | '.join(heads)} | slot gap p50, p99, ms |", "|--:|---|---|--:|--:|--:|--:|"]
    base = {(row["arms"], row["command"]): row for row in result["rows"] if row["tool"] == "xargs"}
    for row in sorted(result["rows"], key=lambda row: (row["command"], row["arms"])):
        bare = base[row["arms"], row["command"]]
        ratio = f"{row['total_s'] / bare['total_s']:.1f} ({row['work_s'] / bare['work_s']:.1f})"
        gap = f"{row['gap_p50_ms']:.0f}, {row['gap_p99_ms']:.0f}" if "gap_p50_ms" in row else "–"
        total = f"{row['total_s']:.2f} ± {row['total_spread_s']:.2f}"
        cells = (row["arms"], f"`{row['command']}`", row["tool"], total, f"{row['work_s']:.2f}", ratio, gap)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def _is_left_out(name: str, label: str, count: int, quick: bool) -> bool:
    if name == "armature, a file an arm":
        return count < 100
    if name not in LARGEST:
        return False
    # What such a peer costs is its own machinery, not the command: `true` is run at the smallest size, to show that.
    largest = min(SIZES) if quick or label == "true" else LARGEST[name]
    return count > largest


def _measured(contender: Callable[[int, Sequence[str], Path], Took], count: int, command: Sequence[str]) -> Took:
    folder = Path(tempfile.mkdtemp(prefix="armature-bench-"))
    try:
        return contender(count, command, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _row(tool: str, command: str, arms: int, took: Sequence[Took]) -> dict[str, Any]:
    totals = sorted(one.total_s for one in took)
    row: dict[str, Any] = {
        "tool": tool, "command": command, "arms": arms, "repeats": len(took), "total_s": median(totals),
        "total_spread_s": (totals[-1] - totals[0]) / 2, "work_s": median(one.work_s for one in took),
        "totals_s": totals, "start_s": median(one.start_s for one in took),
    }  # fmt: skip
    gaps = sorted(gap for one in took for gap in one.gaps_ms)
    if gaps:
        row |= {"gap_p50_ms": median(gaps), "gap_p99_ms": gaps[int(len(gaps) * 0.99)]}
    return row


def _arm(name: str, seeds: Sequence[int], command: Sequence[str]) -> dict[str, Any]:
    return {
        "study": "bench", "arm": name, "seeds": list(seeds), "command": list(command), "steps": 1,
        "metrics": {"source": "jsonl", "path": "metrics.jsonl"}, "resources": {"gpus": 0},
    }  # fmt: skip


def _one_arm_file(folder: Path, count: int, command: Sequence[str]) -> list[str]:
    folder.mkdir()
    (folder / "a.yaml").write_text(yaml.safe_dump(_arm("a", range(count), command)))
    return [str(folder / "a.yaml")]


def _arm_files(folder: Path, count: int, command: Sequence[str]) -> list[str]:
    folder.mkdir()
    for at in range(count):
        (folder / f"a{at:03d}.yaml").write_text(yaml.safe_dump(_arm(f"a{at:03d}", [0], command)))
    return sorted(map(str, folder.iterdir()))


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"}


def _resolved(command: Sequence[str]) -> list[str]:
    """`python3` means our own interpreter to us, so it does to everybody."""
    return [sys.executable if part == "python3" else part for part in command]


def _await_ends(home: Path, count: int) -> list[tuple[str, float, float]]:
    """(slot, start, end) of every attempt, once all have ended; all from the files that the attempts left."""
    until = time.monotonic() + END_WITHIN_S
    while len(exits := list(home.glob("bench/*/attempt-*/exit.json"))) < count:
        if time.monotonic() > until:
            raise TimeoutError(f"{len(exits)} of {count} runs had ended after {END_WITHIN_S:g} s; see {home}")
        time.sleep(0.5 if count > 100 else 0.05)  # a look costs as much as a run
    spans = []
    for path in exits:
        record = json.loads(path.read_text())
        if record["code"] != 0:
            raise RuntimeError(f"{path}: {record}")
        slot = json.loads((path.parent.parent / "provenance.json").read_text())["slot"]["name"]
        # The output file is made just before the process is, and a silent command never writes to it.
        spans.append((slot, (path.parent / "stdout.log").stat().st_mtime, record["ended"]))
    return spans


def _await_controller(home: Path) -> None:
    """The report is drawn behind the last run; it must not disturb the next measurement."""
    from runner.lock import is_held

    while is_held(home / "controller.lock"):
        time.sleep(0.05)


def _gaps_ms(spans: Sequence[tuple[str, float, float]]) -> tuple[float, ...]:
    by_slot: dict[str, list[tuple[float, float]]] = {}
    for slot, start, end in spans:
        by_slot.setdefault(slot, []).append((start, end))
    gaps = []
    for times in by_slot.values():
        times.sort()
        gaps += [1000 * (after[0] - before[1]) for before, after in pairwise(times)]
    return tuple(gaps)
