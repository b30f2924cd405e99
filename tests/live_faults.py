"""Real trainings that go wrong, each in a home of its own: is every fault called what it is, and in time?

    python tests/live_faults.py                    every fault, about 13 minutes, most of them waiting for a hang
    python tests/live_faults.py --only nan hot_lr  some of them
    python tests/live_faults.py --only healthy30   thirty sound runs with every detector armed; one stop is one too many
    python tests/live_faults.py --seed 7           the steps at which the faults come, drawn from a seed

Everything is real: `runner launch`, the controller, the trainer or a script. The faults come from outside: signals,
limits of the kernel, a data source that is put under the trainer, a learning rate, the recorded last words of a
process. Exit code 1 when one of them is called something else, or too late; its folder is kept then.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from runner.liveness import Limits  # noqa: E402
from tests.fakes.faulty_source import LAST_WORDS, LEAKS, SAYS_STUCK, limited_python, write_plan  # noqa: E402
from tests.fakes.live_scene import PATIENCE_S, PRIMARY, STEPS, TINY, Event, Scene  # noqa: E402

STDERR = ROOT / "tests" / "data" / "stderr"
LIMITS = Limits()
SETTLED_S = 60.0  # between the end of a process and the class of it


@dataclass(frozen=True, slots=True)
class Told:
    """What became of one fault, in words, and whether that was right."""

    fault: str
    injected: str
    wanted: str
    found: str
    after: str
    allowed: str
    is_right: bool


def crash_told(scene: Scene, name: str, wanted: str, injected: str, *, began: float | None = None) -> Told:
    """A process that ended: its class, and how long after its end the run was settled."""
    (run,) = scene.until_ended(name)
    settled = scene.events("failed", run=run["run"])[0]
    after_s = settled.time - scene.ended_at(run)
    more = "" if began is None else f" (it ended {scene.ended_at(run) - began:.1f} s after the fault)"
    found = settled.what
    is_right = found == f"failed({wanted})" and after_s <= SETTLED_S
    return Told(
        name.removesuffix("-s0"), injected, f"failed({wanted})", found, f"{after_s:.2f} s after its end{more}",
        f"{SETTLED_S:.0f} s", is_right,
    )  # fmt: skip


# ---- the faults ------------------------------------------------------------------------------------------------------


def nan(scene: Scene) -> list[Told]:
    """A batch with a NaN in it."""
    step = scene.drawn_step()
    scene.launch(scene.faulty(pace_s=0.02, nan_at=step))
    (run,) = scene.until_ended("T-s0")
    lines = [json.loads(line) for line in (scene.folder_of(run) / "metrics.jsonl").read_text().splitlines()]
    first = next((line["step"] for line in lines if line.get("train/loss") == "nan"), -1)
    finding = run["verdict"]["findings"][0]
    late = finding["step"] - first
    is_right = run["state"] == "aborted(non_finite)" and first == step + 1 and 0 <= late <= 1
    said = f"{late} logged samples (stopped at step {run['step']})"
    return [Told("nan", f"the batch of step {step + 1}", "aborted(non_finite)", run["state"], said, "1", is_right)]


def hot_lr(scene: Scene) -> list[Told]:
    """A hundred times the learning rate of its sibling, without clipping."""
    steps = 3 * STEPS
    base = {**TINY, "steps": steps}
    hot = {**base, "optimizer": {**TINY["optimizer"], "lr": 100 * TINY["optimizer"]["lr"], "clip": None}}
    arms = [scene.training("base", trainer=base), scene.training("T", trainer=hot)]
    scene.launch(*arms, slots=2)
    run, sibling = scene.until_ended("T-s0", "base-s0")
    step = run["verdict"]["findings"][0]["step"] if run["verdict"] and run["verdict"]["findings"] else steps
    is_right = run["state"] in ("aborted(explosion)", "aborted(non_finite)") and step <= steps // 2
    found = f"{run['state']}, its sibling {sibling['state']}"
    is_right = is_right and sibling["state"] == "finished"
    injected = f"lr {hot['optimizer']['lr']:g} from the start"
    said, allowed = f"{step} steps (stopped at step {run['step']})", f"half of {steps} steps"
    wanted = "aborted(explosion), its sibling finished"
    return [Told("hot_lr", injected, wanted, found, said, allowed, is_right)]


def frozen(scene: Scene) -> list[Told]:
    """A loader that waits for ever; the policy lets a hang stop the run."""
    step = scene.drawn_step()
    storage = scene.folder / "storage"
    os.mkfifo(storage)
    scene.launch(scene.faulty(pace_s=0.02, stuck_at=step, stuck_on=str(storage)))
    began = _when(scene, lambda: SAYS_STUCK in _stderr(scene))
    told = _hang_told(scene, "frozen", f"step {step}", began)
    deadline_s = (LIMITS.stop_factor * LIMITS.hang_s + 2 * SETTLED_S) / scene.times + PATIENCE_S
    (run,) = scene.until_ended("T-s0", deadline_s=deadline_s)
    where = "read_bytes" in _stderr(scene)
    after_s = scene.times * (scene.events("stopping")[0].time - began)
    limit_s = LIMITS.stop_factor * float(scene.events("liveness:hung")[0].data["limit_s"])
    is_right = run["state"] == "aborted(hung)" and where and limit_s <= after_s <= 2 * limit_s
    found = f"{run['state']}, {'its stacks name the read' if where else 'no stacks in its log'}"
    wanted = "aborted(hung), its stacks name the read"
    stop = Told("frozen_stop", f"step {step}", wanted, found, f"{after_s:.0f} s", f"{2 * limit_s:.0f} s", is_right)
    return [told, stop]


def sigstop(scene: Scene) -> list[Told]:
    """SIGSTOP, until it is seen; then SIGCONT."""
    step = scene.drawn_step()
    scene.launch(scene.faulty(policy={"hung": "warn"}, pace_s=0.02))
    scene.until_step(step)
    pid, began = scene.training_pid(), time.time()
    os.kill(pid, signal.SIGSTOP)
    told = _hang_told(scene, "sigstop", f"step {scene.one()['step']}", began)
    health = scene.one()["health"]
    os.kill(pid, signal.SIGCONT)
    began = time.time()
    after_s = _over(scene, "liveness:hung").time - began
    cleared = scene.one()["health"]
    (run,) = scene.until_ended("T-s0")
    found = f"{health}, {'still hung' if cleared == 'hung' else 'cleared'}, {run['state']}, {run['attempts']} attempt"
    wanted = "hung, cleared, finished, 1 attempt"
    is_right = found == wanted and after_s <= SETTLED_S
    return [told, Told("sigcont", "that", wanted, found, f"{after_s:.1f} s", "60 s", is_right)]


def _over(scene: Scene, what: str) -> Event:
    """The event that takes an accusation back."""

    def found() -> Event | None:
        return next((event for event in scene.events(what) if event.reason == "over"), None)

    return scene.until(found, f"{what} to be over", 2 * LIMITS.collapse_s / scene.times + PATIENCE_S)  # type: ignore[no-any-return]


def _hang_told(scene: Scene, name: str, injected: str, began: float) -> Told:
    """The first word of a hang; seconds are those of the controller's clock."""
    hung = scene.until_event("liveness:", 3 * LIMITS.hang_s / scene.times + PATIENCE_S)
    after_s, limit_s = scene.times * (hung.time - began), float(hung.data.get("limit_s", 0))
    is_right = hung.what == "liveness:hung" and limit_s <= after_s <= 2 * limit_s
    return Told(name, injected, "liveness:hung", hung.what, f"{after_s:.0f} s", f"{2 * limit_s:.0f} s", is_right)


def _stderr(scene: Scene) -> str:
    path = scene.folder_of(scene.one()) / "stderr.log" if "run_dir" in scene.one() else None
    return path.read_text() if path is not None and path.exists() else ""


def _when(scene: Scene, holds: Callable[[], bool]) -> float:
    """The time at which something is first seen to hold."""
    scene.until(holds, "the fault", PATIENCE_S)
    return time.time()


def slow_disk(scene: Scene) -> list[Told]:
    """A disk that answers at a fifth of its speed, long enough to be told from a pause; then it recovers."""
    pace_s = 0.2
    scene.launch(scene.faulty(pace_s=pace_s, steps=100_000))
    scene.until_step(1)
    usual_s = (LIMITS.windows_needed + 2) * LIMITS.window_s / scene.times
    began = time.time()
    scene.until(lambda: time.time() - began > usual_s, "its usual speed to be known", usual_s + PATIENCE_S)
    step, began = scene.one()["step"], time.time()
    write_plan(scene.plan, pace_s=pace_s, disk_s=4 * pace_s)
    event = scene.until_event("liveness:", 3 * LIMITS.collapse_s / scene.times + PATIENCE_S)
    after_s, allowed_s = scene.times * (event.time - began), 2 * LIMITS.collapse_s
    found, wanted = f"{event.what}, {scene.one()['health']}", "liveness:throughput_collapse, warned"
    is_right = found == wanted and after_s <= allowed_s
    told = Told("slow_disk", f"step {step}", wanted, found, f"{after_s:.0f} s", f"{allowed_s:.0f} s", is_right)
    write_plan(scene.plan, pace_s=pace_s)
    began = time.time()
    after_s = scene.times * (_over(scene, "liveness:throughput_collapse").time - began)
    scene.run("stop", "--all", "--wait")
    is_right = scene.one()["state"] == "cancelled" and after_s <= allowed_s
    found, wanted = f"cleared, {scene.one()['state']} by hand", "cleared, cancelled by hand"
    return [told, Told("fast_again", "that", wanted, found, f"{after_s:.0f} s", f"{allowed_s:.0f} s", is_right)]


def worker(scene: Scene) -> list[Told]:
    """SIGKILL for the process that loads the samples; the arm allows one more attempt."""
    step = scene.drawn_step()
    scene.launch(scene.faulty(retries=1, pace_s=0.05, has_worker=True))
    scene.until_step(step)
    workers = psutil.Process(scene.training_pid()).children()
    began = time.time()
    os.kill(workers[0].pid, signal.SIGKILL)
    (run,) = scene.until_ended("T-s0")
    failures = scene.events("failed")
    after_s = failures[0].time - began if failures else float("inf")
    found = ", ".join([*(one.what for one in failures), run["state"], f"{run['attempts']} attempts"])
    wanted = "failed(killed), finished, 2 attempts"
    is_right = found == wanted and after_s <= SETTLED_S
    said = f"{after_s:.1f} s (the first failure)"
    return [Told("worker", f"step {step}", wanted, found, said, f"{SETTLED_S:.0f} s", is_right)]


def oom_trainer(scene: Scene) -> list[Told]:
    """No more memory for the trainer from a step on, by RLIMIT_AS."""
    step = scene.drawn_step()
    scene.launch(scene.faulty(pace_s=0.05, steps=40 * STEPS))
    scene.until_step(step)
    pid = scene.training_pid()
    held = psutil.Process(pid).memory_info().vms
    resource.prlimit(pid, resource.RLIMIT_AS, (held, held))
    told = crash_told(scene, "T-s0", "host_oom", f"step {step}, {held >> 20} MiB", began=time.time())
    return [replace(told, fault="oom_trainer")]


def oom_command(scene: Scene) -> list[Told]:
    """A script that leaks under a limit of memory, and one that wants too much at once."""
    python = {"environment": {"python": str(limited_python(scene.folder, 600))}, "retries": 0}
    leaks = scene.arm("oom_command", LEAKS, "1", "20", "200", steps=200, **python)
    first = scene.arm("oom_first", LEAKS, "2000", "1", "200", steps=200, **python)
    scene.launch(leaks, first, slots=2)
    return [
        crash_told(scene, "oom_command-s0", "host_oom", "600 MiB in all"),
        crash_told(scene, "oom_first-s0", "does_not_fit", "2000 MiB before step 1"),
    ]


RECORDED = {
    "cuda_oom": ("cuda_oom__torch_2_5", 0),
    "cublas_oom": ("cuda_oom__cublas", 0),
    "cublas": ("cuda__cublas_execution", 0),
    "nccl_peer": ("nccl__remote_error", 0),
    "nccl_watchdog": ("nccl__watchdog", int(signal.SIGABRT)),
}
"""What a GPU would say, and the signal that the process then ends with."""


def recorded(scene: Scene) -> list[Told]:
    """The last words of processes on a GPU, said by scripts after twenty steps."""
    arms = [
        scene.arm(name, LAST_WORDS, str(STDERR / f"{text}.txt"), str(number), steps=400, retries=0)
        for name, (text, number) in RECORDED.items()
    ]
    scene.launch(*arms, slots=2)
    return [
        crash_told(scene, f"{name}-s0", text.split("__")[0], f"{text} after step 20")
        for name, (text, _) in RECORDED.items()
    ]


Fault = Callable[[Scene], list[Told]]
WAITING: dict[str, Fault] = {"frozen": frozen, "sigstop": sigstop, "slow_disk": slow_disk}
"""Faults that take minutes and no computing; they share the time of the others."""

FAULTS: dict[str, Fault] = {
    "recorded": recorded,
    "oom_command": oom_command,
    "nan": nan,
    "worker": worker,
    "oom_trainer": oom_trainer,
    "hot_lr": hot_lr,
    **WAITING,
}

# ---- thirty healthy runs ---------------------------------------------------------------------------------------------

HEALTHY: dict[str, dict[str, Any]] = {
    "adamw": {},
    "half_lr": {"optimizer": {"lr": 0.0015}},
    "double_lr": {"optimizer": {"lr": 0.006}},
    "no_clip": {"optimizer": {"clip": None}},
    "decay": {"optimizer": {"weight_decay": 0.05}},
    "muon": {"optimizer": {"name": "muon"}},
    "tread": {"tread": {"enabled": True}},
    "tread_muon": {"tread": {"enabled": True}, "optimizer": {"name": "muon"}},
    "repa": {"repa": {"enabled": True}},
    "large_batch": {"batch": 32},
}
SEEDS = 3


def healthy30(scene: Scene) -> list[Told]:
    """Ten sound arms with three seeds each and every detector allowed to stop them, two at a time."""
    arms = []
    for name, changes in HEALTHY.items():
        blocks = {key: {**TINY.get(key, {}), **new} if isinstance(new, dict) else new for key, new in changes.items()}
        seeds = [SEEDS * scene.seed + at for at in range(SEEDS)]
        arms.append(scene.training(name, trainer={**TINY, **blocks}, seeds=seeds, baseline="adamw", retries=2))
    began = time.monotonic()
    scene.launch(*arms, slots=2)
    names = [f"{name}-s{SEEDS * scene.seed + at}" for name in HEALTHY for at in range(SEEDS)]
    runs = scene.until_ended(*names, deadline_s=3600)
    for run in runs:
        if run["state"] != "finished":
            print(f"    {run['arm']}-s{run['seed']}: {run['state']}, {run['health']}, {run['rule']}: {run['reason']}")
    stops = sum(run["state"].startswith("aborted") for run in runs)
    warned = Counter(
        one["evidence"].get("metric", one["detector"]) for run in runs for one in run["verdict"]["findings"]
    )
    finished = sum(run["state"] == "finished" for run in runs)
    ends = [run["primary"]["value"] / run["primary"]["best"] - 1 for run in runs if run["state"] == "finished"]
    found = (
        f"{stops} aborts of {len(runs)} runs; {bound(stops, len(runs))}; {finished} finished, warned of "
        f"for {', '.join(f'{name} {count}' for name, count in warned.most_common()) or 'nothing'}; "
        f"the worst ended {100 * max(ends, default=0):.1f} % above its best {PRIMARY['metric']}"
    )
    took = f"{time.monotonic() - began:.0f} s"
    return [Told("healthy30", "nothing", "0 aborts", found, took, "-", stops == 0 and finished == len(runs) == 30)]


def bound(stops: int, runs: int) -> str:
    """What so few runs can say of the true rate of false stops: Clopper and Pearson's upper limit (1934) at 95 %.

    With no stop it is the rate at which `runs` in a row go well once in twenty times: 1 - 0.05 ** (1 / runs).
    """
    if stops:
        return f"a rate of {100 * stops / runs:.1f} % was seen"
    return f"the true rate is below {100 * (1 - 0.05 ** (1 / runs)):.1f} % (95 %), and no more is shown by so few"


# ---- the command line ------------------------------------------------------------------------------------------------


def play(name: str, folder: Path, seed: int, times: int = 1) -> list[Told]:
    """One fault in a home below `folder`; whoever does not answer in time is wrong."""
    place = folder / name
    place.mkdir()
    scene = Scene(place, times=times, seed=seed)
    try:
        told = (FAULTS | {"healthy30": healthy30})[name](scene)
    except (AssertionError, OSError, LookupError, psutil.Error) as error:
        told = [Told(name, "?", "?", f"{type(error).__name__}: {error}"[:2000], "?", "?", False)]
    scene.clean_up()
    return told


def say(told: Told) -> None:
    """One line."""
    word = "ok  " if told.is_right else "FAIL"
    wanted = "" if told.is_right else f", wanted {told.wanted}"
    what = f"{told.fault}: injected at {told.injected}: {told.found}{wanted}"
    print(f"{word} {what}; after {told.after}, allowed {told.allowed}", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; exit code 1 when a fault was called something else, or too late."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=[*FAULTS, "healthy30"], default=list(FAULTS), metavar="NAME")
    parser.add_argument("--seed", type=int, default=0, help="draws the steps at which the faults come, and the runs")
    parser.add_argument("--times", type=int, default=1, help="let a controller's seconds pass so many times faster")
    asked = parser.parse_args(argv)
    folder = Path(tempfile.mkdtemp(prefix="armature-faults-"))
    print(f"seed {asked.seed}, in {folder}", flush=True)
    waiting = [name for name in asked.only if name in WAITING]
    others = [name for name in asked.only if name not in WAITING]
    wrong = []
    with ThreadPoolExecutor(len(waiting) + 1) as pool:
        begun = [pool.submit(play, name, folder, asked.seed, asked.times) for name in waiting]
        soon = (play(name, folder, asked.seed, asked.times) for name in others)
        for one in chain(chain.from_iterable(soon), chain.from_iterable(later.result() for later in begun)):
            say(one)
            wrong += [] if one.is_right else [one.fault]
    print(f"FAILED: {', '.join(wrong)}; kept in {folder}" if wrong else "every fault was called what it is, in time")
    if not wrong:
        shutil.rmtree(folder, ignore_errors=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
