"""One case of the crash soak: a small study, a controller that is killed again and again, and then left alone.

Everything that a case does follows from its number. It runs as a process of its own that becomes the parent of whatever
its controllers leave behind, so that nothing can hide.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from runner import controller, launching
from runner.home import Home
from runner.launching import Options
from runner.store import requests
from runner.store.database import reading
from runner.store.facts import open_runs
from tests.fakes.kill_at_line import EFFECTS, LAUNCH, SPAWNING, Kill, arm, controller_files, draw_site

PR_SET_CHILD_SUBREAPER = 36
SLOTS = 2
LAST_LIFE_S = 60.0
LIVES = 5  # a last controller may find the lock held for a moment by what its killed predecessor was starting

SCRIPT = '''\
"""A training of about a second: one point for each step, and a line in a log for each start."""
import os, signal, subprocess, sys, time
kind, form, steps, pause_s, starts = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), sys.argv[5]
run_dir, attempt_dir = os.environ["RUNNER_RUN_DIR"], os.environ["RUNNER_ATTEMPT_DIR"]

def append(path, text):
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(file, text.encode())
    os.close(file)

append(starts, "%s %d\\n" % (attempt_dir, os.getpid()))
again = attempt_dir.endswith("-2")
if kind == "leaves_child":
    subprocess.Popen(["sleep", "600"], start_new_session=True)
for step in range(1, 10**6 if kind in ("endless", "diverges") else steps + 1):
    value = "nan" if kind == "diverges" and step >= steps // 2 else repr(2 - step / 1e6)
    if form == "jsonl":
        shown = '"nan"' if value == "nan" else value
        append(run_dir + "/metrics.jsonl", '{"step": %d, "loss": %s, "half": %r}\\n' % (step, shown, step / 2))
    elif form == "csv":
        path = run_dir + "/metrics.csv"
        if not os.path.exists(path):
            append(path, "step,loss,half\\n")
        append(path, "%d,%s,%r\\n" % (step, value, step / 2))
    else:
        os.write(1, ("step %d loss=%s half=%r\\n" % (step, value, step / 2)).encode())
    if kind == "dies_once" and not again and step > steps // 2:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(pause_s)
sys.exit(3 if kind == "fails" else 0)
'''

METRICS = {
    "jsonl": {"source": "jsonl", "path": "metrics.jsonl"},
    "csv": {"source": "csv", "path": "metrics.csv"},
    "regex": {"source": "regex", "pattern": r"step (?P<step>\d+) loss=(?P<loss>\S+) half=(?P<half>\S+)"},
}
KINDS = ("works", "fails", "diverges", "endless", "dies_once", "leaves_child")


@dataclass(frozen=True, slots=True)
class Arm:
    """One arm of the study: what its script does, how it writes its metrics, and how long it takes."""

    name: str
    kind: str
    form: str
    steps: int
    pause_s: float


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that is decided before a case begins."""

    number: int
    arms: tuple[Arm, ...]
    launch_kill: Kill | None
    kills: tuple[Kill, ...]
    rests_s: tuple[float, ...]
    stop_after_life: int
    real_report: bool


@dataclass
class Told:
    """What happened: where each controller died, and what was found wrong."""

    number: int
    deaths: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    seconds: float = 0.0
    points: int = 0
    attempts: int = 0
    litter: int = 0


Check = Callable[[Plan, Home, Path], tuple[list[str], dict[str, int]]]
"""Looks at a home at rest and at the log of starts: what is wrong, and some counts."""


def make_plan(number: int) -> Plan:
    """The case of this number: the same for ever, as long as the product's own lines are the same."""
    chance = random.Random(number)
    forms = chance.sample(list(METRICS), 3)
    kinds = ["works", chance.choice(KINDS), chance.choice(KINDS), *([chance.choice(KINDS)] * chance.randint(0, 1))]
    arms = tuple(
        Arm(f"{'abcd'[at]}-{kind}", kind, forms[at % 3], chance.randint(5, 50), chance.uniform(0.005, 0.04))
        for at, kind in enumerate(kinds)
    )
    kills = tuple(draw_kill(chance) for _ in range(chance.randint(3, 6)))
    launch_kill = None
    if chance.random() < 0.25:
        launch_kill = Kill(tuple(draw_site(chance, LAUNCH, 3) for _ in range(2)))
    return Plan(
        number,
        arms,
        launch_kill,
        kills,
        tuple(chance.choice((0.0, chance.uniform(0.0, 0.4))) for _ in kills),
        chance.randrange(len(kills)),
        real_report=chance.random() < 0.25,
    )


def draw_kill(chance: random.Random) -> Kill:
    """Mostly a line where something is done to the world; sometimes any line, a number of lines, or just a time."""
    way = chance.random()
    after_s = chance.uniform(0.4, 2.0)
    if way > 0.92:
        sites = tuple(draw_site(chance, SPAWNING, 4) for _ in range(4))
        return Kill(sites, after_s=after_s, victim="frozen", frozen_s=chance.uniform(0.3, 3.0))
    victim = "spawner" if chance.random() < 0.12 else "self"
    if way < 0.6:
        sites = tuple(draw_site(chance, EFFECTS) for _ in range(chance.choice((3, 5, 8))))
        return Kill(sites, after_s=after_s, victim=victim)
    if way < 0.75:
        return Kill(tuple(draw_site(chance, controller_files()) for _ in range(6)), after_s=after_s, victim=victim)
    if way < 0.87:
        return Kill(lines=int(10 ** chance.uniform(2, 4.7)), after_s=after_s, victim=victim)
    return Kill(after_s=chance.uniform(0.02, 1.5))


def start_case(plan: Plan, folder: Path, check: Check) -> int:
    """Play a case in a process of its own and return its pid; what it tells lies in told.json when it has ended."""
    folder.mkdir()
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    try:
        (folder / "told.json").write_text(json.dumps(asdict(_told(plan, folder, check)), indent=1))
    finally:
        os._exit(0)


def read_told(plan: Plan, folder: Path) -> Told:
    """What an ended case told."""
    path = folder / "told.json"
    return Told(**json.loads(path.read_text())) if path.exists() else Told(plan.number, wrong=["the case itself died"])


def _told(plan: Plan, folder: Path, check: Check) -> Told:
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    begun = time.monotonic()
    home, told = Home(folder / "runs"), Told(plan.number)
    try:
        _play(plan, home, folder, told)
        told.wrong += left_alive()
        wrong, counts = check(plan, home, folder / "starts.log")
        told.wrong += wrong
        told.points, told.attempts, told.litter = counts["points"], counts["attempts"], counts["litter"]
    except Exception:
        told.wrong.append("".join(traceback.format_exc(limit=-6)))
    told.seconds = time.monotonic() - begun
    return told


def write_arms(plan: Plan, folder: Path) -> list[Path]:
    """The arm files of a case and their one script."""
    arms = folder / "arms"
    arms.mkdir()
    (arms / "work.py").write_text(SCRIPT)
    for one in plan.arms:
        document = {
            "study": "soak",
            "arm": one.name,
            "seeds": [0],
            "command": [
                "python3", "-I", "-S", "{arm_dir}/work.py", one.kind, one.form, str(one.steps), repr(one.pause_s),
                str(folder / "starts.log"),
            ],
            "metrics": METRICS[one.form],
            "steps": one.steps,
            "resources": {"gpus": 0},
        }  # fmt: skip
        (arms / f"{one.name}.yaml").write_text(json.dumps(document))
    return sorted(arms.glob("*.yaml"))


def _play(plan: Plan, home: Home, folder: Path, told: Told) -> None:
    paths = write_arms(plan, folder)
    if plan.launch_kill is not None:
        killed = plan.launch_kill
        with _process(lambda: _launch(home, paths), killed, folder / "launch.log", folder / "note") as wait:
            told.deaths.append(f"launch: {_fate(wait(killed.after_s), folder / 'note')}")
    _launch(home, paths)
    for life, (kill, rest_s) in enumerate(zip(plan.kills, plan.rests_s, strict=True)):
        if life == plan.stop_after_life:
            _stop_endless(plan, home)
        with _controller(plan, home, kill, folder) as wait:
            status = wait(kill.after_s)
        told.deaths.append(_fate(status, folder / "note"))
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) != 0:
            told.wrong.append(f"controller {life + 1} ended with exit code {os.WEXITSTATUS(status)}; {kill}")
        if status == 0 and not _has_work(home):
            break
        time.sleep(rest_s)
    _finish(plan, home, folder, told)


def _has_work(home: Home) -> bool:
    """Whether a controller has anything left to do."""
    with reading(home) as connection:
        return bool(requests.pending(connection) or open_runs(connection))


def _finish(plan: Plan, home: Home, folder: Path, told: Told) -> None:
    """Leave a controller alone until it has done everything."""
    for _ in range(LIVES):
        with _controller(plan, home, None, folder) as wait:
            status = wait(LAST_LIFE_S)
        if status != 0:
            told.wrong.append(f"the last controller: {_fate(status, folder / 'nothing')} instead of exit code 0")
            return
        if not _has_work(home):
            return
        time.sleep(0.2)
    told.wrong.append(f"there is work left after {LIVES} controllers in a row")


def _launch(home: Home, paths: list[Path]) -> None:
    launching.commit(launching.prepare(home, paths, Options(slots=SLOTS)))


def _stop_endless(plan: Plan, home: Home) -> None:
    """Ask to stop what would never end by itself."""
    endless = {one.name for one in plan.arms if one.kind == "endless"}
    if not endless:
        return
    names = [run.folder for run in _planned(plan, home) if run.arm in endless]
    requests.ask(home, "stop", {"runs": names, "reason": "stopped by a person"})


def _planned(plan: Plan, home: Home) -> tuple[Any, ...]:
    paths = sorted((home.root.parent / "arms").glob("*.yaml"))
    return launching.prepare(home, paths, Options(slots=SLOTS)).plan.runs


@contextmanager
def _controller(plan: Plan, home: Home, kill: Kill | None, folder: Path) -> Iterator[Callable[[float], int]]:
    def be_controller() -> int:
        if not plan.real_report:
            controller.Controller = partial(controller.Controller, report=_quick_report)  # type: ignore[misc,assignment]
        return controller.main(["--home", str(home.root)])

    with _process(be_controller, kill, home.log, folder / "note") as wait:
        yield wait


def _quick_report(home: Home, study: str) -> subprocess.Popen[bytes]:
    """Stands in for the child that draws figures for two seconds: a process that ends soon, nothing else."""
    return subprocess.Popen(["/bin/true", str(home.root), study])


@contextmanager
def _process(act: Callable[[], Any], kill: Kill | None, log: Path, note: Path) -> Iterator[Callable[[float], int]]:
    """Run `act` in a forked session of its own; yields `wait(limit_s)`, which kills it then and returns its status."""
    note.unlink(missing_ok=True)
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        try:
            _become_alone(log)
            if kill is not None and (kill.sites or kill.lines):
                arm(kill, note)
            os._exit(int(act() or 0))
        except BaseException:
            sys.settrace(None)
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(70)

    def wait(limit_s: float) -> int:
        until = time.monotonic() + limit_s
        while time.monotonic() < until:
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                return status
            time.sleep(0.01)
        os.kill(pid, signal.SIGKILL)
        return os.waitpid(pid, 0)[1]

    yield wait


def _become_alone(log: Path) -> None:
    os.setsid()
    log.parent.mkdir(mode=0o700, exist_ok=True)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (out, 1), (out, 2)):
        os.dup2(source, target)
    os.closerange(3, 256)


def _fate(status: int, note: Path) -> str:
    said = note.read_text() if note.exists() else ""
    if said.startswith("killed"):
        return said
    end = f"exit code {os.WEXITSTATUS(status)}" if os.WIFEXITED(status) else "killed by time"
    return f"{end}, {said}" if said else end


def left_alive(patience_s: float = 20.0) -> list[str]:
    """What still runs below this process after a while; it is killed then. Children of the dead come to us."""
    until = time.monotonic() + patience_s
    while not _reap() and time.monotonic() < until:
        time.sleep(0.05)
    said = []
    for process in psutil.Process().children(recursive=True):
        try:
            said.append(f"still alive: pid {process.pid} {' '.join(process.cmdline())[:200]}")
            process.kill()
        except psutil.Error:
            continue
    return said


def _reap() -> bool:
    """Take in the ended; says whether there is no child at all."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return True
    return False
