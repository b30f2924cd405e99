"""How long a new controller takes to adopt a hundred running arms after the old one was killed with -9.

An arm counts as adopted once the new controller has stored a point that the arm wrote after the kill: its process was
recognised and its file was read on. No peer is measured: none of xargs, submitit and ray takes up what it started.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ARMS = 100
REPEATS = 5
WITHIN_S = 120.0
DEAD_S = 1.5  # long enough for every arm to write another point

SLEEPER = """
import os, time
with open(os.environ["RUNNER_RUN_DIR"] + "/metrics.jsonl", "a", buffering=1) as file:
    for step in range(1, 100000):
        print('{"step": %d, "time": %.3f, "loss": 1.0}' % (step, time.time()), file=file)
        time.sleep(1)
"""


def run(quick: bool) -> dict[str, Any]:
    """All measurements, as plain JSON values."""
    folder = Path(tempfile.mkdtemp(prefix="armature-bench-"))
    try:
        with _running_arms(folder) as home:
            took_s = [_kill_and_adopt(home) for _ in range(1 if quick else REPEATS)]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return {
        "benchmark": "adoption", "quick": quick, "arms": ARMS, "repeats": len(took_s), "took_s": sorted(took_s),
        "median_s": median(took_s), "spread_s": (max(took_s) - min(took_s)) / 2,
    }  # fmt: skip


def table(result: Mapping[str, Any]) -> str:
    """The result as a Markdown table."""
    return (
        "| running arms | kills | from the start of the new controller to the last adoption, s |\n|--:|--:|--:|\n"
        f"| {result['arms']} | {result['repeats']} | {result['median_s']:.2f} ± {result['spread_s']:.2f} |"
    )


@contextmanager
def _running_arms(folder: Path) -> Iterator[Path]:
    """A home in which all arms run and have points."""
    arms, home = folder / "arms", folder / "runs"
    arms.mkdir()
    (arms / "sleeper.py").write_text(SLEEPER)
    document = {
        "study": "bench", "arm": "a", "seeds": list(range(ARMS)), "steps": 100000,
        "command": ["python3", "-I", "-S", "{arm_dir}/sleeper.py"],
        "metrics": {"source": "jsonl", "path": "metrics.jsonl"}, "resources": {"gpus": 0},
    }  # fmt: skip
    (arms / "a.yaml").write_text(json.dumps(document))
    try:
        _command("launch", arms / "a.yaml", "--slots", ARMS, "--detach", "--home", home)
        _until(lambda: _with_points_since(home, 0.0) == ARMS, "all arms run")
        yield home
    finally:
        _command("stop", "--all", "--home", home)
        _until(lambda: not _is_held(home), "the controller has ended")


def _kill_and_adopt(home: Path) -> float:
    """Seconds from the start of a new controller until it has a new point of every arm."""
    _until(lambda: _is_held(home), "a controller is alive")
    os.kill(int((home / "controller.lock").read_text()), signal.SIGKILL)
    _until(lambda: not _is_held(home), "the controller is dead")
    killed = time.time()
    time.sleep(DEAD_S)
    assert _with_points_since(home, killed) == 0
    begun = time.monotonic()
    with open(home / "controller.log", "ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "runner.controller", "--home", str(home)],
            env=_environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    _until(lambda: _with_points_since(home, killed) == ARMS, "all arms are adopted")
    took_s = time.monotonic() - begun
    assert process.poll() is None
    print(f"  {ARMS} arms adopted in {took_s:.2f} s", flush=True)
    return took_s


def _with_points_since(home: Path, moment: float) -> int:
    """Arms with a stored point that was written after a moment (seconds since the epoch)."""
    if not (home / "runner.db").exists():
        return 0
    with closing(sqlite3.connect(f"file:{home}/runner.db?mode=ro", uri=True)) as connection:
        query = "SELECT count(DISTINCT run) FROM series WHERE last_time > ?"
        return int(connection.execute(query, [moment]).fetchone()[0])


def _is_held(home: Path) -> bool:
    from runner.lock import is_held

    return is_held(home / "controller.lock")


def _command(*arguments: object) -> None:
    argv = [sys.executable, "-m", "runner.cli", *map(str, arguments)]
    subprocess.run(argv, env=_environment(), check=True, capture_output=True)


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"}


def _until(condition: Any, what: str) -> None:
    until = time.monotonic() + WITHIN_S
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError(f"not within {WITHIN_S:g} s: {what}")
        time.sleep(0.02)
