"""The long end-to-end checks, from a fresh clone, unattended, resumable: `make accept`, or with LINES="demo kill".

Each line writes one result file to .accept/: what was run, what it printed, what was measured, and the commit. A result
counts for as long as the files that it covers are unchanged; such a line is not run again. Runs on 2 cores without GPU.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests import accept_elsewhere as elsewhere  # noqa: E402
from tests import accept_prepare as preparing  # noqa: E402
from tests import accept_trainer as trainer  # noqa: E402
from tests.accept_bench import (  # noqa: E402
    FIGURES,
    HOT,
    QUICKSTART,
    SCRIPT,
    SHORT,
    Bench,
    NotMet,
    require,
)

RESULTS = ROOT / ".accept"
PRODUCT = ("runner", "trainer", "provisioning", "reports", "arms", "pyproject.toml", "Makefile")


@contextmanager
def peak_memory(clone: Path) -> Iterator[dict[str, float]]:
    """Highest proportional memory of all processes that run the clone's interpreter, sampled twice a second (MiB)."""
    measured = {"peak_mib": 0.0}
    ended = threading.Event()

    def sample() -> None:
        while not ended.wait(0.5):
            measured["peak_mib"] = max(measured["peak_mib"], _tree_mib(clone))

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield measured
    finally:
        ended.set()
        thread.join()


def _tree_mib(clone: Path) -> float:
    total = 0
    for process in psutil.process_iter():
        try:
            if any(str(clone) in part for part in process.cmdline()[:3]) or str(clone) == process.cwd():
                total += process.memory_full_info().pss
        except psutil.Error:
            continue
    return total / 2**20


def demo(bench: Bench) -> None:
    """`make demo` on a machine with no .venv."""
    shutil.rmtree(bench.clone / ".venv", ignore_errors=True)
    started = time.monotonic()
    bench.run("make", "setup")
    bench.notes["install_s"] = round(time.monotonic() - started)
    with peak_memory(bench.clone) as measured:
        started = time.monotonic()
        out = bench.run("make", "demo", limit_s=1800)
        bench.notes["demo_s"] = round(time.monotonic() - started)
    bench.notes["peak_mib"] = round(measured["peak_mib"])
    runs = bench.status("armature/runs")
    bench.notes["runs"] = {
        name: [run["state"], run["health"], run["reason"], run["primary"]] for name, run in runs.items()
    }
    require(len(runs) == 5, "five runs")
    require(all(_ended_well(run) for run in runs.values()), "runs finished or were ended by policy with evidence")
    figures = bench.clone / "runs/portrait-quickstart/report/figures"
    shutil.copytree(figures.parent, RESULTS / "demo_report", dirs_exist_ok=True)
    for name in FIGURES:
        require((figures / name).is_file(), f"figure {name}")
    require(
        "portrait-quickstart/report/report.md" in out and out.count(".venv/bin/runner") >= 3, "path and next commands"
    )
    require(bench.notes["demo_s"] <= 480, f"within 8 minutes (took {bench.notes['demo_s']} s)")
    require(bench.notes["peak_mib"] < 3072, f"under 3 GB (took {bench.notes['peak_mib']} MiB)")


def _ended_well(run: dict[str, Any]) -> bool:
    if run["state"] == "finished":
        return True
    return run["state"].startswith("aborted") and bool(run["verdict"]["findings"][0]["evidence"])


def check(bench: Bench) -> None:
    """`make check` on another fresh clone."""
    shutil.rmtree(bench.clone / ".venv", ignore_errors=True)
    bench.run("make", "setup")
    started = time.monotonic()
    bench.run("make", "check", limit_s=1800)
    bench.notes["check_s"] = round(time.monotonic() - started)
    require(bench.notes["check_s"] <= 600, f"within 10 minutes (took {bench.notes['check_s']} s)")


def hot_lr(bench: Bench) -> None:
    """A run that goes wrong is stopped early, harms nobody and gives its slot back."""
    bench.runner("launch", *QUICKSTART, HOT, *SHORT, home="with")
    bench.runner("launch", *QUICKSTART, *SHORT, home="without")
    runs, others = bench.status("with"), bench.status("without")
    hot = runs.pop("hot_lr-s0")
    bench.notes["hot_lr"] = {key: hot[key] for key in ("state", "step", "steps_total", "rule", "reason", "slot")}
    require(hot["state"] == "aborted(explosion)" or hot["state"] == "aborted(non_finite)", "hot_lr is aborted")
    require(hot["step"] < hot["steps_total"] / 2, f"before half its budget (step {hot['step']})")
    require(hot["rule"] and hot["verdict"]["findings"][0]["evidence"], "rule and evidence in status --json")
    report = (bench.home("with") / "portrait-quickstart/report/report.md").read_text().replace("\\", "")
    require(
        hot["rule"] in report and hot["rule"] in bench.runner("status", home="with"), "rule in the report and the table"
    )
    outcome = {name: (run["run"], run["state"], run["step"]) for name, run in runs.items()}
    require(
        outcome == {name: (run["run"], run["state"], run["step"]) for name, run in others.items()}, "other outcomes"
    )
    with_hot, without = bench.points("with", "portrait-quickstart"), bench.points("without", "portrait-quickstart")
    with_hot.pop(hot["run"])
    require(with_hot == without, "no other arm's points differ")
    bench.notes["points_compared"] = sum(len(points) for points in without.values())
    bench.notes["reused"] = _reuses_slot(bench)


def _reuses_slot(bench: Bench) -> str:
    """In a launch of its own, so that a run is sure to wait: one slot, the hot arm first, another behind it."""
    bench.runner("launch", HOT, QUICKSTART[1], *SHORT, "--slots", "1", "--detach", home="slot")
    bench.until(lambda: bench.status("slot")["B-s0"]["state"] == "running", "the next run to start", 300)
    hot, following = (bench.status("slot")[name] for name in ("hot_lr-s0", "B-s0"))
    bench.runner("stop", "--all", "--wait", home="slot")
    require(hot["state"].startswith("aborted") and hot["slot"] == following["slot"], "its slot was reused")
    return f"{following['slot']}, {following['started'] - hot['changed']:.1f} s after the abort was settled"


def any_script(bench: Bench) -> None:
    """A script that knows nothing of us is an arm; an exploding variant is aborted."""
    bench.runner("launch", SCRIPT, home="script")
    (run,) = bench.status("script").values()
    require(run["state"] == "finished" and run["points"] == run["steps_total"], "its metrics are reported")
    variant = '["python3","{arm_dir}/any_script.py","--lr","2.5","--seed","{seed}"]'
    bench.runner("launch", SCRIPT, "--set", "arm=too-fast", "--set", f"command={variant}", home="script")
    exploded = bench.status("script")["too-fast-s0"]
    bench.notes["exploded"] = {key: exploded[key] for key in ("state", "step", "steps_total", "reason")}
    require(exploded["state"] in ("aborted(explosion)", "aborted(non_finite)"), "the exploding variant is aborted")


def published(bench: Bench) -> None:
    """The published arms, replayed: B is warned at 3500 and stopped by 4000, the others never, at any scale."""
    levels = bench.run(".venv/bin/python", "-c", "from runner.judge import LEVEL_NAMES; print(*LEVEL_NAMES)").split()
    scalings = ["1", *(f"{name}{factor}" for factor in ("0.7", "1.3") for name in ("", *(f"{one}=" for one in levels)))]
    stops: dict[str, int] = {}
    for scaling in scalings:
        told = bench.run(
            ".venv/bin/runner",
            "backtest",
            "tests/data/published_checkpoints.json",
            "--json",
            "--scale-thresholds",
            scaling,
        )
        arms = {one["arm"][0]: one for one in json.loads(told)}
        require(all(arms[name]["action"] in ("none", "warn") for name in "ACD"), f"A, C, D go on at {scaling}")
        if scaling == "1":
            b = arms["B"]
            bench.notes["B"] = {key: b[key] for key in ("warn_step", "step", "rule", "hours_saved")}
            require(b["warn_step"] == 3500 and b["action"] == "abort" and b["step"] <= 4000, "B is seen coming")
            require(b["hours_saved"] >= 20.0, "and twenty hours are saved")
        stops[scaling] = arms["B"]["step"] if arms["B"]["action"] == "abort" else -1
    bench.notes["B_stopped_at"] = sorted(set(stops.values()))
    bench.notes["scalings"] = len(scalings)


def autopsy(bench: Bench) -> None:
    """Planted causes are each named by the autopsy, and a clean run answers that nothing was reproduced."""
    out = bench.run(".venv/bin/python", "-m", "pytest", "tests/test_trainer_autopsy.py", "-vv", limit_s=1800)
    bench.notes["tests"] = [
        line.split("::")[1].split(" ")[0] for line in out.splitlines() if "::" in line and "PASSED" in line
    ]


def identity(bench: Bench) -> None:
    """Launching twice starts nothing; words change nothing; one changed arm is one new generation."""
    bench.runner("launch", *QUICKSTART[:2], *SHORT, home="twice")
    first = bench.status("twice")
    again = bench.runner("launch", *QUICKSTART[:2], *SHORT, home="twice")
    require(again.count("nothing is done") == 3 and bench.status("twice") == first, "the same arms twice start nothing")
    readme = bench.clone / "README.md"
    readme.write_text(readme.read_text() + "\nMore words.\n")
    require(bench.runner("launch", *QUICKSTART[:2], *SHORT, home="twice").count("nothing is done") == 3, "README edits")
    arm = bench.clone / QUICKSTART[1]
    arm.write_text(arm.read_text() + "  trainer.tread.ratio: 0.25\n")
    bench.runner("launch", *QUICKSTART[:2], *SHORT, home="twice")
    bench.run("git", "checkout", "-q", ".")
    now = bench.status("twice")
    require(now["B-s0"]["generation"] == 2, "the changed arm is a new generation")
    require(all(now[name]["run"] == first[name]["run"] for name in ("A-s0", "A-s1")), "and the others are not")


def kill(bench: Bench) -> None:
    """kill -9 of the controller in mid-run, and a closed terminal, change nothing that is learnt."""
    bench.runner("launch", *QUICKSTART[2:], *SHORT, home="calm")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RUNNER_")}
    viewer = subprocess.Popen(
        [".venv/bin/runner", "launch", *QUICKSTART[2:], *SHORT, "--home", str(bench.home("killed"))],
        cwd=bench.clone, env=environment, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    lock = bench.home("killed") / "controller.lock"
    bench.until(lambda: lock.exists() and lock.read_text().strip(), "a controller")
    bench.until(lambda: min((run["step"] for run in bench.status("killed").values()), default=0) >= 60, "step 60")
    os.killpg(viewer.pid, signal.SIGHUP)
    viewer.wait(timeout=60)
    os.kill(int(lock.read_text()), signal.SIGKILL)
    before = bench.status("killed")
    pids, written = _training_pids(bench.home("killed")), _metric_bytes(bench.home("killed"))
    bench.until(
        lambda: all(now > then for now, then in zip(_metric_bytes(bench.home("killed")), written, strict=True)),
        "every training writes on without a controller",
    )
    require(pids and pids == _training_pids(bench.home("killed")), "the trainings never stopped")
    bench.runner("resume", home="killed")
    bench.until(lambda: all(run["state"] == "finished" for run in bench.status("killed").values()), "the end", 1200)
    calm, killed = bench.points("calm", "portrait-quickstart"), bench.points("killed", "portrait-quickstart")
    bench.notes["steps_when_killed"] = {name: run["step"] for name, run in before.items()}
    bench.notes["points"] = {run: [len(points), len(set(points))] for run, points in killed.items()}
    require(calm == killed, "every point equals an undisturbed run's")
    require(all(run["attempts"] == 1 for run in bench.status("killed").values()), "no training was started twice")


def _training_pids(home: Path) -> list[int]:
    records = [json.loads(path.read_text()) for path in home.glob("*/*/attempt-*/supervisor.json")]
    return sorted(record["child"]["pid"] for record in records if psutil.pid_exists(record["child"]["pid"]))


def _metric_bytes(home: Path) -> list[int]:
    return [path.stat().st_size for path in sorted(home.glob("*/*/attempt-*/metrics.jsonl"))]


def resume(bench: Bench) -> None:
    """2N steps at once equal N, a stop and N more, bit for bit; toggles change no other stream."""
    out = bench.run(
        ".venv/bin/python", "-m", "pytest", "tests", "-k", "bit_for_bit or draws or resume or toggl", limit_s=1800
    )
    bench.notes["tests"] = out.strip().splitlines()[-1]


def seeds(bench: Bench) -> None:
    """Ten more seeds of the quickstart arms at full size: nobody healthy is aborted."""
    bench.runner("launch", *QUICKSTART, "--seeds", "100-109", home="seeds", limit_s=14400)
    runs = bench.status("seeds")
    bench.notes["states"] = {
        state: [run["state"] for run in runs.values()].count(state) for state in {run["state"] for run in runs.values()}
    }
    warned = {name: run["verdict"]["reason"] for name, run in runs.items() if run["health"] == "warned"}
    bench.notes["warned"] = warned
    bench.notes["warnings"] = len(warned)
    require(len(runs) == 40 and all(run["state"] == "finished" for run in runs.values()), "40 runs, 0 aborts")


def startup(bench: Bench) -> None:
    """The command starts quickly and a status loads nothing heavy."""
    bench.run(".venv/bin/python", "-m", "pytest", "-q", "tests/test_house.py", "-k", "quick")
    floor, ours = [], []
    for _ in range(15):
        floor.append(_seconds(bench.clone, ".venv/bin/python", "-c", "import typer, rich.table"))
        ours.append(_seconds(bench.clone, ".venv/bin/runner", "--help"))
    ratios = sorted(mine / theirs for mine, theirs in zip(ours, floor, strict=True))
    bench.notes["ratio"] = {"median": round(ratios[7], 2), "min": round(ratios[0], 2), "max": round(ratios[-1], 2)}
    require(ratios[7] <= 2.5, f"at most 2.5 times the imports (median {ratios[7]:.2f})")


def soak(bench: Bench) -> None:
    """200 studies whose controller is killed at drawn lines of its code, and restarted."""
    out = bench.run("make", "soak", limit_s=7200)
    bench.notes["says"] = out.strip().splitlines()[-4:]
    require("every point once, no double start, no orphan" in out, "every case is clean")


def faults(bench: Bench) -> None:
    """Faults injected from outside into real trainings: each is called what it is, and in time."""
    _live_faults(bench)


def healthy30(bench: Bench) -> None:
    """Thirty healthy live runs with every detector armed: none is stopped."""
    _live_faults(bench, "--only", "healthy30")


def _live_faults(bench: Bench, *arguments: str) -> None:
    out = bench.run(".venv/bin/python", "tests/live_faults.py", *arguments, limit_s=7200, code=None)
    bench.notes["says"] = [line for line in out.splitlines() if line.startswith(("ok", "FAIL"))]
    require("every fault was called what it is, in time" in out, "nothing is called something else, or too late")


Target = tuple[float, float, bool]
"""(measured, target, whether less is better)."""


def benchmark(name: str, targets_of: Callable[[dict[str, Any]], dict[str, Target]]) -> Callable[[Bench], None]:
    """A line that runs one benchmark, our figures beside those of our peers, and names each target that is missed."""

    def run(bench: Bench) -> None:
        bench.run("make", "bench", f"ONLY={name}", limit_s=7200)
        kept = RESULTS / "benchmarks"
        kept.mkdir(parents=True, exist_ok=True)
        shutil.copy(bench.clone / f"benchmarks/results/{name}.json", kept)
        shutil.copy(bench.clone / "benchmarks/README.md", kept / f"{name}.README.md")
        found = {path.stem: json.loads(path.read_text()) for path in kept.glob("*.json")}
        bench.notes["seconds_of_all"] = round(sum(one["seconds"] for one in found.values()))
        bench.notes["benchmarks_so_far"] = sorted(found)
        targets = targets_of(found[name])
        bench.notes["targets"] = {name: [round(value, 3), limit] for name, (value, limit, _) in targets.items()}
        missed = [one for one, (value, limit, below) in targets.items() if (value > limit if below else value < limit)]
        require(bench.notes["seconds_of_all"] <= 3600, "the whole set within 60 minutes")
        require(not missed, f"targets missed: {', '.join(missed)}")

    run.__doc__ = f"The benchmark `{name}`, with its targets."
    return run


def _launch_targets(launch: dict[str, Any]) -> dict[str, Target]:
    rows = {(row["tool"], row["arms"]): row for row in launch["rows"] if "pass" in row["command"]}
    ours = rows["armature", 500]
    return {
        # From the first start to the last end; the table of the benchmark has the start-up too.
        "launch_times_xargs": (ours["work_s"] / rows["xargs", 500]["total_s"], 2.0, True),
        "ray_times_launch": (rows["ray", 100]["total_s"] / rows["armature", 100]["total_s"], 5.0, False),
        "slot_gap_p99_ms": (ours["gap_p99_ms"], 150.0, True),
    }


def _ingest_targets(ingest: dict[str, Any]) -> dict[str, Target]:
    rates = {(row["tool"], row["points"]): row["points_per_s"] for row in ingest["rows"]}
    ours = rates["armature", 5_000_000]
    mlflow = next(points for tool, points in rates if tool == "mlflow")
    return {
        "ingest_points_per_s": (ours, 100_000.0, False),
        "ingest_share_of_ceiling": (ours / rates["sqlite3.executemany", 5_000_000], 0.5, False),
        "ingest_times_mlflow": (rates["armature", mlflow] / rates["mlflow", mlflow], 10.0, False),
    }


def _status_targets(status: dict[str, Any]) -> dict[str, Target]:
    times = {(row["tool"], row["kind"]): row["seconds"] for row in status["rows"]}
    return {
        "status_warm_s": (times["armature", "warm"], 0.1, True),
        "status_cold_times_imports": (times["armature", "cold"] / times["the imports alone", "cold"], 1.5, True),
    }


def _steady_targets(steady: dict[str, Any]) -> dict[str, Target]:
    return {
        "steady_percent_per_arm": (steady["slope_percent_per_arm"], 0.1, True),
        "idle_percent": (steady["rows"][0]["idle_percent"], 1.0, True),
        "memory_mb": (max(row["rss_mb"] for row in steady["rows"]), 80.0, True),
    }


def _adoption_targets(adoption: dict[str, Any]) -> dict[str, Target]:
    return {"adoption_s": (adoption["median_s"], 2.0, True)}


MEASURED = ("runner", "provisioning", "benchmarks/__main__.py", "benchmarks/peers.py")


def _detectors_targets(result: dict[str, Any]) -> dict[str, Target]:
    told = {name: one["rules"]["armature, with probes"] for name, one in result["profiles"].items()}
    kinds = result["profiles"]["base"]["kinds"]["armature, with probes"]
    return {
        "base_recall": (told["base"]["recall"], 99.0, False),
        "base_false_percent": (told["base"]["false_aborts_percent"], 0.1, True),
        "base_before_onset": (told["base"]["before_onset"], 0.0, True),
        "base_saved": (told["base"]["saved"], 65.0, False),
        "shift_recall": (told["shift"]["recall"], 98.5, False),
        "shift_false_percent": (told["shift"]["false_aborts_percent"], 0.3, True),
        "nan_lines_late": (kinds["nan"]["lines_late_max"], 1.0, True),
        "explosion_delay_p90": (kinds["explosion"]["delay_p90"], 3.0, True),
        "collapse_delay_median": (kinds["collapse"]["delay_median"], 12.0, True),
    }


BENCHMARKS: dict[str, Callable[[dict[str, Any]], dict[str, Target]]] = {
    "steady": _steady_targets,
    "adoption": _adoption_targets,
    "status": _status_targets,
    "ingest": _ingest_targets,
    "launch": _launch_targets,
    "detectors": _detectors_targets,
    "train_step": trainer.train_step_targets,
    "prepare": preparing.prepare_targets,
}
# The judge is pure: nothing else of the runner can change what it concludes.
JUDGED = (
    "runner/judge",
    "runner/records.py",
    "benchmarks/detector*.py",
    "benchmarks/study_*.py",
    "benchmarks/stopping_*",
)
COVERED = {
    "detectors": JUDGED,
    "train_step": ("trainer", ":(exclude)trainer/prepare", ":(exclude)trainer/asking", "benchmarks/train_step*.py"),
    "prepare": ("trainer/prepare", "benchmarks/prepare.py"),
}


def _seconds(clone: Path, *command: str) -> float:
    started = time.perf_counter()
    subprocess.run(command, cwd=clone, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started


ELSEWHERE = ("runner", "provisioning", "trainer", "reports", "tests/accept_elsewhere.py", "tests/fakes")
LIVE = ("runner", "provisioning", "trainer", "tests/live_faults.py", "tests/fakes", "tests/data/stderr")
LINES: dict[str, tuple[Callable[[Bench], None], tuple[str, ...]]] = {
    "startup": (startup, ("runner", "pyproject.toml")),
    "any_script": (any_script, PRODUCT),
    "resume": (resume, ("trainer", "pyproject.toml", "tests")),
    "identity": (identity, PRODUCT),
    "kill": (kill, PRODUCT),
    "published": (published, ("runner/judge", "runner/commands/backtest.py", "tests/data/published_checkpoints.json")),
    "autopsy": (autopsy, ("trainer", "tests/test_trainer_autopsy.py")),
    "hot_lr": (hot_lr, PRODUCT),
    "check": (check, (*PRODUCT, "tests", "README.md", "CONTRIBUTING.md")),
    "demo": (demo, PRODUCT),
    "soak": (soak, ("runner", "provisioning", "tests/soak.py", "tests/fakes")),
    "vast_demo": (elsewhere.vast_demo, ELSEWHERE),
    "chaos": (elsewhere.chaos, ("runner/renting", "provisioning/vast", "benchmarks/renting*.py", "tests/fakes")),
    "outage": (elsewhere.outage, ELSEWHERE),
    "rented": (elsewhere.rented, (*ELSEWHERE, "tests/test_runner_vast*.py")),
    "hostile": (elsewhere.hostile, (*ELSEWHERE, "tests/test_runner_ssh_refusals.py")),
    "secrets": (elsewhere.secrets, (*ELSEWHERE, "tests/test_runner_secrets.py")),
    "offline": (elsewhere.offline, (*ELSEWHERE, "tests/test_runner_vast_offline.py")),
    "overfit": (trainer.overfit, ("trainer", "tests/overfit.py")),
    "switches": (trainer.switches, ("trainer", "tests/test_trainer_*.py", "tests/data/golden_curves.json")),
    "shards": (trainer.shards, ("trainer", "tests/test_trainer_distributed.py", "tests/test_trainer_buckets.py")),
    "again": (trainer.again, ("trainer", "tests/test_trainer_evaluate_again.py")),
    "prepared": (preparing.prepared, ("trainer", "tests/fakes/picture_folder.py", "tests/accept_prepare.py")),
    "planted": (preparing.planted, ("trainer/prepare", "tests/test_trainer_prepare_*.py")),
    "faults": (faults, LIVE),
    "healthy30": (healthy30, LIVE),
    **{
        f"bench_{name}": (
            benchmark(name, targets),
            COVERED.get(name, (*MEASURED, f"benchmarks/{name}.py")),
        )
        for name, targets in BENCHMARKS.items()
    },
    # Whatever can change a curve or a verdict; the trainer's command line cannot.
    "seeds": (seeds, ("trainer", ":(exclude)trainer/__main__.py", "arms", "runner/judge", "runner/follow.py")),
}


def still_counts(name: str, paths: tuple[str, ...], commit: str) -> bool:
    """Whether a line passed before, and nothing that it covers has changed since the commit it ran on."""
    path = RESULTS / f"{name}.json"
    if not path.exists():
        return False
    result = json.loads(path.read_text())
    command = ["git", "diff", "--quiet", result["commit"], commit, "--", *paths]
    return bool(result["passed"]) and subprocess.run(command, cwd=ROOT, check=False).returncode == 0


def run_line(name: str, clone: Path, commit: str) -> bool:
    """Run one line and write its result file."""
    act, paths = LINES[name]
    bench = Bench(clone)
    started = time.time()
    problem = ""
    try:
        act(bench)
    except (NotMet, subprocess.SubprocessError, OSError, KeyError, ValueError) as error:
        problem = f"{type(error).__name__}: {error}"
    result = {
        "line": name,
        "says": (act.__doc__ or "").strip(),
        "passed": not problem,
        "problem": problem,
        "commit": commit,
        "covers": paths,
        "seconds": round(time.time() - started),
        "notes": bench.notes,
        "log": bench.log,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1))
    word = "FAIL" if problem else "ok  "
    print(f"{word} {name} ({result['seconds']} s) {problem or json.dumps(bench.notes)[:400]}", flush=True)
    return not problem


def main(names: list[str]) -> int:
    """Run the named lines, or all that do not count yet."""
    unknown = set(names) - set(LINES)
    if unknown:
        print(f"no such line: {', '.join(sorted(unknown))}; lines: {', '.join(LINES)}", file=sys.stderr)
        return 2
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()
    todo = [name for name in LINES if (name in names if names else not still_counts(name, LINES[name][1], commit))]
    for name in [name for name in LINES if name not in todo]:
        print(f"ok   {name} (counts from before)" if not names else f"     {name} (not asked for)")
    if not todo:
        return 0
    with tempfile.TemporaryDirectory(prefix="armature-accept-") as folder:
        clone = Path(folder) / "armature"
        subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
        subprocess.run(["git", "checkout", "-q", commit], cwd=clone, check=True)
        subprocess.run(["make", "-s", "setup"], cwd=clone, check=True)
        passed = [run_line(name, clone, commit) for name in todo]
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
