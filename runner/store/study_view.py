"""Builds the frozen view of a study that a report is made from: database rows and files of the run folders.

Nothing in it depends on when or where it is built, so that two reports of one state are the same, byte for byte.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, select

from reports.study import (
    AttemptView,
    Curve,
    EventView,
    LaunchView,
    LintView,
    NeighbourView,
    OriginView,
    PrimaryView,
    RunView,
    Score,
    StudyView,
    VerdictView,
)
from runner.errors import UsageError
from runner.home import Home
from runner.judge.best import best_point
from runner.spec.lint import lint
from runner.spec.models import ResolvedArm, document, from_json
from runner.store import tables
from runner.store.curves import as_series, read_curves
from runner.store.outbox import BY_THE_TRAINER
from runner.store.study_costs import study_costs
from runner.store.study_launches import command_line_sets, launches, own_changes, places, said


def build_study_view(connection: Connection, home: Home, study: str, now: float = 0.0) -> StudyView:
    """The study as it stands `now` (seconds since the epoch, for what is still rented). Raises UsageError when there is
    none of that name."""
    stored = connection.execute(select(tables.studies).where(tables.studies.c.study == study)).one_or_none()
    if stored is None:
        raise UsageError(f"there is no study {study!r}; next: runner status")
    runs = tables.runs
    rows = connection.execute(
        select(runs).where(runs.c.study == study).order_by(runs.c.arm_order, runs.c.seed, runs.c.created)
    ).all()
    primary = stored.document.get("primary")
    launched = launches(connection, rows)
    views = tuple(_run(connection, home, row, launched[row.run]) for row in rows if row.superseded_by is None)
    return StudyView(
        study=study,
        primary=None if primary is None else PrimaryView(**primary),
        policy=stored.document.get("policy", {}),
        runs=views,
        superseded=tuple(f"{row.id} ({row.arm}-s{row.seed})" for row in rows if row.superseded_by is not None),
        lint=(*(LintView(**finding) for finding in stored.lint), *_held_out_remarks(rows, views)),
        neighbours=tuple(_neighbours(connection, study)),
        events=tuple(_events(connection, (tables.events.c.study == study) & tables.events.c.run.is_(None))),
        costs=study_costs(connection, study, now),
    )


def _run(connection: Connection, home: Home, row: Row[Any], launch: LaunchView) -> RunView:
    arm = from_json(row.arm_document)
    curves = read_curves(connection, row.run)
    folder = home.root / row.run
    attempts = connection.execute(
        select(
            tables.attempts,
            tables.leases.c.host,
            tables.leases.c.provider,
            tables.leases.c.document.label("lease_document"),
        )
        .join(tables.leases, tables.leases.c.id == tables.attempts.c.lease)
        .where(tables.attempts.c.run == row.run)
        .order_by(tables.attempts.c.attempt)
    ).all()
    there, announced = places(connection, attempts), said(connection, row.run)
    state = f"{row.state}({row.rule})" if row.rule else row.state
    return RunView(
        run=row.id,
        arm=row.arm,
        seed=row.seed,
        generation=row.generation,
        title=arm.title,
        hypothesis=arm.hypothesis,
        baseline=arm.baseline,
        kind=arm.kind,
        changes=own_changes(arm),
        config=flatten(document(arm, row.seed, row.id)),
        state=state,
        reason=row.reason,
        health=row.health,
        step=max((curve.steps[-1] for curve in curves.values() if curve.steps), default=0),
        steps_total=row.steps_total or 0,
        points=sum(_counts(connection, row.run)),
        rejected_lines=sum(_rejected(connection, row.run)),
        curves={
            name: Curve(joined.steps, joined.values, joined.times, joined.attempts) for name, joined in curves.items()
        },
        scores=tuple(_scores(folder)),
        metas=_metas(folder),
        images=_images(folder),
        verdicts=tuple(_verdicts(connection, row.run)),
        attempts=tuple(_attempt(one, there[one.attempt], announced.get(one.attempt, {})) for one in attempts),
        events=tuple(_events(connection, tables.events.c.run == row.run)),
        provenance=row.provenance,
        best=_best(arm, curves, row.steps_total),
        parameters=None if arm.check is None else arm.check.parameters,
        flops_per_sample=None if arm.check is None else arm.check.flops_per_sample,
        code_hash=row.snapshot["hash"],
        overridden=tuple(row.overridden),
        autopsy=_autopsy(folder),
        parent=_origin(row, arm),
        sets=command_line_sets(arm),
        launch=launch,
    )


def _origin(row: Row[Any], arm: ResolvedArm) -> OriginView | None:
    """Where a rescued run comes from; the folder of that run ends in its name and its id."""
    if row.parent is None:
        return None
    label, _, identifier = row.parent.rpartition("/")[2].rpartition("-")
    return OriginView(identifier, label, row.initial_checkpoint["step"], tuple(arm.policy.rescue.changes.items()))


def _held_out_remarks(rows: Sequence[Row[Any]], views: Sequence[RunView]) -> Iterable[LintView]:
    """What only the validations of the runs could tell: held-out samples that were training samples. A rescued run has
    the data of the one it comes from, so that would say the same twice."""
    rows = [row for row in rows if row.superseded_by is None and row.parent is None]
    shared: dict[str, int] = {}
    for view in views:
        if view.parent is not None:
            continue
        counts = [int(meta.get("train_ids_overlap", 0)) for meta in view.metas.values()]
        arm = f"{rows[0].study}/{view.arm}"
        shared[arm] = max([shared.get(arm, 0), *counts])
    arms = {row.arm: from_json(row.arm_document) for row in rows}
    return (remark for remark in lint(list(arms.values()), training_ids_in_eval=shared) if remark.rule == "F05")


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested maps as dotted keys; lists and scalars are values. An empty map stays a value of its own."""
    if not isinstance(value, Mapping) or not value:
        return {prefix: value}
    found: dict[str, Any] = {}
    for key, inner in value.items():
        found.update(flatten(inner, f"{prefix}.{key}" if prefix else str(key)))
    return found


def _best(arm: ResolvedArm, curves: Mapping[str, Any], steps_total: int | None) -> tuple[int, float] | None:
    if arm.primary is None or arm.primary.metric not in curves:
        return None
    series = as_series({arm.primary.metric: curves[arm.primary.metric]})[arm.primary.metric]
    return best_point(series, arm.primary.direction, steps_total)


def _counts(connection: Connection, run: str) -> Iterable[int]:
    return connection.execute(select(tables.series.c.points).where(tables.series.c.run == run)).scalars()


def _rejected(connection: Connection, run: str) -> Iterable[int]:
    return connection.execute(select(tables.files.c.rejected).where(tables.files.c.run == run)).scalars()


def _verdicts(connection: Connection, run: str) -> Iterable[VerdictView]:
    rows = connection.execute(
        select(tables.verdicts).where(tables.verdicts.c.run == run).order_by(tables.verdicts.c.id)
    )
    for row in rows:
        if row.action == "none":
            continue
        # A warning and the stop that follows it come from one detector; the sentence says which of the two decided.
        decisive = next(
            (one for one in row.findings if (one["detector"], one["summary"]) == (row.rule, row.reason)), None
        )
        evidence = {} if decisive is None else decisive["evidence"]
        yield VerdictView(row.rule, row.action, row.step, row.reason, evidence, row.attempt)


def _attempt(row: Row[Any], place: Mapping[str, Any], announced: Mapping[str, Any]) -> AttemptView:
    ended = row.exit or {}
    return AttemptView(
        number=row.attempt, kind=row.kind, slot=row.slot["name"], shares_cores=row.slot["shares_cores"],
        started=row.started, ended=row.ended, cause=ended.get("cause", ""), exit_code=ended.get("code"),
        max_rss_mib=ended.get("max_rss_mib"), resumed_from=row.resumed_from, host=row.host,
        provider=row.provider, place=place, said=announced,
    )  # fmt: skip


def _neighbours(connection: Connection, study: str) -> Iterable[NeighbourView]:
    """Attempts of other studies and of superseded runs: they too kept a slot of their host busy."""
    rows = connection.execute(
        select(tables.leases.c.host, tables.attempts.c.started, tables.attempts.c.ended)
        .join(tables.attempts, tables.attempts.c.lease == tables.leases.c.id)
        .join(tables.runs, tables.runs.c.run == tables.attempts.c.run)
        .where((tables.runs.c.study != study) | tables.runs.c.superseded_by.is_not(None))
        .where(tables.attempts.c.started.is_not(None))
        .order_by(tables.attempts.c.started)
    )
    return (NeighbourView(row.host, row.started, row.ended) for row in rows)


def _events(connection: Connection, which: ColumnElement[bool]) -> Iterable[EventView]:
    rows = connection.execute(select(tables.events).where(which).order_by(tables.events.c.id))
    return (
        EventView(
            row.time, row.what, row.reason, row.step, row.id, announced=row.reason == BY_THE_TRAINER, lease=_lease(row)
        )
        for row in rows
    )  # fmt: skip


def _lease(row: Row[Any]) -> int | None:
    """The number of the rented machine that an event of a study is about."""
    found = row.data.get("lease") if row.run is None and isinstance(row.data, dict) else None
    return found if isinstance(found, int) else None


def _steps(folder: Path) -> Iterable[tuple[int, Path]]:
    """Complete validations of a run: step and folder."""
    for path in sorted(folder.glob("validation/step_*")):
        if path.name[5:].isdigit() and (path / "meta.json").is_file():
            yield int(path.name[5:]), path


def _metas(folder: Path) -> dict[int, Mapping[str, Any]]:
    return {step: json.loads((path / "meta.json").read_bytes()) for step, path in _steps(folder)}


def _scores(folder: Path) -> Iterable[Score]:
    for step, path in _steps(folder):
        with (path / "scores.csv").open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                valid = row["valid"] == "1"
                value = float(row["value"]) if valid else None
                yield Score(
                    step, row["weights"], row["sampler"], row["metric"], row["sample_id"], int(row["eval_seed"]),
                    value if value is not None and math.isfinite(value) else None, valid, row["reason"],
                )  # fmt: skip


def _autopsy(folder: Path) -> Mapping[str, Any] | None:
    """What the run's autopsy wrote, which may be anything when it was written elsewhere; None without one."""
    try:
        content = json.loads((folder / "autopsy" / "autopsy.json").read_bytes())
    except FileNotFoundError:
        return None
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _images(folder: Path) -> dict[tuple[int, str], Mapping[str, str]]:
    found: dict[tuple[int, str], Mapping[str, str]] = {}
    for step, path in _steps(folder):
        for variant in sorted(path.glob("images/*")):
            pictures = {picture.stem: str(picture) for picture in sorted(variant.glob("*.png"))}
            if pictures:
                found[step, variant.name] = pictures
    return found
