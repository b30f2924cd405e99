"""`runner diff A B`: reads two runs from the home and prints what differs between them. Changes nothing."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Row, func, select

from runner.diff import Side, as_document, compare, render
from runner.errors import EXIT_OK
from runner.home import Home, find_home
from runner.judge.best import best_point
from runner.naming import NamedRun, find_run
from runner.spec.models import document, from_json
from runner.store import tables
from runner.store.changes import json_ready
from runner.store.curves import Joined, as_series, read_curves
from runner.store.database import reading
from runner.store.queries import read_named_runs, require_home
from runner.store.study_view import flatten

WIDEST = 120


def diff(home_path: Path | None, name_a: str, name_b: str, *, as_json: bool) -> int:
    """Print the comparison of two runs, as text or as one JSON document."""
    home = find_home(home_path)
    require_home(home)
    known = read_named_runs(home)
    runs = [find_run(name, known) for name in (name_a, name_b)]
    with reading(home) as connection:
        rows = [_row(connection, run) for run in runs]
        curves = [_primary_curve(connection, row) for row in rows]
        ends = _shared(*curves)
        sides = [_side(connection, home, *one) for one in zip(runs, rows, ends, strict=True)]
    found = compare(*sides)
    if as_json:
        print(json.dumps(json_ready(as_document(found)), allow_nan=False))
    else:
        width = min(WIDEST, shutil.get_terminal_size((80, 24)).columns)
        print("\n".join(render(found, width)))
    return EXIT_OK


def _row(connection: Connection, run: NamedRun) -> Row[Any]:
    return connection.execute(select(tables.runs).where(tables.runs.c.run == run.run)).one()


def _side(connection: Connection, home: Home, run: NamedRun, row: Row[Any], primary: Mapping[str, Any]) -> Side:
    code_hash = row.snapshot["hash"]
    return Side(
        name=run.path,
        id=run.id,
        config=flatten(document(from_json(row.arm_document), row.seed, row.id)),
        code_hash=code_hash,
        files=_files(home.root / row.snapshot["root"]),
        provenance=flatten(row.provenance),
        outcome={**_outcome(connection, row), **primary},
    )


def _outcome(connection: Connection, row: Row[Any]) -> dict[str, Any]:
    attempts = connection.execute(
        select(func.count()).select_from(tables.attempts).where(tables.attempts.c.run == row.run)
    ).scalar_one()
    points, step = _extent(connection, row.run, attempts)
    return {
        "state": f"{row.state}({row.rule})" if row.rule else row.state,
        "health": row.health,
        "step": step,
        "steps_total": row.steps_total,
        "attempts": int(attempts),
        "points": points,
    }


def _extent(connection: Connection, run: str, attempts: int) -> tuple[int, int]:
    """(points, last step) of the joined curves; what a later attempt began anew does not count.

    A single attempt joins nothing, so its rows of `series` say it all. Otherwise one metric is read at a time, because
    a run may have more points than should be in memory at once.
    """
    series = tables.series
    columns = (series.c.name, func.sum(series.c.points), func.max(series.c.last_step))
    rows = connection.execute(select(*columns).where(series.c.run == run).group_by(series.c.name))
    found = {name: (int(points), int(last)) for name, points, last in rows}
    if attempts > 1:
        curves = ((name, read_curves(connection, run, [name])[name]) for name in found)
        found = {name: (len(curve.steps), max(curve.steps, default=0)) for name, curve in curves}
    return sum(points for points, _ in found.values()), max((last for _, last in found.values()), default=0)


def _primary_curve(connection: Connection, row: Row[Any]) -> tuple[Row[Any], str | None, Joined | None]:
    primary = row.arm_document.get("primary")
    metric = None if primary is None else primary["metric"]
    return row, metric, None if metric is None else read_curves(connection, row.run, [metric]).get(metric)


def _shared(
    a: tuple[Row[Any], str | None, Joined | None], b: tuple[Row[Any], str | None, Joined | None]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What each side's primary came to: last, best, and both at the last step that they have in common."""
    common = set(a[2].steps) & set(b[2].steps) if a[1] == b[1] and a[2] is not None and b[2] is not None else set()
    step = max(common, default=None)
    return _primary(*a, step), _primary(*b, step)


def _primary(row: Row[Any], metric: str | None, curve: Joined | None, common: int | None) -> dict[str, Any]:
    if metric is None or curve is None or not curve.steps:
        return {}
    series = as_series({metric: curve})[metric] if not metric.startswith(("sys/", "memory/")) else None
    best = None if series is None else best_point(series, row.arm_document["primary"]["direction"], row.steps_total)
    found: dict[str, Any] = {f"last {metric}": curve.values[-1], "last at step": curve.steps[-1]}
    if best is not None:
        found |= {f"best {metric}": best[1], "best at step": best[0]}
    if common is not None:
        found[f"{metric} at step {common}"] = curve.values[curve.steps.index(common)]
    return found


def _files(root: Path) -> dict[str, str] | None:
    """SHA-256 of every file of a frozen copy; what Python compiled beside it is not part of it."""
    if not root.is_dir():
        return None
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }
