"""The door for notebooks: a study as columns that pandas, polars or plain Python take as they are. Reads only."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from sqlalchemy import Connection, select

from runner.errors import UsageError
from runner.home import Home
from runner.naming import find_study
from runner.spec.models import document, from_json
from runner.store import tables
from runner.store.database import check_revision, reading
from runner.store.queries import named_runs
from runner.store.study_view import flatten
from runner.study_tables import COLUMNS, rows_of

Columns = dict[str, tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class Study:
    """One study at one moment. Every table is a dict of equally long columns: `pandas.DataFrame(study.points)`.

    `name` is the study's, `folder` its place, `primary` the full name of its ranking metric (None without one).
    Times are seconds since the epoch, memory is MiB; a value may be nan or inf; what has structure is JSON text.
    A table is a fresh dict each time, so changing one changes nothing here.
    """

    name: str
    folder: Path
    primary: str | None
    _tables: Mapping[str, Mapping[str, tuple[Any, ...]]] = field(repr=False)
    _configs: Mapping[str, Mapping[str, Any]] = field(repr=False)

    @property
    def runs(self) -> Columns:
        """One row a run, older generations included: arm, seed, state, steps, last and best of the primary."""
        return dict(self._tables["runs"])

    @property
    def attempts(self) -> Columns:
        """One row a process: where and when it ran and how it ended."""
        return dict(self._tables["attempts"])

    @property
    def points(self) -> Columns:
        """Every metric sample of the newest generations: run, attempt, name, step, value, time."""
        return dict(self._tables["points"])

    @property
    def events(self) -> Columns:
        """The history: state changes, announcements of the trainer, warnings."""
        return dict(self._tables["events"])

    @property
    def verdicts(self) -> Columns:
        """What the judge concluded, with its findings."""
        return dict(self._tables["verdicts"])

    @property
    def configs(self) -> dict[str, dict[str, Any]]:
        """Run id -> its resolved configuration in dotted keys."""
        return {run: dict(config) for run, config in self._configs.items()}


def load_study(path: str | os.PathLike[str], *, names: Collection[str] | None = None) -> Study:
    """The study whose folder in a home is `path`, for example runs/portrait-quickstart; a live one as it stands now.

    `names` keeps only the points of these metrics: every point is held in memory. Raises UsageError when there is no
    such study, HomeError when the database cannot be read.
    """
    folder = Path(os.path.abspath(path))
    if isinstance(names, str):
        raise UsageError(f"names={names!r}: a list of metric names is wanted, for example names=[{names!r}]")
    home = Home(folder.parent)
    if check_revision(home.database) is None:
        inside = " (this is a home; name one of its studies)" if Home(folder).database.exists() else ""
        raise UsageError(f"{folder}: no study lies here, because {home.database} is not there{inside}")
    with reading(home) as connection:
        name = find_study(folder.name, named_runs(connection))
        return _read(connection, home, name, names)


def _read(connection: Connection, home: Home, name: str, names: Collection[str] | None) -> Study:
    studies, runs = tables.studies, tables.runs
    stored = connection.execute(select(studies.c.document).where(studies.c.study == name)).scalar_one()
    rows = connection.execute(select(runs.c.id, runs.c.seed, runs.c.arm_document).where(runs.c.study == name))
    primary = stored.get("primary")
    return Study(
        name=name,
        folder=home.root / name,
        primary=None if primary is None else primary["metric"],
        _tables=MappingProxyType({table: _columns(connection, name, table, names) for table in COLUMNS}),
        _configs=MappingProxyType(
            {row.id: flatten(document(from_json(row.arm_document), row.seed, row.id)) for row in rows}
        ),
    )


def _columns(
    connection: Connection, study: str, table: str, names: Collection[str] | None
) -> Mapping[str, tuple[Any, ...]]:
    columns: dict[str, list[Any]] = {name: [] for name in COLUMNS[table]}
    appends = [column.append for column in columns.values()]
    for row in rows_of(connection, study, table, names):
        for append, value in zip(appends, row, strict=True):
            append(value)
    return MappingProxyType({name: tuple(values) for name, values in columns.items()})
