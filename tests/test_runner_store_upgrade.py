"""A kept database of the first schema, made by real runs of the version that had it, and what becomes of it.

It holds arms that finished, failed, were aborted, were stopped and taken up again from the start and from step 50. The
path of the interpreter in it was replaced; everything else is as it was written.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, select

from runner.errors import HomeError
from runner.home import Home
from runner.judge.best import best_point
from runner.lock import HomeLock
from runner.store import tables
from runner.store.curves import as_series, read_curves
from runner.store.database import REVISION, create_or_upgrade, reading, revision
from runner.store.status import home_status
from tests.fakes.others import as_nobody, open_to_others

KEPT = Path(__file__).parent / "data" / "home_0001.db"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    found = Home(tmp_path)
    shutil.copy(KEPT, found.database)
    found.database.chmod(0o600)
    return found


def rows(path: Path, query: str) -> list[Any]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(query).fetchall()


def test_a_reader_upgrades_an_older_home_and_every_best_is_there(home: Home) -> None:
    before = rows(home.database, "SELECT * FROM points ORDER BY series, step")
    document = home_status(home)
    runs = {f"{run['arm']}-s{run['seed']}": run for study in document["studies"] for run in study["runs"]}
    assert {
        name: (run["state"], run["primary"]["best_step"], run["primary"]["best"]) for name, run in runs.items()
    } == {
        "A-s0": ("finished", 100, 0.4),
        "B-s0": ("finished", 100, 0.4),
        "C-s0": ("finished", 100, 0.4),
        "D-s0": ("aborted(non_finite)", 200, 1.0),
        "E-s0": ("finished", 100, 0.4),
        "F-s0": ("finished", 100, 0.4),
        "F-s1": ("finished", 100, 0.4),
        "G-s0": ("failed(exit 1)", None, None),
    }
    assert (runs["F-s0"]["attempts"], runs["F-s0"]["rejected_lines"]) == (2, 2)
    assert revision(home.database) == REVISION
    assert home.database.stat().st_mode & 0o777 == 0o600
    assert rows(home.database, "SELECT * FROM points ORDER BY series, step") == before
    with reading(home) as connection:
        for row in connection.execute(select(tables.runs)):
            primary = row.arm_document["primary"]
            series = as_series(read_curves(connection, row.run, [primary["metric"]])).get(primary["metric"])
            best = None if series is None else best_point(series, primary["direction"], row.steps_total)
            assert (None if row.best_step is None else (row.best_step, row.best_value)) == best
            assert (row.priority, row.wave, row.retries_used) == (0, None, 0)


def test_an_upgraded_database_has_the_tables_of_this_version_and_a_copy_of_the_old_one_beside_it(home: Home) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    home_status(home)
    engine = create_engine(f"sqlite:///{home.database}")
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, tables.METADATA) == []
    engine.dispose()
    copy = home.root / f"runner.before-{REVISION}.db"
    assert revision(copy) == "0001"
    assert copy.stat().st_mode & 0o777 == 0o600
    for table in ("runs", "attempts", "points", "events", "verdicts", "files"):
        query = f"SELECT count(*) FROM {table}"
        assert rows(copy, query) == rows(KEPT, query)


def test_the_copy_holds_what_a_killed_controller_left_in_the_write_ahead_log(home: Home) -> None:
    writer = sqlite3.connect(home.database)
    writer.execute("PRAGMA journal_mode=WAL")
    writer.execute("PRAGMA wal_autocheckpoint=0")
    writer.execute("UPDATE runs SET reason = 'only in the log'")
    writer.commit()
    killed = Home(home.root / "killed")
    killed.root.mkdir()
    for name in ("runner.db", "runner.db-wal"):
        shutil.copy(home.root / name, killed.root / name)
    writer.close()
    home_status(killed)
    for path in (killed.database, killed.root / f"runner.before-{REVISION}.db"):
        assert rows(path, "SELECT DISTINCT reason FROM runs") == [("only in the log",)]


def test_an_upgrade_that_is_cut_off_leaves_the_old_database(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    from runner.store import best

    class Killed(BaseException):
        """Stands for a kill -9: nothing may catch it."""

    calls: list[str] = []

    def dies(_connection: object, run: str) -> None:
        calls.append(run)
        if len(calls) == 4:
            raise Killed

    tables_before = rows(home.database, "SELECT sql FROM sqlite_master ORDER BY name")
    monkeypatch.setattr(best, "find_best", dies)
    with pytest.raises(Killed):
        home_status(home)
    assert len(calls) == 4
    assert revision(home.database) == "0001"
    assert rows(home.database, "SELECT sql FROM sqlite_master ORDER BY name") == tables_before
    monkeypatch.undo()
    assert len(home_status(home)["studies"]) == 1


def test_a_home_in_which_somebody_is_at_work_is_left_alone(home: Home) -> None:
    before = home.database.read_bytes()
    lock = HomeLock(home.lock)
    assert lock.acquire()
    with pytest.raises(HomeError, match=r"runner\.db.*revision 0001.*controller is at work.*wait"):
        home_status(home)
    with pytest.raises(HomeError, match="controller is at work"), reading(home):
        pass
    assert home.database.read_bytes() == before
    lock.release()
    create_or_upgrade(home, lock)
    lock.release()
    assert revision(home.database) == REVISION


def test_a_home_that_may_not_be_written_is_named_with_what_to_do(home: Home) -> None:
    home.database.chmod(0o444)
    home.root.chmod(0o555)
    open_to_others(home.database)

    said = (str(home.database), "revision 0001", "copy", "--home")

    def is_refused() -> bool:
        try:
            home_status(home)
        except HomeError as error:
            return all(word in str(error) for word in said)
        return False

    assert as_nobody(is_refused)
    home.root.chmod(0o755)
    assert sorted(path.name for path in home.root.iterdir()) == ["runner.db"]


def test_the_commands_that_look_read_an_older_home(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    from runner.cli import run

    assert run(["status", "--json", "--home", str(home.root)]) == 0
    assert len(json.loads(capsys.readouterr().out)["studies"][0]["runs"]) == 8
