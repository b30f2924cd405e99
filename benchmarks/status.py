"""How long it takes to say how a thousand runs are doing: ours, mlflow's search_runs and optuna's list of trials.

A thousand arms with three names of 10,000 points each, 30 million points, filled by bulk SQL. The peers' databases are
filled in the same way with a tenth of that: mlflow with three names, optuna with the one series that a trial has.
Warm is one more answer in a process that has given one. Cold is the whole command, from typing it to its end, beside
what Python takes to import what such a command is usually made of (`import typer, rich.table, sqlalchemy`).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.ingest import PEERS, arm_document
from benchmarks.peers import python_of, version
from runner.home import Home
from runner.lock import HomeLock
from runner.store.database import create_or_upgrade
from runner.store.opening import read_write
from runner.store.status import home_status

ROOT = Path(__file__).resolve().parent.parent
ARMS, QUICK_ARMS = 1000, 100
STEPS = 10_000
NAMES = ("train/loss", "train/lr", "val/error")
REPEATS = 5
FLOOR = "import typer, rich.table, sqlalchemy"


def run(quick: bool) -> dict[str, Any]:
    """All measurements, as plain JSON values; contenders take turns within each repeat."""
    folder = Path(tempfile.mkdtemp(prefix="armature-bench-"))
    try:
        return _run(QUICK_ARMS if quick else ARMS, quick, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run(arms: int, quick: bool, folder: Path) -> dict[str, Any]:
    home = Home(folder / "runs")
    _fill(home, arms)
    print(f"  {arms * len(NAMES) * STEPS:,} points in {home.database.stat().st_size / 2**20:.0f} MiB", flush=True)
    peers = {name: python_of(name, PEERS[name]) for name in ("mlflow", "optuna")}
    for name, python in peers.items():
        _ask(python, {"mlflow": FILL_MLFLOW, "optuna": FILL_OPTUNA}[name], str(arms), str(folder))
    runner = [sys.executable, "-m", "runner.cli", "status", "--json", "--home", str(home.root)]
    measured: dict[tuple[str, str], list[float]] = {}
    for repeat in range(REPEATS):
        for key, measure in _contenders(home, arms, folder, peers, runner).items():
            measured.setdefault(key, []).append(measure())
        print(
            f"  {repeat + 1}/{REPEATS} " + ", ".join(f"{n} {k} {v[-1]:.3f} s" for (n, k), v in measured.items()),
            flush=True,
        )
    rows = [
        {"tool": name, "kind": kind, "seconds": median(times), "spread": (max(times) - min(times)) / 2, "all": times}
        for (name, kind), times in measured.items()
    ]
    versions = {name: version(PEERS[name]) for name in peers}
    return {"benchmark": "status", "quick": quick, "arms": arms, "versions": versions, "repeats": REPEATS, "rows": rows}


def _contenders(
    home: Home, arms: int, folder: Path, peers: Mapping[str, str], runner: Sequence[str]
) -> dict[tuple[str, str], Callable[[], float]]:
    def warm() -> float:
        home_status(home)
        begun = time.perf_counter()
        document = home_status(home)
        took_s = time.perf_counter() - begun
        assert len(document["studies"][0]["runs"]) == arms
        return took_s

    def cold() -> float:
        return _timed(runner)

    def floor() -> float:
        return _timed([sys.executable, "-c", FLOOR])

    def peer(name: str, kind: str) -> Callable[[], float]:
        script = {"mlflow": MLFLOW, "optuna": OPTUNA}[name]

        def measure() -> float:
            begun = time.perf_counter()
            said = _ask(peers[name], script, str(arms), str(folder))
            return float(said["warm_s"]) if kind == "warm" else time.perf_counter() - begun - float(said["warm_s"])

        return measure

    found: dict[tuple[str, str], Callable[[], float]] = {
        ("armature", "warm"): warm, ("armature", "cold"): cold, ("the imports alone", "cold"): floor,
    }  # fmt: skip
    for name in peers:
        for kind in ("warm", "cold"):
            found[name, kind] = peer(name, kind)
    return found


def table(result: Mapping[str, Any]) -> str:
    """The result as a Markdown table."""
    times = {(row["tool"], row["kind"]): row for row in result["rows"]}
    lines = ["| tool | warm, ms | cold, ms | cold, times the imports |", "|---|--:|--:|--:|"]
    floor = times["the imports alone", "cold"]["seconds"]
    for tool in dict.fromkeys(row["tool"] for row in result["rows"]):
        cells = [tool]
        for kind in ("warm", "cold"):
            row = times.get((tool, kind))
            cells.append("–" if row is None else f"{1000 * row['seconds']:.0f} ± {1000 * row['spread']:.0f}")
        cells.append(f"{times[tool, 'cold']['seconds'] / floor:.2f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _fill(home: Home, arms: int) -> None:
    """Finished runs in bulk: rows for every run, and the points by one statement a series."""
    home.root.mkdir(parents=True)
    lock = HomeLock(home.lock)
    create_or_upgrade(home, lock)
    lock.release()
    driver = read_write(home.database)
    driver.execute("BEGIN")
    driver.execute("INSERT INTO studies VALUES ('bench', '{}', 'a', '[]', 0.0)")
    driver.execute(
        "INSERT INTO leases (id, provider, label, host, state, price_usd_per_h, created) "
        "VALUES (1, 'local', 'l', 'h', 'released', 0.0, 0.0)"
    )
    document = json.dumps(arm_document(NAMES[2]))
    verdict = json.dumps({"health": "ok", "action": "none", "rule": "", "reason": "", "as_of": {}, "findings": []})
    for number in range(arms):
        run = f"bench/a{number}-s0-{number:08x}"
        driver.execute(
            "INSERT INTO runs (run, id, study, arm, seed, generation, arm_order, launch, identity, arm_document, "
            "snapshot, provenance, steps_total, state, rule, reason, health, verdict, overridden, best_step, "
            "best_value, created, changed) VALUES "
            "(?, ?, 'bench', ?, 0, 1, ?, 1, 'i', ?, '{}', '{}', ?, 'finished', '', '', 'ok', ?, '[]', ?, 0.1, 0, 0)",
            (run, run[-8:], f"a{number}", number, document, STEPS, verdict, STEPS),
        )
        driver.execute(
            "INSERT INTO attempts (run, attempt, kind, phase, lease, slot, sync, created, started, ended) "
            "VALUES (?, 1, 'train', 'ended', 1, '{\"name\": \"cpu0\"}', 'done', 0, 0, 1)",
            (run,),
        )
        for index, name in enumerate(NAMES):
            series = number * len(NAMES) + index + 1
            driver.execute(
                "INSERT INTO series VALUES (?, ?, 1, ?, ?, 1, 1.0, ?, 0.5, 2.0)", (series, run, name, STEPS, STEPS)
            )
            driver.execute(
                "WITH RECURSIVE k(step) AS (SELECT 1 UNION ALL SELECT step + 1 FROM k WHERE step < ?) "
                "INSERT INTO points SELECT ?, step, 1.0 / step, 1.79e9 + step FROM k",
                (STEPS, series),
            )
        if number % 50 == 49:
            driver.execute("COMMIT")
            driver.execute("BEGIN")
    driver.execute("COMMIT")
    driver.close()


FILL_MLFLOW = """
import sqlite3, sys
arms, folder = int(sys.argv[1]), sys.argv[2]
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
store = SqlAlchemyStore(f"sqlite:///{folder}/mlflow.db", folder)
experiment = store.create_experiment("bench")
runs = [store.create_run(experiment, "u", 0, [], f"r{k}").info.run_id for k in range(arms)]
c = sqlite3.connect(f"{folder}/mlflow.db")
for run in runs:
    for name in ("train/loss", "train/lr", "val/error"):
        c.execute("WITH RECURSIVE k(s) AS (SELECT 1 UNION ALL SELECT s + 1 FROM k WHERE s < 1000) "
                  "INSERT INTO metrics (key, value, timestamp, run_uuid, step, is_nan) "
                  "SELECT ?, 1.0 / s, 1790000000000 + s, ?, s, 0 FROM k", (name, run))
        c.execute("INSERT INTO latest_metrics (key, value, timestamp, step, is_nan, run_uuid) "
                  "VALUES (?, 0.0001, 1790000010000, 10000, 0, ?)", (name, run))
    c.commit()
print("{}")
"""

MLFLOW = """
import json, sys, time
arms, folder = int(sys.argv[1]), sys.argv[2]
from mlflow.tracking import MlflowClient
client = MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow.db")
experiment = client.get_experiment_by_name("bench").experiment_id
def ask():
    runs = client.search_runs([experiment], max_results=arms)
    assert len(runs) == arms and runs[0].data.metrics["val/error"], len(runs)
    return [(r.info.run_id, r.info.status, r.data.metrics) for r in runs]
ask()
began = time.perf_counter()
ask()
print(json.dumps({"warm_s": time.perf_counter() - began}))
"""

FILL_OPTUNA = """
import sqlite3, sys
arms, folder = int(sys.argv[1]), sys.argv[2]
import optuna
optuna.logging.set_verbosity(optuna.logging.ERROR)
study = optuna.create_study(storage=f"sqlite:///{folder}/optuna.db", study_name="bench")
for k in range(arms):
    study.ask()
c = sqlite3.connect(f"{folder}/optuna.db")
for (trial,) in c.execute("SELECT trial_id FROM trials").fetchall():
    c.execute("WITH RECURSIVE k(s) AS (SELECT 1 UNION ALL SELECT s + 1 FROM k WHERE s < ?) "
              "INSERT INTO trial_intermediate_values (trial_id, step, intermediate_value, intermediate_value_type) "
              "SELECT ?, s, 1.0 / s, 'FINITE' FROM k", (POINTS, trial))
    c.commit()
print("{}")
""".replace("POINTS", "1000")

OPTUNA = """
import json, sys, time
arms, folder = int(sys.argv[1]), sys.argv[2]
import optuna
optuna.logging.set_verbosity(optuna.logging.ERROR)
def ask():
    study = optuna.load_study(storage=f"sqlite:///{folder}/optuna.db", study_name="bench")
    trials = study.get_trials(deepcopy=False)
    assert len(trials) == arms
    return [(t.number, t.state.name, t.last_step) for t in trials]
ask()
began = time.perf_counter()
ask()
print(json.dumps({"warm_s": time.perf_counter() - began}))
"""


def _ask(python: str, script: str, *arguments: str) -> dict[str, Any]:
    done = subprocess.run([python, "-c", script, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{python}: {done.stderr[-2000:]}")
    said: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return said


def _timed(argv: Sequence[str]) -> float:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    begun = time.perf_counter()
    subprocess.run(argv, env=environment, check=True, capture_output=True, cwd="/")
    return time.perf_counter() - begun
