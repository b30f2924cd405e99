"""How fast metrics files become stored points: ours, the database alone, mlflow, optuna and TensorBoard's reader.

A hundred files of 10,000 lines with five numbers each, 5 million points. Ours goes the whole way of the product: look
at the file, read it, parse it, check it against what is stored, and commit points and position together. The ceiling is
`executemany` with ready tuples into the same tables, in as many transactions. Peers run at a size that all their
repeats finish in about three minutes, and ours is measured at that size as well.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

from sqlalchemy import insert

from benchmarks.peers import python_of, version
from provisioning.local_shell import LocalShell
from provisioning.processes import identity_of
from runner.detach import SUPERVISOR
from runner.follow import Follow
from runner.home import Home
from runner.lock import HomeLock
from runner.records import AttemptKind, Health, Policy, Primary, Resources, RunState
from runner.spec.models import ResolvedArm, to_json
from runner.store import changes, tables
from runner.store.database import create_or_upgrade
from runner.store.facts import open_runs
from runner.store.opening import read_write
from runner.store.session import Session

NAMES = tuple(f"train/m{index}" for index in range(5))
STEPS = 10_000
FILES, QUICK_FILES = 100, 10
REPEATS = 5
PEERS = {"mlflow": "mlflow==3.17.2", "optuna": "optuna==5.0.0", "tensorboard": "tensorboard==2.21.0"}
PEER_LINES = {"mlflow": 60_000, "optuna": 6_000, "tensorboard": 200_000}
"""Lines (of five points) that a peer takes in three times within about three minutes."""
PEER_REPEATS = 3


def run(quick: bool) -> dict[str, Any]:
    """All measurements, as plain JSON values; contenders take turns within each repeat."""
    folder = Path(tempfile.mkdtemp(prefix="armature-bench-"))
    try:
        return _run(quick, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run(quick: bool, folder: Path) -> dict[str, Any]:
    files = _write_files(folder / "files", QUICK_FILES if quick else FILES, STEPS)
    measured: dict[tuple[str, int], list[float]] = {}

    def note(name: str, points: int, seconds: float) -> None:
        measured.setdefault((name, points), []).append(points / seconds)
        print(f"  {name}, {points} points: {points / seconds:,.0f} points/s", flush=True)

    for repeat in range(1 if quick else REPEATS):
        for name, contender in (("armature", ours), ("sqlite3.executemany", ceiling)):
            home = folder / f"{name}-{repeat}"
            note(name, len(files) * STEPS * len(NAMES), contender(home, files, STEPS))
            shutil.rmtree(home)
    for name, requirement in PEERS.items():
        lines = PEER_LINES[name] // (10 if quick else 1)
        few = _write_files(folder / f"files-{name}", max(1, lines // STEPS), min(lines, STEPS))
        points = lines * len(NAMES)
        peer = _peer(name, python_of(name, requirement), few, min(lines, STEPS), folder)
        for repeat in range(1 if quick else PEER_REPEATS):
            note(name, points, peer(folder / f"{name}-{repeat}"))
            home = folder / f"armature-{name}-{repeat}"
            note("armature", points, ours(home, few, min(lines, STEPS)))
            shutil.rmtree(home)
    rows = [
        {"tool": name, "points": points, "points_per_s": median(rates), "spread": (max(rates) - min(rates)) / 2,
         "repeats": len(rates), "rates": rates}
        for (name, points), rates in measured.items()
    ]  # fmt: skip
    versions = {name: version(requirement) for name, requirement in PEERS.items()}
    return {"benchmark": "ingest", "quick": quick, "versions": versions, "rows": rows}


def table(result: Mapping[str, Any]) -> str:
    """The result as a Markdown table: each tool beside ours at the same size."""
    rows = result["rows"]
    mine = {row["points"]: row["points_per_s"] for row in rows if row["tool"] == "armature"}
    lines = ["| points | tool | points a second | ours is so many times as fast |", "|--:|---|--:|--:|"]
    for row in sorted(rows, key=lambda row: (-row["points"], row["tool"])):
        rate = f"{row['points_per_s']:,.0f} ± {row['spread']:,.0f}"
        lines.append(
            f"| {row['points']:,} | {row['tool']} | {rate} | {mine[row['points']] / row['points_per_s']:.2f} |"
        )
    return "\n".join(lines)


def ours(root: Path, files: Sequence[Path], steps: int) -> float:
    """Seconds of `Follow` until every point is stored. Judging has a budget of its own and is left out."""
    home = Home(root)
    session = _home(home, len(files))
    shell = LocalShell(str(SUPERVISOR))
    for path, run in zip(files, _runs(len(files)), strict=True):
        (root / run).mkdir(parents=True)
        (root / run / "metrics.jsonl").symlink_to(path)
    places: Any = SimpleNamespace(by_lease=lambda _lease: SimpleNamespace(shell=shell))
    follow = Follow(session, home, places, time.time)
    follow._judge = lambda *_arguments: None  # type: ignore[method-assign]
    with session.reading() as connection:
        runs = open_runs(connection)
    begun = time.perf_counter()
    while follow.follow_all(runs, lambda run, act: act(run)):
        pass
    took_s = time.perf_counter() - begun
    shell.close()
    session.close()
    _check(home.database, len(files) * steps * len(NAMES))
    return took_s


def ceiling(root: Path, files: Sequence[Path], steps: int) -> float:
    """Seconds of `executemany` with ready tuples into the same tables, one transaction for each file."""
    home = Home(root)
    _home(home, len(files)).close()
    driver = read_write(home.database)
    for number, run in enumerate(_runs(len(files))):
        for index, name in enumerate(NAMES):
            driver.execute(
                "INSERT INTO series VALUES (?, ?, 1, ?, ?, 1, 1.0, ?, 0.5, 1.0)",
                (number * len(NAMES) + index + 1, run, name, steps, steps),
            )
    took_s = 0.0
    for number in range(len(files)):
        rows = [
            (number * len(NAMES) + index + 1, step, random.random(), 1.79e9 + step * 0.37)
            for index in range(len(NAMES))
            for step in range(1, steps + 1)
        ]
        begun = time.perf_counter()
        driver.execute("BEGIN IMMEDIATE")
        driver.executemany("INSERT INTO points (series, step, value, time) VALUES (?, ?, ?, ?)", rows)
        driver.execute("COMMIT")
        took_s += time.perf_counter() - begun
    driver.close()
    _check(home.database, len(files) * steps * len(NAMES))
    return took_s


MLFLOW = """
import json, sys, time
files, folder = json.loads(sys.argv[1]), sys.argv[2]
from mlflow.entities import Metric
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
store = SqlAlchemyStore(f"sqlite:///{folder}/mlflow.db", folder)
experiment = store.create_experiment("bench")
began = time.perf_counter()
for path in files:
    run = store.create_run(experiment, "u", 0, [], "r").info.run_id
    batch = []
    for line in open(path):
        found = json.loads(line)
        for name, value in found.items():
            if name.startswith("train/"):
                batch.append(Metric(name, value, int(found["time"] * 1000), found["step"]))
                if len(batch) == 1000:
                    store.log_batch(run, batch, [], [])
                    batch = []
    store.log_batch(run, batch, [], [])
print(json.dumps({"seconds": time.perf_counter() - began}))
"""

OPTUNA = """
import json, sys, time
files, folder = json.loads(sys.argv[1]), sys.argv[2]
import optuna
optuna.logging.set_verbosity(optuna.logging.ERROR)
study = optuna.create_study(storage=f"sqlite:///{folder}/optuna.db")
began = time.perf_counter()
for path in files:
    trials = {}
    for line in open(path):
        found = json.loads(line)
        for name, value in found.items():
            if name.startswith("train/"):  # a trial has one series, so each name is a trial
                trial = trials.get(name) or trials.setdefault(name, study.ask())
                trial.report(value, found["step"])
print(json.dumps({"seconds": time.perf_counter() - began}))
"""

TENSORBOARD = """
import json, struct, sys, time
files, folder = json.loads(sys.argv[1]), sys.argv[2]
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
import os
for number, path in enumerate(files):
    os.makedirs(f"{folder}/{number}", exist_ok=True)
    with open(f"{folder}/{number}/events.out.tfevents.1", "wb") as file:
        writer = RecordWriter(file)
        for line in open(path):
            found = json.loads(line)
            values = [Summary.Value(tag=n, simple_value=v) for n, v in found.items() if n.startswith("train/")]
            event = Event(step=found["step"], wall_time=found["time"], summary=Summary(value=values))
            writer.write(event.SerializeToString())
        writer.flush()
began = time.perf_counter()
count = 0
for number in range(len(files)):
    reader = EventAccumulator(f"{folder}/{number}", size_guidance={"scalars": 0})
    reader.Reload()
    count += sum(len(reader.Scalars(tag)) for tag in reader.Tags()["scalars"])
seconds = time.perf_counter() - began
print(json.dumps({"seconds": seconds, "points": count}))
"""


def _peer(name: str, python: str, files: Sequence[Path], steps: int, folder: Path) -> Callable[[Path], float]:
    script = {"mlflow": MLFLOW, "optuna": OPTUNA, "tensorboard": TENSORBOARD}[name]

    def measure(place: Path) -> float:
        place.mkdir()
        argv = [python, "-c", script, json.dumps([str(path) for path in files]), str(place)]
        done = subprocess.run(argv, capture_output=True, text=True, cwd=folder)
        if done.returncode:
            raise RuntimeError(f"{name} failed: {done.stderr[-2000:]}")
        said = json.loads(done.stdout.strip().splitlines()[-1])
        if said.get("points", len(files) * steps * len(NAMES)) != len(files) * steps * len(NAMES):
            raise RuntimeError(f"{name} read {said['points']} points")
        shutil.rmtree(place)
        return float(said["seconds"])

    return measure


def _write_files(folder: Path, count: int, steps: int) -> list[Path]:
    folder.mkdir()
    chance = random.Random(7)
    paths = [folder / f"{number:03d}.jsonl" for number in range(count)]
    for path in paths:
        with path.open("w") as file:
            for step in range(1, steps + 1):
                values = {name: chance.random() for name in NAMES}
                file.write(json.dumps({"step": step, "time": 1.79e9 + step * 0.37, "kind": "train", **values}) + "\n")
    return paths


def _runs(count: int) -> list[str]:
    return [f"bench/a-s{number}-{number:08x}" for number in range(count)]


def _home(home: Home, count: int) -> Session:
    """A home with so many live runs, whose process is this one."""
    home.root.mkdir()
    lock = HomeLock(home.lock)
    create_or_upgrade(home, lock)
    lock.release()
    session = Session(home.database, pid=1, now=1.0)
    identity = identity_of(os.getpid())
    assert identity is not None
    with session.transaction() as connection:
        connection.execute(insert(tables.studies).values(study="bench", document={}, source="a", lint=[], created=0.0))
        connection.execute(
            insert(tables.leases).values(
                id=1, provider="local", label="l", host="h", state="owned", price_usd_per_h=0.0, created=0.0
            )
        )
        for number, run in enumerate(_runs(count)):
            connection.execute(
                insert(tables.runs).values(
                    run=run, id=run[-8:], study="bench", arm="a", seed=number, generation=1, arm_order=0, launch=1,
                    identity="i", arm_document=arm_document(NAMES[0]), snapshot={}, provenance={}, steps_total=STEPS,
                    state=RunState.RUNNING, overridden=[], created=0.0, changed=0.0, health=Health.OK,
                )
            )  # fmt: skip
            slot = {"name": f"cpu{number}", "cores": [0]}
            changes.add_attempt(connection, run, 1, AttemptKind.TRAIN, 1, slot, 1.0)
            changes.set_attempt(connection, run, 1, phase="live", identity=asdict(identity), started=1.0)
    return session


def arm_document(primary: str) -> dict[str, Any]:
    """A resolved arm as it is stored."""
    arm = ResolvedArm(
        file="a.yaml", path="/a.yaml", folder="/", sources=("/a.yaml",), study="bench", arm="a", title="",
        hypothesis="", baseline=None, seeds=(0,), kind="command", trainer=None, command=("sleep", "1"),
        metrics={"source": "jsonl", "path": "metrics.jsonl"}, steps=STEPS, primary=Primary(primary),
        resources=Resources(gpus=0), policy=Policy(), environment={"python": None, "setup": None}, env={},
        code={"root": None, "include": []},
    )  # fmt: skip
    return to_json(arm)


def _check(database: Path, points: int) -> None:
    with sqlite3.connect(database) as connection:
        (stored,) = connection.execute("SELECT count(*) FROM points").fetchone()
    connection.close()
    if stored != points:
        raise RuntimeError(f"{database}: {stored} points are stored, {points} were written")
