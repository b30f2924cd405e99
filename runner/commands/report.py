"""`runner report STUDY`: the frozen view of a study, handed to the reports room, written into the home."""

from __future__ import annotations

import time
from pathlib import Path

from reports.write import write
from runner.home import find_home
from runner.naming import find_study
from runner.store.database import reading
from runner.store.queries import read_named_runs, require_home
from runner.store.study_view import build_study_view


def report(home_path: Path | None, name: str) -> int:
    """Write the report and print its path."""
    home = find_home(home_path)
    require_home(home)
    study = find_study(name, read_named_runs(home))
    with reading(home) as connection:
        view = build_study_view(connection, home, study, time.time())
    print(write(view, home.report(study)))
    return 0
