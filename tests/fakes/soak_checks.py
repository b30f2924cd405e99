"""What must be true of a home after any number of kills: nothing lost, nothing doubled, nothing left open."""

from __future__ import annotations

import json
import math
import sqlite3
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

from runner.home import Home
from runner.records import RunState, is_legal
from tests.fakes.soak_case import Arm, Plan

ENDS = {
    "works": "finished",
    "leaves_child": "finished",
    "dies_once": "finished",
    "fails": "failed(exit 3)",
    "diverges": "aborted(non_finite)",
    "endless": "cancelled",
}
ATTEMPTS = {"dies_once": 2}
STATES = frozenset(str(state) for state in RunState)


def check(plan: Plan, home: Home, starts: Path) -> tuple[list[str], dict[str, int]]:
    """Everything that is wrong with a home that should be at rest, and a few counts."""
    connection = sqlite3.connect(f"file:{home.database}?mode=ro", uri=True)
    connection.row_factory = sqlite3.Row
    started = Counter(line.split()[0] for line in starts.read_text().splitlines()) if starts.exists() else Counter()
    try:
        wrong = _database(connection) + _ledger(connection)
        runs = {row["arm"]: row for row in connection.execute("SELECT * FROM runs")}
        wrong += [f"{name}: no such run" for name in {one.name for one in plan.arms} ^ runs.keys()]
        counts = {"points": 0, "attempts": 0, "litter": len(list(home.root.rglob(".*.*_*")))}
        for one in plan.arms:
            if one.name in runs:
                found, points, attempts = _run(connection, home, one, runs[one.name], started)
                wrong += [f"{one.name}: {what}" for what in found]
                counts["points"] += points
                counts["attempts"] += attempts
        known = {
            f"{home.root}/{row['run']}/attempt-{row['attempt']}" for row in connection.execute("SELECT * FROM attempts")
        }
        wrong += [f"{path}: started, and no attempt says so" for path in started.keys() - known]
        return wrong, counts
    finally:
        connection.close()


def _database(connection: sqlite3.Connection) -> list[str]:
    (integrity,) = connection.execute("PRAGMA integrity_check").fetchone()
    foreign = connection.execute("PRAGMA foreign_key_check").fetchall()
    return ([] if integrity == "ok" else [f"integrity: {integrity}"]) + [
        f"foreign key: {tuple(row)}" for row in foreign
    ]


def _ledger(connection: sqlite3.Connection) -> list[str]:
    """Nothing is left open: no intent, no lease, no request without its one answer."""
    wrong = [
        f"attempt left {row['phase']}: {row['run']} {row['attempt']}"
        for row in connection.execute("SELECT * FROM attempts WHERE phase NOT IN ('ended', 'gone')")
    ]
    wrong += [
        f"lease {row['id']} left {row['state']}"
        for row in connection.execute("SELECT * FROM leases WHERE state != 'released'")
    ]
    for row in connection.execute(
        "SELECT requests.id, requests.kind, count(answers.request) AS answered, min(accepted) AS accepted, message "
        "FROM requests LEFT JOIN answers ON answers.request = requests.id GROUP BY requests.id"
    ):
        if (row["answered"], row["accepted"]) != (1, 1):
            wrong.append(f"request {row['id']} ({row['kind']}): {row['answered']} answers, {row['message']!r}")
    troubles = connection.execute("SELECT reason, data FROM events WHERE what = 'trouble'").fetchall()
    # A spawner that we killed is a trouble worth an event; anything with a traceback is a mistake of ours.
    wrong += [f"trouble: {reason} {data}" for reason, data in troubles if json.loads(data or "{}").get("traceback")]
    reports = connection.execute("SELECT data FROM events WHERE what = 'report'").fetchall()
    wrong += [] if reports else ["the study has no report"]
    wrong += [f"report: {data}" for (data,) in reports if json.loads(data)["code"] != 0]
    return wrong


def _run(
    connection: sqlite3.Connection, home: Home, one: Arm, run: sqlite3.Row, started: Counter[str]
) -> tuple[list[str], int, int]:
    wrong = []
    state = f"{run['state']}({run['rule']})" if run["rule"] else run["state"]
    if state != ENDS[one.kind]:
        wrong.append(f"it ended as {state}, not {ENDS[one.kind]}: {run['reason']}")
    attempts = connection.execute("SELECT * FROM attempts WHERE run = ? ORDER BY attempt", [run["run"]]).fetchall()
    fewest = 0 if one.kind == "endless" else ATTEMPTS.get(one.kind, 1)
    if not fewest <= len(attempts) <= ATTEMPTS.get(one.kind, 1):
        wrong.append(f"{len(attempts)} attempts: {[dict(row) for row in attempts]}")
    wrong += _history(connection, run["run"], run["state"], len(attempts))
    points = 0
    for attempt in attempts:
        folder = home.root / run["run"] / f"attempt-{attempt['attempt']}"
        times = started[str(folder)]
        # A stop may come before a script has said that it started.
        if times != 1 and not (one.kind == "endless" and times == 0):
            wrong.append(f"attempt {attempt['attempt']} was started {times} times")
        ended = json.loads(attempt["exit"] or "{}")
        if ended.get("leftover_pids"):
            wrong.append(f"leftover processes: {ended['leftover_pids']}")
        found, count = _points(connection, one, run["run"], attempt["attempt"], folder)
        wrong += found
        points += count
    (rejected,) = connection.execute("SELECT sum(rejected) FROM files WHERE run = ?", [run["run"]]).fetchone()
    if rejected:
        wrong.append(f"{rejected} lines rejected")
    return wrong, points, len(attempts)


def _history(connection: sqlite3.Connection, run: str, state: str, attempts: int) -> list[str]:
    """The events tell one legal life, once."""
    told = [
        row["what"].split("(")[0]
        for row in connection.execute("SELECT what FROM events WHERE run = ? ORDER BY id", [run])
        if row["what"].split("(")[0] in STATES
    ]
    wrong = [
        f"the events jump from {old} to {new}: {told}"
        for old, new in pairwise(told)
        if not is_legal(RunState(old), RunState(new))
    ]
    if not told or told[0] != "queued" or told[-1] != state:
        wrong.append(f"the events tell {told}, the run is {state}")
    if told.count("placed") != attempts:
        wrong.append(f"placed {told.count('placed')} times for {attempts} attempts")
    return wrong


def _points(connection: sqlite3.Connection, one: Arm, run: str, attempt: int, folder: Path) -> tuple[list[str], int]:
    """Every point that the script wrote in this attempt is stored once with its value, and no other."""
    rows = connection.execute(
        "SELECT name, step, value FROM points JOIN series ON series.id = points.series WHERE run = ? AND attempt = ?",
        [run, attempt],
    ).fetchall()
    stored: dict[tuple[str, int], Any] = {(row["name"], row["step"]): row["value"] for row in rows}
    last = _last_step(one, attempt, folder, stored)
    expected = {
        (name, step): value
        for step in range(1, last + 1)
        for name, value in (("loss", _loss(one, step)), ("half", step / 2))
    }
    wrong = []
    if len(rows) != len(stored):
        wrong.append(f"{len(rows) - len(stored)} points are stored twice")
    missing, strange = sorted(expected.keys() - stored.keys()), sorted(stored.keys() - expected.keys())
    if missing or strange:
        wrong.append(
            f"attempt {attempt}: {len(missing)} points missing {missing[:4]}, {len(strange)} strange {strange[:4]}"
        )
    differ = [key for key in expected.keys() & stored.keys() if not _same(expected[key], stored[key])]
    if differ:
        wrong.append(f"attempt {attempt}: {len(differ)} values differ, {differ[0]}: {stored[differ[0]]}")
    return wrong, len(rows)


def _last_step(one: Arm, attempt: int, folder: Path, stored: dict[tuple[str, int], Any]) -> int:
    """The last step that the script reached: known beforehand, or read from its own file when it was stopped."""
    if one.kind == "dies_once" and attempt == 1:
        return one.steps // 2 + 1
    if one.kind not in ("endless", "diverges"):
        return one.steps
    path = folder / "stdout.log" if one.form == "regex" else folder.parent / f"metrics.{one.form}"
    return path.read_text().count("\n") - (one.form == "csv") if path.exists() and path.stat().st_size else 0


def _loss(one: Arm, step: int) -> float:
    return math.nan if one.kind == "diverges" and step >= one.steps // 2 else 2 - step / 1e6


def _same(expected: float, stored: float | None) -> bool:
    return (stored is None and math.isnan(expected)) or stored == expected
