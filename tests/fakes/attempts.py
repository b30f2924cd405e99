"""Real attempts for tests: a spawner, launch specs of small Python programs, and a clean-up that leaves nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

SUPERVISOR = Path(__file__).resolve().parents[2] / "runner" / "supervisor.py"
PYTHON = [sys.executable, "-I", "-S"]
WITHIN_S = 60.0  # every wait ends as soon as its condition holds; this only bounds a test that fails
T = TypeVar("T")

# Programs of leaders. Each says `ready` on stdout once its signal handlers stand.
WAITS = "import signal; print('ready', flush=True); signal.pause()"
# A handler in Python runs between two instructions: a signal just before a pause would not be heard until the next one.
SAVES_ON_SIGTERM = """
import signal, sys, time
def save(number, frame):
    print("saved", flush=True)
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
print("ready", flush=True)
while True:
    time.sleep(0.02)
"""
IGNORES_SIGTERM = """
import signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
while True:
    signal.pause()
"""
# Leaves its session, its parent and its group, as a daemon does.
STRAY = """
import os, signal
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print("stray", os.getpid(), flush=True)
        while True:
            signal.pause()
    os._exit(0)
os.wait()
"""


def until(condition: Callable[[], T], within_s: float = WITHIN_S) -> T:
    """The first true value of a condition; fails the test when none comes in time."""
    end = time.monotonic() + within_s
    while not (found := condition()):
        assert time.monotonic() < end, f"nothing within {within_s:g} s: {condition}"
        time.sleep(0.005)
    return found


def exists(pid: int) -> bool:
    """Whether a process of this number runs; a zombie does not."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status[status.rindex(")") + 2] not in "ZX"


def document(path: Path) -> dict[str, Any]:
    """A JSON object that is written atomically, once it is there."""
    found: dict[str, Any] = json.loads(until(lambda: path.exists() and path.read_text()))
    return found


def completed_claim(folder: Path) -> dict[str, Any]:
    """The supervisor.json of an attempt, once it names the process that was started."""

    def found() -> dict[str, Any] | None:
        claim = document(folder / "supervisor.json")
        return claim if claim["child"] else None

    claim = until(found)
    assert claim is not None
    return claim


def text(path: Path) -> str:
    """What a file holds; '' while it is not there."""
    return path.read_text() if path.exists() else ""


def stray_pid(folder: Path) -> int:
    """The pid that a STRAY of an attempt said."""
    lines = until(lambda: [line for line in text(folder / "stdout.log").splitlines() if line.startswith("stray ")])
    return int(lines[0].split()[1])


class Attempts:
    """Starts attempts under one folder, and ends everything it started."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._spawners: list[subprocess.Popen[bytes]] = []
        self._pids: list[int] = []

    def spec(self, program: str | list[str], number: int = 1, **other: Any) -> dict[str, Any]:
        """A launch spec; `program` is Python source or an argv list."""
        run_dir = self.folder / "run"
        run_dir.mkdir(exist_ok=True)
        return {
            "attempt": f"{self.folder.name}/run/attempt-{number}",
            "argv": [*PYTHON, "-c", program] if isinstance(program, str) else program,
            "cwd": str(run_dir),
            "env": {},
            "run_dir": str(run_dir),
            "attempt_dir": str(run_dir / f"attempt-{number}"),
            "cores": [],
            "deadline_s": None,
            "grace_s": 10.0,
            "term_s": 5.0,
            "heartbeat_s": 0.05,
            **other,
        }

    def spawner(self, **options: Any) -> subprocess.Popen[bytes]:
        """A spawner of its own."""
        argv = [*PYTHON, str(SUPERVISOR), "spawn"]
        spawner = subprocess.Popen(argv, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE, **options)
        self._spawners.append(spawner)
        return spawner

    def ask(self, spawner: subprocess.Popen[bytes], spec: Mapping[str, Any] | bytes) -> dict[str, Any]:
        """The spawner's answer to a launch spec, or to any line."""
        assert spawner.stdin is not None
        assert spawner.stdout is not None
        spawner.stdin.write(spec if isinstance(spec, bytes) else json.dumps(spec).encode() + b"\n")
        answer: dict[str, Any] = json.loads(spawner.stdout.readline())
        if "pid" in answer:
            self._pids.append(answer["pid"])
        return answer

    def start(self, program: str | list[str], **other: Any) -> tuple[Path, dict[str, Any]]:
        """Spawn an attempt; returns its folder and the answer."""
        spec = self.spec(program, **other)
        answer = self.ask(self._spawners[0] if self._spawners else self.spawner(), spec)
        assert "error" not in answer
        return Path(spec["attempt_dir"]), answer

    def run(self, program: str | list[str], **other: Any) -> dict[str, Any]:
        """Spawn an attempt and wait until it is over; returns its exit.json."""
        folder, _ = self.start(program, **other)
        return document(folder / "exit.json")

    def close(self) -> None:
        """End supervisors the hard way, and whatever still carries a mark of this folder."""
        for spawner in self._spawners:
            spawner.kill()
            spawner.communicate()
        for pid in [*self._pids, *self.marked()]:
            if exists(pid):
                os.kill(pid, signal.SIGKILL)
        for pid in self.marked():
            os.kill(pid, signal.SIGKILL)

    def marked(self) -> list[int]:
        """Living processes whose environment names an attempt of this folder."""
        mark = f"RUNNER_ATTEMPT={self.folder.name}/".encode()
        folder = f"RUNNER_ATTEMPT_DIR={self.folder}/".encode()
        found = []
        for name in filter(str.isdigit, os.listdir("/proc")):
            try:
                environment = Path(f"/proc/{name}/environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if any(v.startswith(mark) for v in environment) and any(v.startswith(folder) for v in environment):
                found.append(int(name))
        return [pid for pid in found if exists(pid)]


def is_ready(folder: Path, count: int = 1) -> bool:
    """Whether `count` processes of an attempt said `ready`."""
    log = folder / "stdout.log"
    return log.exists() and log.read_text().count("ready") >= count


def ask_stop(folder: Path, **request: Any) -> None:
    """Write stop.json as the controller does."""
    part = folder / "stop.json.new"
    part.write_text(json.dumps(request))
    part.rename(folder / "stop.json")
