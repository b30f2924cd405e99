"""`runner export STUDY`: its tables as CSV files, streamed, without figures and without waiting for the study's end."""

from __future__ import annotations

import csv
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from sqlalchemy import Connection

from runner.errors import EXIT_OK, InfrastructureError
from runner.home import find_home
from runner.naming import find_study
from runner.store.database import reading
from runner.store.queries import read_named_runs, require_home
from runner.study_tables import COLUMNS, Values, rows_of


def export(home_path: Path | None, name: str, out: Path | None) -> int:
    """Write runs.csv, attempts.csv, points.csv, events.csv and verdicts.csv, and print their paths.

    They go to `out`, or to the folder `export` of the study. All of them show one moment of the study.
    """
    home = find_home(home_path)
    require_home(home)
    study = find_study(name, read_named_runs(home))
    folder = out or home.root / study / "export"
    with reading(home) as connection:
        written = write_tables(connection, study, folder)
    print("\n".join(map(str, written)))
    return EXIT_OK


def write_tables(connection: Connection, study: str, folder: Path) -> list[Path]:
    """Write every table of a study into `folder` and return the files.

    All are made in a hidden folder first; each then replaces its predecessor atomically, so a failure leaves what was
    there. Raises InfrastructureError when the folder cannot be written.
    """
    staging: Path | None = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".export-", dir=folder))
        for table, columns in COLUMNS.items():
            _write(staging / f"{table}.csv", columns, rows_of(connection, study, table))
        for table in COLUMNS:
            os.replace(staging / f"{table}.csv", folder / f"{table}.csv")
    except OSError as error:
        place = error.filename or folder
        raise InfrastructureError(
            f"{place}: the tables cannot be written: {error.strerror}; earlier ones in {folder} are as they were"
        ) from error
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)
    return [folder / f"{table}.csv" for table in COLUMNS]


def _write(path: Path, columns: Iterable[str], rows: Iterable[Values]) -> None:
    # Strings from hosts may hold lone surrogates, which have no UTF-8 form. The writer itself keeps every bit of a
    # float, writes nan, inf and -inf by these names and leaves None empty, exactly as the data files of a report.
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)
