"""What the controller costs while arms train: 1, 10 and 200 live arms that write a point a second each.

Real controller, real supervisors; each arm is a `sleep`, and one feeder writes the metrics files of all of them, so
that two cores are enough. Measured from outside: the controller's CPU time and memory as the kernel counts them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
TICKS = os.sysconf("SC_CLK_TCK")
SIZES = (1, 10, 200)
WINDOWS = 5
WINDOW_S = 10.0
QUICK_SIZES = (10, 50)
QUICK_WINDOWS, QUICK_WINDOW_S = 2, 5.0
WARM_UP_S = 4.0
WITHIN_S = 180.0


class Feeder(threading.Thread):
    """Appends one record a second to each file, spread evenly over the second. Idle while `is_writing` is false."""

    def __init__(self, paths: Sequence[Path]) -> None:
        super().__init__(daemon=True)
        self._paths = paths
        self.is_writing = True
        self.is_over = False

    def run(self) -> None:
        """Write until it is over; when late, it catches up, so that the rate holds."""
        begun, written = time.monotonic(), 0
        while not self.is_over:
            due = int((time.monotonic() - begun) * len(self._paths))
            for number in range(written, due if self.is_writing else written):
                step, which = divmod(number, len(self._paths))
                record = {"step": step + 1, "time": time.time(), "kind": "train", "train/loss": 2.0 / (step + 1)}
                with self._paths[which].open("a") as file:
                    file.write(json.dumps(record) + "\n")
            written = due
            time.sleep(0.02)


@contextmanager
def live_arms(count: int, folder: Path) -> Iterator[tuple[int, list[Path]]]:
    """So many running arms: (pid of the controller, their metrics files). Everything is stopped at the end."""
    arm = folder / "a.yaml"
    document = {
        "study": "bench", "arm": "a", "seeds": list(range(count)), "command": ["sleep", "3600"], "steps": 1_000_000,
        "metrics": {"source": "jsonl", "path": "metrics.jsonl"}, "resources": {"gpus": 0},
        "primary": {"metric": "train/loss", "direction": "min"},
    }  # fmt: skip
    arm.write_text(yaml.safe_dump(document))
    home = folder / "runs"
    _runner("launch", arm, "--slots", count, "--detach", "--home", home)
    try:
        until = time.monotonic() + WITHIN_S
        while len(_running(home)) < count:
            if time.monotonic() > until:
                raise TimeoutError(f"{len(_running(home))} of {count} arms run after {WITHIN_S:g} s; see {home}")
            time.sleep(0.5)
        yield int((home / "controller.lock").read_text()), [home / run / "metrics.jsonl" for run in _running(home)]
    finally:
        _runner("stop", "--all", "--wait", "--home", home)
        while _is_held(home):
            time.sleep(0.1)


def run(quick: bool) -> dict[str, Any]:
    """All measurements, as plain JSON values."""
    sizes = QUICK_SIZES if quick else SIZES
    windows, window_s = (QUICK_WINDOWS, QUICK_WINDOW_S) if quick else (WINDOWS, WINDOW_S)
    rows = []
    for count in sizes:
        folder = Path(tempfile.mkdtemp(prefix="armature-bench-"))
        try:
            with live_arms(count, folder) as (pid, paths):
                rows.append(_row(count, pid, paths, windows, window_s, with_idle=count == sizes[0]))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        print(f"  {rows[-1]}", flush=True)
    first = next(row for row in rows if row["arms"] >= 10)
    last = rows[-1]
    slope = (last["cpu_percent"] - first["cpu_percent"]) / (last["arms"] - first["arms"])
    return {
        "benchmark": "steady", "quick": quick, "windows": windows, "window_s": window_s, "rows": rows,
        "slope_percent_per_arm": slope, "between": [first["arms"], last["arms"]],
    }  # fmt: skip


def table(result: Mapping[str, Any]) -> str:
    """The result as a Markdown table."""
    lines = ["| live arms | points a second | controller, % of a core | memory, MB |", "|--:|--:|--:|--:|"]
    for row in result["rows"]:
        if "idle_percent" in row:
            lines.append(f"| {row['arms']} | 0 | {row['idle_percent']:.2f} | {row['rss_mb']:.0f} |")
        cpu = f"{row['cpu_percent']:.2f} ± {row['cpu_spread']:.2f}"
        lines.append(f"| {row['arms']} | {row['arms']} | {cpu} | {row['rss_mb']:.0f} |")
    fewer, more = result["between"]
    slope = result["slope_percent_per_arm"]
    lines.append(f"\nSlope between {fewer} and {more} arms: {slope:.3f} % of a core for each arm.")
    return "\n".join(lines)


def _row(count: int, pid: int, paths: Sequence[Path], windows: int, window_s: float, with_idle: bool) -> dict[str, Any]:
    row: dict[str, Any] = {"arms": count}
    if with_idle:
        time.sleep(WARM_UP_S)
        row["idle_percent"] = median(_cpu_percent(pid, window_s) for _ in range(windows))
    feeder = Feeder(paths)
    feeder.start()
    time.sleep(WARM_UP_S)
    measured = sorted(_cpu_percent(pid, window_s) for _ in range(windows))
    feeder.is_over = True
    feeder.join()
    return {
        **row, "cpu_percent": median(measured), "cpu_spread": (measured[-1] - measured[0]) / 2, "cpus": measured,
        "rss_mb": _rss_mb(pid),
    }  # fmt: skip


def _cpu_percent(pid: int, seconds: float) -> float:
    before, begun = _cpu_s(pid), time.monotonic()
    time.sleep(seconds)
    return 100.0 * (_cpu_s(pid) - before) / (time.monotonic() - begun)


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def _rss_mb(pid: int) -> float:
    (line,) = [text for text in Path(f"/proc/{pid}/status").read_text().splitlines() if text.startswith("VmHWM")]
    return int(line.split()[1]) * 1024 / 1e6


def _running(home: Path) -> list[str]:
    from runner.home import Home
    from runner.store.status import home_status

    document = home_status(Home(home))
    return [run["run_dir"] for study in document["studies"] for run in study["runs"] if run["state"] == "running"]


def _is_held(home: Path) -> bool:
    from runner.lock import is_held

    return is_held(home / "controller.lock")


def _runner(*arguments: object) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"}
    argv = [sys.executable, "-m", "runner.cli", *map(str, arguments)]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(argv)}: exit code {done.returncode}: {done.stderr[-2000:]}")
