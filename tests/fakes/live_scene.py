"""Scenes for live faults: a home of its own, real arms in it, the real commands, and what the home tells of them."""

from __future__ import annotations

import json
import os
import random
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from runner.records import ENDED
from runner.spec.models import DETECTOR_NAMES
from tests.fakes.faulty_source import faulty_python
from tests.fakes.lab import ROOT, Lab

PATIENCE_S = 120.0
STEPS = 80
TINY: dict[str, Any] = {
    "steps": STEPS,
    "batch": 16,
    "log_every": 1,
    "device": "cpu",
    "data": {"source": "procedural", "size": 16, "samples": 256, "held_out": 24},
    "model": {"width": 16, "depth": 3, "heads": 2, "patch": 4},
    "optimizer": {"name": "adamw", "lr": 0.003, "warmup_steps": 10, "clip": 1.0},
    "validation": {"every": 10, "samples": 24, "sampler_steps": 2},
}
SHORT = {
    **TINY,
    "steps": STEPS // 2,
    "data": {**TINY["data"], "held_out": 6},
    "validation": {**TINY["validation"], "samples": 6},
}
"""The same for a controller in a hurry. Six samples and four validations are too few for the detectors named next."""

UNSURE = ("regress", "oscillating", "stall")

# Not the quickstart's val/recon_rmse: a model of eighty steps draws worse than an untrained one, which draws plain
# grey, so in so short a training that metric turns for the worse after its first validations and stays there.
PRIMARY = {"metric": "val/loss", "direction": "min"}

CLOCK = """\
import sys, time
if "runner.controller" in sys.orig_argv:
    import runner.clock, runner.detach, subprocess

    class Hurried(runner.clock.SystemClock):
        def monotonic(self):
            return {times} * time.monotonic()

        def wait(self, seconds, descriptors=()):
            return super().wait(min(seconds, 5.0 / {times}), descriptors)

    runner.clock.SystemClock = Hurried
    runner.detach.start_report = lambda home, study: subprocess.Popen(["/bin/true"])
"""
"""Makes the durations of a controller pass so many times faster, and spares it the drawing of reports."""


class Event(NamedTuple):
    """A line of a home's history."""

    time: float
    what: str
    reason: str
    data: Mapping[str, Any]


@dataclass
class Scene(Lab):
    """A home, the arms in it, and chance. `times` makes minutes of a controller's patience pass faster."""

    times: int = 1
    seed: int = 0

    def start(self, *arguments: str | Path, **options: Any) -> subprocess.Popen[str]:
        """Start a command with this scene's clock."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("RUNNER_", "COV"))}
        hurry = self.folder / "hurry"
        if self.times > 1:
            hurry.mkdir(exist_ok=True)
            (hurry / "sitecustomize.py").write_text(CLOCK.format(times=self.times))
        environment |= {"RUNNER_HOME": str(self.home), "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{hurry}"}
        command = [sys.executable, "-P", "-m", "runner.cli", *map(str, arguments)]
        return subprocess.Popen(
            command,
            env=environment,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )

    def clean_up(self) -> None:
        """Leave nothing alive; where all has ended there is nothing to stop."""
        if all(run["state"].split("(")[0] in ENDED for run in self.status().values()):
            self.until(lambda: self.controller_pid() is None, "the controller to end")
        else:
            super().clean_up()

    def until(self, condition: Callable[[], Any], what: str, deadline_s: float = PATIENCE_S) -> Any:
        """Poll until the condition holds, seldom enough to leave the processor to the trainings."""
        end = time.monotonic() + deadline_s
        while not (found := condition()):
            assert time.monotonic() < end, f"not within {deadline_s:.0f} s: {what}"
            time.sleep(0.2)
        return found

    def drawn_step(self, first: int = 21, last: int = 34) -> int:
        """A step in the middle of a run, no multiple of ten: there a validation is."""
        steps = [step for step in range(first, last + 1) if step % 10]
        return random.Random(f"{self.seed} {self.folder.name}").choice(steps)

    def training(self, name: str = "T", policy: Mapping[str, str] | None = None, **changes: Any) -> Path:
        """An arm of our trainer with every detector armed; `changes` go over the keys of the arm."""
        document = {
            "study": "lab", "arm": name, "seeds": [0], "primary": PRIMARY, "resources": {"gpus": 0}, "retries": 0,
            "policy": {"detectors": dict.fromkeys(DETECTOR_NAMES, "abort") | dict(policy or {}), "autopsy_s": 0},
            "trainer": TINY, **changes,
        }  # fmt: skip
        path = self.folder / f"{name}.yaml"
        path.write_text(json.dumps(document))
        return path

    def faulty(
        self, policy: Mapping[str, str] | None = None, steps: int | None = None, retries: int = 0, **plan: Any
    ) -> Path:
        """An arm whose batches follow a plan; the plan's file is `self.plan`."""
        in_hurry = self.times > 1
        trainer = {**(SHORT if in_hurry else TINY), **({} if steps is None else {"steps": steps})}
        python, _ = faulty_python(self.folder, **plan)
        return self.training(
            policy={**(dict.fromkeys(UNSURE, "warn") if in_hurry else {}), **(policy or {})},
            environment={"python": str(python)}, trainer=trainer, retries=retries,
        )  # fmt: skip

    @property
    def plan(self) -> Path:
        return self.folder / "plan.json"

    def launch(self, *arms: Path, slots: int = 1) -> None:
        self.run("launch", *arms, "--slots", str(slots), "--detach")

    def one(self, name: str = "T-s0") -> dict[str, Any]:
        return self.status().get(name, {"state": "", "health": "", "step": 0})

    def until_step(self, step: int, name: str = "T-s0") -> None:
        self.until(lambda: self.one(name)["step"] >= step, f"{name} at step {step}", PATIENCE_S)

    def until_ended(self, *names: str, deadline_s: float = PATIENCE_S) -> list[dict[str, Any]]:
        """The runs once all of them have ended."""

        def ended() -> bool:
            runs = self.status()
            return all(name in runs and runs[name]["state"].split("(")[0] in ENDED for name in names)

        self.until(ended, f"{names} to end", deadline_s)
        return [self.status()[name] for name in names]

    def until_event(self, what: str, deadline_s: float) -> Event:
        return self.until(lambda: next(iter(self.events(what)), None), f"the event {what}", deadline_s)  # type: ignore[no-any-return]

    def events(self, what: str = "", run: str | None = None) -> list[Event]:
        """The history of this home: events that begin so, oldest first."""
        query = "SELECT time, what, reason, data FROM events WHERE substr(what, 1, ?) = ? AND run LIKE ? ORDER BY id"
        with closing(sqlite3.connect(f"file:{self.home}/runner.db?mode=ro", uri=True)) as connection:
            rows = connection.execute(query, (len(what), what, f"%{run or ''}%")).fetchall()
        return [Event(when, name, reason, json.loads(data or "{}")) for when, name, reason, data in rows]

    def folder_of(self, run: Mapping[str, Any], attempt: int = 1) -> Path:
        return Path(self.home / run["run_dir"] / f"attempt-{attempt}")

    def training_pid(self) -> int:
        claim = json.loads((self.folder_of(self.one()) / "supervisor.json").read_text())
        return int(claim["child"]["pid"])

    def ended_at(self, run: Mapping[str, Any]) -> float:
        """When the process of the first attempt ended, by its supervisor."""
        return float(json.loads((self.folder_of(run) / "exit.json").read_text())["ended"])
