"""The runs of a stored study as arms to replay: joined curves, announcements, hours of work, paired scores."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Row, select

from runner.errors import UsageError
from runner.home import Home
from runner.judge.backtest import RecordedArm
from runner.records import DeclaredEvent, Policy
from runner.spec.models import from_json
from runner.store import tables
from runner.store.curves import Joined, as_series, read_curves

# The metrics of scores.csv by the prefix of a full name: which weights and which sampler they were made with.
PROTOCOLS = {
    "val": ("ema", "common"),
    "val_raw": ("raw", "common"),
    "val_native": ("ema", "native"),
    "val_raw_native": ("raw", "native"),
}
SECONDS_PER_HOUR = 3600.0


def recorded_study(connection: Connection, home: Home, study: str) -> tuple[list[RecordedArm], Policy]:
    """The newest generation of every run of a study, and the study's policy. Raises UsageError for an unknown study."""
    runs = tables.runs
    rows = connection.execute(
        select(runs)
        .where((runs.c.study == study) & runs.c.superseded_by.is_(None))
        .order_by(runs.c.arm_order, runs.c.seed)
    ).all()
    if not rows:
        raise UsageError(f"there is no study (and no file) {study!r}; next: runner status")
    return [_recorded(connection, home, row) for row in rows], from_json(rows[0].arm_document).policy


def _recorded(connection: Connection, home: Home, row: Row[Any]) -> RecordedArm:
    arm = from_json(row.arm_document)
    joined = read_curves(connection, row.run)
    folder = home.root / row.run
    said = connection.execute(
        select(tables.events.c.step, tables.events.c.what)
        .where((tables.events.c.run == row.run) & tables.events.c.step.is_not(None))
        .order_by(tables.events.c.step, tables.events.c.id)
    )
    return RecordedArm(
        study=row.study,
        arm=f"{row.arm}-s{row.seed}",
        steps_total=row.steps_total,
        series=as_series(joined),
        primary=arm.primary,
        events=tuple(DeclaredEvent(step, what) for step, what in said),
        hours=_hours(joined),
        loss_name=(arm.metrics or {}).get("loss"),
        overridden=frozenset(row.overridden),
        eval_set=eval_set(folder),
        paired={} if arm.primary is None else paired_scores(folder, arm.primary.metric),
    )


def _hours(joined: Mapping[str, Joined]) -> dict[int, float]:
    """Hours of work up to each step of the fullest curve; the time between two attempts is none."""
    curve = max(joined.values(), key=lambda one: len(one.steps), default=None)
    if curve is None or not curve.steps:  # a new attempt may have cut off all that there was
        return {}
    passed_s, hours = 0.0, {curve.steps[0]: 0.0}
    for before, after in pairwise(range(len(curve.steps))):
        if curve.attempts[before] == curve.attempts[after]:
            passed_s += max(0.0, curve.times[after] - curve.times[before])
        hours[curve.steps[after]] = passed_s / SECONDS_PER_HOUR
    return hours


def eval_set(folder: Path) -> str:
    """What a run's validations were made on, as the trainer's own hash; empty when it says nothing, as command arms."""
    metas = sorted(folder.glob("validation/step_*/meta.json"))
    return str(json.loads(metas[-1].read_bytes()).get("eval_set", "")) if metas else ""


def paired_scores(folder: Path, metric: str) -> dict[int, dict[str, float]]:
    """Valid per-sample scores of a metric by step and sample, from the complete validations of a run."""
    prefix, _, name = metric.partition("/")
    if prefix not in PROTOCOLS:
        return {}
    weights, sampler = PROTOCOLS[prefix]
    found: dict[int, dict[str, float]] = {}
    for meta in sorted(folder.glob("validation/step_*/meta.json")):
        with (meta.parent / "scores.csv").open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if (row["weights"], row["sampler"], row["metric"], row["valid"]) == (weights, sampler, name, "1"):
                    sample = f"{row['sample_id']}/{row['eval_seed']}"
                    found.setdefault(int(row["step"]), {})[sample] = float(row["value"])
    return found
