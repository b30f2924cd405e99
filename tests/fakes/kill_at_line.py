"""A kill -9 at a chosen line of our own code, from outside the product: through the interpreter's trace hook.

A *site* is one line of a function in runner/ or provisioning/. The process that arms a kill runs on as ever until it is
about to execute one of the chosen sites (or has executed so many lines), and then it is gone, or its spawner is.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("runner", "provisioning")
EFFECTS = (
    "runner/accept.py",
    "runner/control_file.py",
    "runner/controller.py",
    "runner/detach.py",
    "runner/follow.py",
    "runner/lock.py",
    "runner/perform.py",
    "runner/places.py",
    "runner/store/changes.py",
    "runner/store/points.py",
    "runner/store/session.py",
    "provisioning/local_shell.py",
    "provisioning/spawner.py",
)
"""Where the controller touches the world: a kill between two of these lines can leave something half done."""

LAUNCH = (
    "runner/home.py",
    "runner/launching.py",
    "runner/lock.py",
    "runner/snapshot.py",
    "runner/store/database.py",
    "runner/store/opening.py",
    "runner/store/requests.py",
    "runner/store/schema.py",
    "runner/store/upgrade.py",
    "runner/store/migrations/versions/r0001_first.py",
    "runner/store/migrations/versions/r0002_autonomy.py",
    "runner/store/migrations/versions/r0003_acting.py",
)
"""Where the launch command touches the world."""

SPAWNING = ("provisioning/spawner.py",)
"""Between the controller and what starts its processes."""

NOT_OURS = ("runner/supervisor.py", "provisioning/__init__.py")  # another process; module level only


@dataclass(frozen=True, slots=True)
class Site:
    """A line of a file (relative to the repository), when it is about to run for the `times`-th time."""

    file: str
    line: int
    times: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line} (time {self.times})"


@dataclass(frozen=True, slots=True)
class Kill:
    """Where it happens: at the first of the sites that is reached, after so many lines, or after so many seconds.

    `victim` is `self`, `spawner` or `frozen`. A spawner is killed once, and its controller goes on until `after_s`. A
    frozen spawner stands still with what it was told and goes on after `frozen_s`, when others may have done its work.
    """

    sites: tuple[Site, ...] = ()
    lines: int | None = None
    after_s: float = 10.0
    victim: str = "self"
    frozen_s: float = 0.0

    def __str__(self) -> str:
        where = " or ".join(map(str, self.sites)) if self.sites else f"line event {self.lines}" if self.lines else ""
        return f"{self.victim} at {where or '-'}, else after {self.after_s:.2f} s"


@cache
def lines_of(file: str) -> tuple[int, ...]:
    """The lines inside functions of a file, from its compiled code; none for a file that is not there."""
    path = ROOT / file
    if not path.exists():
        return ()
    module = compile(path.read_text(), str(path), "exec")
    return tuple(sorted({line for code in _functions(module) for line in _lines(code)}))


@cache
def controller_files() -> tuple[str, ...]:
    """Every file of ours that a controller may run."""
    found = (path.relative_to(ROOT).as_posix() for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
    return tuple(sorted(name for name in found if name not in NOT_OURS and "migrations" not in name))


def draw_site(chance: random.Random, files: Iterable[str], most: int = 12) -> Site:
    """A line of one of the files, drawn evenly over all their lines, and how many times it must be reached."""
    lines = [(file, line) for file in files for line in lines_of(file)]
    file, line = chance.choice(lines)
    return Site(file, line, min(most, 1 + int(chance.expovariate(0.5))))


def arm(kill: Kill, note: Path) -> None:
    """Kill at the first site that is reached from now on; where it happened is written to `note` before."""
    wanted = {str(ROOT / site.file): {} for site in kill.sites}
    for site in kill.sites:
        wanted[str(ROOT / site.file)][site.line] = site.times
    prefixes = tuple(str(ROOT / folder) + os.sep for folder in FOLDERS)
    seen = 0

    def strike(frame: FrameType) -> None:
        spawners = [] if kill.victim == "self" else _spawners()
        if kill.victim != "self" and not spawners:
            return  # later then, when there is one
        sys.settrace(None)
        where = Path(frame.f_code.co_filename).relative_to(ROOT)
        what = {"self": "killed", "spawner": "its spawner killed", "frozen": "its spawner frozen"}[kill.victim]
        note.write_text(f"{what} at {where}:{frame.f_lineno}")
        if kill.victim == "self":
            os.kill(os.getpid(), signal.SIGKILL)
        for process in spawners:
            process.send_signal(signal.SIGSTOP if kill.victim == "frozen" else signal.SIGKILL)
            if kill.victim == "frozen":
                _thaw_later(process.pid, kill.frozen_s)

    def at_line(frame: FrameType, event: str, _argument: Any) -> Any:
        nonlocal seen
        if event != "line":
            return at_line
        seen += 1
        if kill.lines is not None and seen >= kill.lines:
            strike(frame)
        left = wanted.get(frame.f_code.co_filename)
        if left is not None and frame.f_lineno in left:
            left[frame.f_lineno] -= 1
            if left[frame.f_lineno] <= 0:
                strike(frame)
        return at_line

    def at_call(frame: FrameType, _event: str, _argument: Any) -> Any:
        file = frame.f_code.co_filename
        watched = file in wanted if kill.lines is None else file.startswith(prefixes)
        return at_line if watched else None

    sys.settrace(at_call)


def _spawners() -> list[psutil.Process]:
    return [process for process in psutil.Process().children() if "supervisor.py" in _command(process)]


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it has ended
        return ""


def _thaw_later(pid: int, after_s: float) -> None:
    """From a process of its own, because ours may be gone by then."""
    subprocess.Popen(["sh", "-c", f"sleep {after_s:.2f}; kill -CONT {pid}"], start_new_session=True)


def _functions(code: CodeType) -> Iterator[CodeType]:
    """The code of every function in a module or class, at any depth, without that of the module itself."""
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            if constant.co_flags & 0x01:  # CO_OPTIMIZED: a function, no class body
                yield constant
            yield from _functions(constant)


def _lines(code: CodeType) -> Iterator[int]:
    # The line of the `def` itself makes a call event, no line event.
    yield from (line for _, _, line in code.co_lines() if line is not None and line != code.co_firstlineno)
