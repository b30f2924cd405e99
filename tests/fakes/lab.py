"""A home of its own, arms around small scripts, and the real command line: real processes from end to end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runner.home import Home
from runner.store.database import check_revision, reading
from runner.store.status import read_status
from tests.fakes.attempts import exists

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 120.0  # every wait ends as soon as its condition holds; this only bounds a test that fails

TALKER = """
import os, sys, time
from pathlib import Path
run_dir = Path(os.environ["RUNNER_RUN_DIR"])
steps = int(sys.argv[1])
for step in range(1, steps + 1):
    print(f"step {step}/{steps} loss={1.0 / step:.9f}", flush=True)
    gate = run_dir / f"wait-at-{step}"
    while gate.exists():
        time.sleep(0.01)
"""
"""Prints a loss for each step; stands still at step N for as long as the file wait-at-N is in its run folder."""


NO_REPORTS = """
import subprocess, sys
if "runner.controller" in sys.orig_argv:
    import runner.detach
    runner.detach.start_report = lambda home, study: subprocess.Popen(["/bin/true"])
"""
"""Spares a controller the drawing of reports at the end of a study, which takes longer than the study of a test."""


@dataclass
class Lab:
    """One home and one folder of arms. `draws_reports`: whether an ended study gets its report from the controller."""

    folder: Path
    extra_environment: dict[str, str] = field(default_factory=dict)
    draws_reports: bool = field(default=True, kw_only=True)
    _commands: list[subprocess.Popen[str]] = field(default_factory=list, repr=False)

    @property
    def home(self) -> Path:
        return self.folder / "runs"

    def arm(self, name: str, script: str = TALKER, *arguments: str, steps: int = 20, **keys: Any) -> Path:
        """Write a command arm around a Python script and return its file."""
        folder = self.folder / "arms" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "train.py").write_text(script)
        document = {
            "study": "lab",
            "arm": name,
            "seeds": [0],
            "command": ["python3", "{arm_dir}/train.py", *(arguments or (str(steps),))],
            "metrics": {"source": "regex", "pattern": r"step (?P<step>\d+)/\d+ loss=(?P<loss>\S+)"},
            "steps": steps,
            "resources": {"gpus": 0},
            **keys,
        }
        path = folder / f"{name}.yaml"
        path.write_text(json.dumps(document))
        return path

    def start(self, *arguments: str | Path, **options: Any) -> subprocess.Popen[str]:
        """Start a command and do not wait for it."""
        environment = {**os.environ, "RUNNER_HOME": str(self.home), "OMP_NUM_THREADS": "1", **self.extra_environment}
        environment.pop("COVERAGE_PROCESS_START", None)
        spared = self.folder / "no-reports"
        if not self.draws_reports:
            spared.mkdir(exist_ok=True)
            (spared / "sitecustomize.py").write_text(NO_REPORTS)
        command = subprocess.Popen(
            [sys.executable, "-P", "-m", "runner.cli", *map(str, arguments)],
            env={**environment, "PYTHONPATH": str(ROOT) if self.draws_reports else f"{ROOT}:{spared}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.folder,
            **options,
        )
        self._commands.append(command)
        return command

    def run(self, *arguments: str | Path, code: int | None = 0) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; asserts its exit code unless that is None."""
        process = self.start(*arguments)
        out, err = process.communicate(timeout=DEADLINE_S)
        done = subprocess.CompletedProcess(process.args, process.returncode, out, err)
        assert code is None or done.returncode == code, f"exit {done.returncode}\n{out}\n{err}\n{self.log()}"
        return done

    def log(self) -> str:
        path = self.home / "controller.log"
        return path.read_text() if path.exists() else "(no controller log)"

    def status(self) -> dict[str, dict[str, Any]]:
        """The runs by arm and seed, newest generation."""
        if check_revision(self.home / "runner.db") is None:
            return {}
        with reading(Home(self.home)) as connection:
            document = read_status(connection, time.time())
        return {f"{run['arm']}-s{run['seed']}": run for study in document["studies"] for run in study["runs"]}

    def until(self, condition: Callable[[], Any], what: str, deadline_s: float = DEADLINE_S) -> Any:
        """Poll until the condition holds and return what it returned."""
        end = time.monotonic() + deadline_s
        while not (found := condition()):
            assert time.monotonic() < end, f"not within {deadline_s} s: {what}\n{self.log()}"
            time.sleep(0.05)
        return found

    def until_state(self, name: str, *states: str) -> dict[str, Any]:
        """Wait until a run is in one of the states."""

        def reached() -> dict[str, Any] | None:
            run = self.status().get(name)
            return run if run and run["state"] in states else None

        found: dict[str, Any] = self.until(reached, f"{name} in {states}")
        return found

    def controller_pid(self) -> int | None:
        """The pid of the live controller."""
        from runner.lock import holder_pid, is_held

        lock = self.home / "controller.lock"
        while is_held(lock):
            if (pid := holder_pid(lock)) is not None:  # who has just taken it may be about to write its number
                return pid
        return None

    def kill_controller(self, number: int = signal.SIGKILL) -> int:
        """Kill the controller and wait until its lock is free."""
        pid = self.until(self.controller_pid, "a live controller")
        os.kill(pid, number)
        self.until(lambda: self.controller_pid() is None, "the lock to be free")
        return int(pid)

    def points(self, study: str = "lab") -> list[str]:
        """The public points of a study without their times, as lines of points.csv."""
        self.run("report", study)
        lines = (self.home / study / "report" / "data" / "points.csv").read_text().splitlines()
        return [line.rsplit(",", 1)[0] for line in lines[1:]]

    @property
    def runs_below(self) -> Path:
        """The folder below which every run of this lab lies, wherever it is at work."""
        return self.folder

    def processes(self) -> list[int]:
        """The numbers of every living process of an attempt of this lab."""
        found = []
        for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
            try:
                pairs = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue
            environment = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
            if Path(environment.get("RUNNER_RUN_DIR", "/")).is_relative_to(self.runs_below) and exists(pid):
                found.append(pid)
        return found

    def clean_up(self) -> None:
        """Leave nothing alive, whatever state a test left it in: nothing is asked, everything is killed, first who
        starts things. A test that wants to see how something ends waits for that itself."""
        for command in self._commands:
            if command.poll() is None:
                command.kill()
                command.communicate()
        pid = self.controller_pid() if self.home.is_dir() else None
        if pid is not None and pid != os.getpid():
            with suppress(ProcessLookupError):  # it leads a group of its own; a report that it is writing belongs to it
                (os.killpg if os.getpgid(pid) == pid else os.kill)(pid, signal.SIGKILL)
            self.until(lambda: self.controller_pid() is None, "the lock to be free")
        for _ in range(2):  # a supervisor may be about to start what was not there at the first look
            for training in self.processes():
                with suppress(ProcessLookupError):
                    os.kill(training, signal.SIGKILL)
        self.until(lambda: not self.processes(), "every process to be gone")
