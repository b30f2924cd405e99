"""What every line of `make accept` works with: a fresh clone, commands run in it, promises that are kept or not."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SHORT = ("--set", "trainer.steps=200")
FIGURES = ("primary.png", "curves.png", "contrasts.png", "samples.png", "costs.png")
QUICKSTART = ("arms/a_baseline.yaml", "arms/b_tread_adamw.yaml", "arms/c_tread_muon.yaml", "arms/d_full_stack.yaml")
HOT = "arms/extras/hot_lr.yaml"
SCRIPT = "arms/extras/any_script.yaml"


class NotMet(AssertionError):
    """A line's promise was not kept; the message says which."""


@dataclass
class Bench:
    """A fresh clone, a folder for homes beside it, and the notes of one line."""

    clone: Path
    notes: dict[str, Any] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)

    def run(self, *command: str, limit_s: float = 3600, code: int | None = 0, **options: Any) -> str:
        """Run a command in the clone; its output is kept."""
        self.log.append("$ " + " ".join(command))
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RUNNER_")}
        done = subprocess.run(
            command,
            cwd=self.clone,
            env=environment,
            capture_output=True,
            text=True,
            timeout=limit_s,
            check=False,
            **options,
        )
        self.log.append((done.stdout + done.stderr)[-6000:])
        if code is not None and done.returncode != code:
            raise NotMet(f"{' '.join(command)}: exit code {done.returncode}, expected {code}")
        return done.stdout + done.stderr

    def runner(self, *arguments: str, home: str, code: int | None = 0, limit_s: float = 7200) -> str:
        """Run our command with a home beside the clone."""
        command, *rest = arguments
        return self.run(".venv/bin/runner", command, *rest, "--home", str(self.home(home)), code=code, limit_s=limit_s)

    def home(self, name: str) -> Path:
        """A folder outside the clone, which stays clean."""
        return self.clone.parent / name

    def status(self, home: str) -> dict[str, dict[str, Any]]:
        """Runs by arm and seed."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RUNNER_")}
        command = [".venv/bin/runner", "status", "--json", "--home", str(self.home(home))]
        done = subprocess.run(command, cwd=self.clone, env=environment, capture_output=True, text=True, check=True)
        document = json.loads(done.stdout)
        return {f"{run['arm']}-s{run['seed']}": run for study in document["studies"] for run in study["runs"]}

    def points(self, home: str, study: str) -> dict[str, list[str]]:
        """Comparable points by run id: no times, no machine metrics."""
        self.runner("report", study, home=home)
        found: dict[str, list[str]] = {}
        lines = (self.home(home) / study / "report/data/points.csv").read_text().splitlines()[1:]
        for line in lines:
            run, attempt, name, step, value, _time = line.split(",")
            if not name.startswith(("sys/", "memory/")):
                found.setdefault(run, []).append(f"{attempt},{name},{step},{value}")
        return {run: sorted(points) for run, points in found.items()}

    def until(self, condition: Callable[[], Any], what: str, limit_s: float = 600) -> Any:
        """Poll until the condition holds."""
        end = time.monotonic() + limit_s
        while not (found := condition()):
            require(time.monotonic() < end, f"not within {limit_s} s: {what}")
            time.sleep(0.3)
        return found


def require(kept: Any, promise: str) -> None:
    """Raises NotMet unless the promise was kept."""
    if not kept:
        raise NotMet(promise)
