"""The database: its schema, its guards, and points that are there exactly once, joined into one view."""

from __future__ import annotations

import math
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import create_engine, insert, select

from runner.errors import Fenced, HomeError, StoreTooNew
from runner.home import Home
from runner.ingest import Position, Taken
from runner.judge.best import best_point
from runner.lock import HomeLock, is_held
from runner.memory import CurveMemory
from runner.metric_formats import Record
from runner.records import AttemptKind, Health, RunState, Verdict
from runner.store import changes, requests, schema, tables, upgrade
from runner.store.curves import AttemptPoints, as_series, join, read_curves
from runner.store.database import REVISION, check_revision, create_or_upgrade, reading, revision
from runner.store.opening import driver_of
from runner.store.points import read_position, write_taken
from runner.store.session import Session
from runner.store.status import read_status
from tests.fakes.new_database import new_database
from tests.fakes.others import as_nobody, open_to_others


@pytest.fixture
def home(tmp_path: Path) -> Home:
    found = Home(tmp_path)
    new_database(found)
    return found


@pytest.fixture
def session(home: Home) -> Any:
    opened = Session(home.database, pid=1, now=1.0)
    yield opened
    opened.close()


def create(home: Home) -> None:
    lock = HomeLock(home.lock)
    create_or_upgrade(home, lock)
    lock.release()


def add_run(
    session: Session,
    run: str = "s/A-s0-00000001",
    state: RunState = RunState.QUEUED,
    document: dict[str, Any] | None = None,
    steps_total: int | None = None,
) -> str:
    with session.transaction() as connection:
        connection.execute(
            insert(tables.studies)
            .prefix_with("OR IGNORE")
            .values(study="s", document={}, source="a", lint=[], created=0.0)
        )
        connection.execute(
            insert(tables.runs).values(
                run=run, id=run[-8:], study="s", arm="A", seed=int(run[-1]), generation=1, arm_order=0, launch=1,
                identity="i", arm_document=document or {}, steps_total=steps_total, snapshot={}, provenance={},
                state=state, overridden=[], created=0.0,
                changed=0.0, health=Health.UNKNOWN,
            )
        )  # fmt: skip
    return run


def add_attempt(session: Session, run: str, number: int, resumed_from: int | None = None, kind: str = "train") -> None:
    with session.transaction() as connection:
        if not connection.execute(select(tables.leases)).first():
            connection.execute(
                insert(tables.leases).values(
                    id=1, provider="local", label="l", host="h", state="owned", price_usd_per_h=0.0, created=0.0
                )
            )
        changes.add_attempt(connection, run, number, AttemptKind(kind), 1, {"name": "cpu0"}, 1.0)
        changes.set_attempt(connection, run, number, resumed_from=resumed_from)


def taken(points: list[tuple[int, float]], name: str = "loss", path: str = "m", offset: int = 1) -> Taken:
    records = tuple(Record(step, {name: value}, 100.0 + step) for step, value in points)
    return Taken(records, Position(path, 7, offset))


def write(session: Session, run: str, attempt: int, what: Taken) -> Any:
    with session.transaction() as connection:
        return write_taken(connection, run, attempt, what, 5.0)


def test_the_migrations_make_exactly_the_tables_of_this_version(home: Home) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    engine = create_engine(f"sqlite:///{home.database}")
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, tables.METADATA) == []
        sql = connection.exec_driver_sql("SELECT sql FROM sqlite_master WHERE name = 'points'").scalar_one()
    engine.dispose()
    assert "WITHOUT ROWID" in sql
    assert revision(home.database) == REVISION
    assert home.database.stat().st_mode & 0o777 == 0o600


def test_a_database_of_a_newer_version_is_refused_and_left_alone(home: Home) -> None:
    with sqlite3.connect(home.database) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    before = home.database.read_bytes()
    with pytest.raises(StoreTooNew, match=r"runner\.db.*9999"):
        check_revision(home.database)
    with pytest.raises(StoreTooNew), reading(home):
        pass
    lock = HomeLock(home.lock)
    with pytest.raises(StoreTooNew):
        create_or_upgrade(home, lock)
    assert home.database.read_bytes() == before


@pytest.mark.parametrize("content", [b"this is no database" * 100, b"SQLite format 3\x00" + b"\xff" * 4000])
def test_a_damaged_database_is_named_and_left_alone(tmp_path: Path, content: bytes) -> None:
    home = Home(tmp_path)
    home.database.write_bytes(content)
    with pytest.raises(HomeError, match=r"runner\.db"):
        check_revision(home.database)
    assert home.database.read_bytes() == content


def killed(act: Callable[[], None]) -> bool:
    """Do something in a child of ours; whether it was killed on the way."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            act()
            code = 0
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, -signal.SIGKILL)
    return code != 0


def die(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def create_up_to(home: Home, statement: int) -> None:
    """Bring the database up to date, and die before one of the statements that this takes."""
    left = iter(range(statement))
    connect = upgrade._connect

    def watched(path: Path) -> sqlite3.Connection:
        connection = connect(path)
        connection.set_trace_callback(lambda _said: None if next(left, None) is not None else die())
        return connection

    upgrade._connect = watched
    create(home)


def tables_of(path: Path) -> list[Any]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY name").fetchall()


def points_of(path: Path) -> list[Any]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute("SELECT * FROM points ORDER BY series, step").fetchall()


@pytest.mark.parametrize("older", [False, True])
def test_a_database_whose_making_is_killed_at_any_statement_is_made_by_the_next_one(
    home: Home, tmp_path: Path, older: bool
) -> None:
    kept = Path(__file__).parent / "data" / "home_0001.db"
    begun, statement, deaths, stride = Home(tmp_path / "begun"), 0, 0, 5
    begun.root.mkdir()
    while True:
        for left in begun.root.iterdir():
            left.unlink()
        if older:
            shutil.copy(kept, begun.database)
        if not killed(lambda at=statement: create_up_to(begun, at)):
            break
        deaths += 1
        assert check_revision(begun.database) == ("0001" if older else None), "whole or not there at all"
        create(begun)
        assert tables_of(begun.database) == tables_of(home.database)
        assert points_of(begun.database) == (points_of(kept) if older else [])
        assert begun.database.stat().st_mode & 0o777 == 0o600
        backups = {f"runner.before-{REVISION}.db"} if older else set()
        assert {path.name for path in begun.root.iterdir()} == {"controller.lock", "runner.db"} | backups
        statement += stride
    assert deaths > (3 if older else 5)


@pytest.mark.parametrize("moment", ["before anything", "before it has its name", "when it has its name", "in the lock"])
def test_a_creation_that_is_killed_between_its_files_loses_nothing(tmp_path: Path, moment: str) -> None:
    home = Home(tmp_path)
    rename = Path.replace

    def act() -> None:
        if moment == "before anything":
            upgrade.upgrade = die  # type: ignore[assignment]
        elif moment == "before it has its name":
            Path.replace = die  # type: ignore[assignment,method-assign]
        elif moment == "when it has its name":
            Path.replace = lambda *paths: (rename(*paths), die())  # type: ignore[assignment,method-assign]
        else:
            schema.check_revision = die  # type: ignore[assignment]
        create(home)

    assert killed(act)
    is_there = moment == "when it has its name"
    assert check_revision(home.database) == (REVISION if is_there else None)
    if not is_there:
        with pytest.raises(HomeError, match="there is no database here"), reading(home):
            pass
    inode = home.database.stat().st_ino if is_there else None
    create(home)
    assert inode in (None, home.database.stat().st_ino), "what was whole is kept"
    assert {path.name for path in home.root.iterdir()} == {"controller.lock", "runner.db"}
    session = Session(home.database, pid=1, now=1.0)
    assert session.epoch == 1
    session.close()


@pytest.mark.parametrize("left", ["runner.part", "runner.part-journal"])
def test_what_a_power_failure_left_of_a_creation_is_no_beginning(tmp_path: Path, left: str) -> None:
    home = Home(tmp_path)
    (home.root / left).write_bytes(b"neither a page nor a journal" * 200)
    create(home)
    assert check_revision(home.database) == REVISION
    assert {path.name for path in home.root.iterdir()} == {"controller.lock", "runner.db"}


def test_a_controller_that_is_killed_at_its_first_words_to_a_new_database_leaves_it_whole(home: Home) -> None:
    def act() -> None:
        opened = Session(home.database, pid=1, now=1.0)
        with opened.transaction() as connection:
            changes.add_event(connection, 1.0, "x", "was never committed")
            die()

    assert killed(act)
    session = Session(home.database, pid=2, now=2.0)
    assert session.epoch == 2
    with session.reading() as connection:
        assert connection.execute(select(tables.events)).all() == []
    session.close()


def test_a_read_only_home_can_still_be_read(home: Home, session: Session) -> None:
    add_run(session)
    session.close()
    connection = sqlite3.connect(home.database)
    connection.execute("PRAGMA journal_mode=DELETE")
    connection.close()
    for path in home.root.iterdir():
        path.chmod(0o444)
    home.root.chmod(0o555)
    open_to_others(home.database)

    def read() -> str:
        with reading(home) as connection:
            return str(connection.execute(select(tables.runs.c.run)).scalar_one())

    assert as_nobody(read)
    home.root.chmod(0o755)


def test_an_older_controller_can_no_longer_write(home: Home, session: Session) -> None:
    newer = Session(home.database, pid=2, now=2.0)
    with pytest.raises(Fenced), session.transaction() as connection:
        changes.add_event(connection, 1.0, "x", "must not be there")
    with newer.transaction() as connection:
        assert connection.execute(select(tables.events)).all() == []
    newer.close()


def test_the_lock_is_held_by_one_and_released_by_death(home: Home) -> None:
    first, second = HomeLock(home.lock), HomeLock(home.lock)
    assert first.acquire()
    assert not second.acquire()
    assert is_held(home.lock)
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    first.release()
    assert not is_held(home.lock)
    pid = os.fork()
    if pid == 0:
        other = HomeLock(home.lock)
        os._exit(0 if other.acquire() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert second.acquire()
    second.release()


def test_a_state_change_is_an_event_and_an_illegal_one_is_refused(session: Session) -> None:
    run = add_run(session)
    with session.transaction() as connection:
        changes.move_run(connection, run, RunState.PLACED, "slot cpu0", 3.0)
    with pytest.raises(AssertionError, match="no legal move"), session.transaction() as connection:
        changes.move_run(connection, run, RunState.FINISHED, "jump", 4.0)
    with session.reading() as connection:
        assert connection.execute(select(tables.runs.c.state)).scalar_one() == "placed"
        assert [row.reason for row in connection.execute(select(tables.events))] == ["slot cpu0"]


def test_repeats_are_ignored_and_contradictions_are_counted(session: Session) -> None:
    run = add_run(session)
    add_attempt(session, run, 1)
    assert write(session, run, 1, taken([(1, 1.0), (2, math.nan), (3, math.inf)])).points == 3
    again = write(session, run, 1, taken([(1, 1.0), (2, math.nan), (3, math.inf), (4, 4.0)], offset=2))
    assert (again.points, again.contradicted) == (1, 0)
    wrong = write(session, run, 1, taken([(1, 9.0), (5, 5.0), (5, 6.0)], offset=3))
    assert (wrong.points, wrong.contradicted) == (1, 2)
    with session.reading() as connection:
        curve = read_curves(connection, run)["loss"]
        assert read_position(connection, run, 1, "m").rejected == 2
        assert connection.execute(select(tables.series.c.points)).scalar_one() == 5
    assert curve.steps == (1, 2, 3, 4, 5)
    assert curve.values[0] == 1.0
    assert math.isnan(curve.values[1])
    assert curve.values[2:] == (math.inf, 4.0, 5.0)


def test_points_and_offset_are_one_transaction(session: Session) -> None:
    run = add_run(session)
    add_attempt(session, run, 1)
    with pytest.raises(ZeroDivisionError), session.transaction() as connection:
        _ = write_taken(connection, run, 1, taken([(1, 1.0)], offset=50), 5.0).points / 0
    with session.reading() as connection:
        assert read_curves(connection, run) == {}
        assert read_position(connection, run, 1, "m") == Position("m")


def test_a_file_shared_by_attempts_is_read_on_where_the_earlier_one_ended(session: Session) -> None:
    run = add_run(session)
    add_attempt(session, run, 1)
    add_attempt(session, run, 2)
    write(session, run, 1, taken([(1, 1.0)], offset=42))
    with session.reading() as connection:
        assert read_position(connection, run, 2, "m").offset == 42
        assert read_position(connection, run, 2, "other").offset == 0


def test_a_resumed_attempt_replaces_what_came_after_its_start() -> None:
    first = AttemptPoints(1, 0, {step: (float(step), 0.0) for step in range(0, 60, 10)})
    second = AttemptPoints(2, 30, {30: (-1.0, 0.0), 40: (4.5, 0.0), 20: (-1.0, 0.0)})
    joined = join([first, second])
    assert joined.steps == (0, 10, 20, 30, 40)
    assert joined.values == (0.0, 10.0, 20.0, 30.0, 4.5)
    assert joined.attempts == (1, 1, 1, 1, 2)
    restarted = join([first, AttemptPoints(2, 0, {1: (7.0, 0.0)})])
    assert restarted.steps == (0, 1)
    cut_short = join([AttemptPoints(1, 0, {10: (1.0, 0.0)}), AttemptPoints(2, 30, {30: (3.0, 0.0)})])
    assert cut_short.steps == (10, 30)


def test_an_evaluation_adds_what_is_missing_and_cuts_nothing(session: Session) -> None:
    run = add_run(session)
    add_attempt(session, run, 1)
    add_attempt(session, run, 2, kind="evaluate")
    write(session, run, 1, taken([(100, 1.0), (200, 2.0)]))
    write(session, run, 2, taken([(100, 9.0), (150, 1.5)], path="n"))
    with session.reading() as connection:
        curve = read_curves(connection, run)["loss"]
    assert (curve.steps, curve.values) == ((100, 150, 200), (1.0, 1.5, 2.0))


@given(
    st.lists(
        st.tuples(
            st.integers(0, 20),
            st.lists(st.tuples(st.integers(0, 40), st.sampled_from([0.0, 1.0, 2.0, math.inf])), max_size=12),
            st.sampled_from(["train", "train", "evaluate"]),
        ),
        min_size=1,
        max_size=4,
    ),
    st.sampled_from(["min", "max"]),
    st.sampled_from([None, 20, 100]),
)
def test_memory_and_the_kept_best_equal_the_stored_view(
    attempts: list[tuple[int, list[tuple[int, float]], str]], direction: str, steps_total: int | None
) -> None:
    import tempfile

    def check() -> None:
        with session.reading() as connection:
            view = as_series(read_curves(connection, run))
            assert memory.series(connection, run) == view
            row = connection.execute(select(tables.runs.c.best_step, tables.runs.c.best_value)).one()
        best = best_point(view["loss"], direction, steps_total) if "loss" in view else None
        assert (None if row.best_step is None else tuple(row)) == best

    with tempfile.TemporaryDirectory() as folder:
        home = Home(Path(folder))
        new_database(home)
        session = Session(home.database, pid=1, now=1.0)
        document = {"primary": {"metric": "loss", "direction": direction, "select": "best"}}
        run = add_run(session, document=document, steps_total=steps_total)
        memory = CurveMemory()
        for number, (resumed_from, points, kind) in enumerate(attempts, 1):
            add_attempt(session, run, number, kind="train" if number == 1 else kind)
            memory.forget(run)
            check()
            for index in range(0, len(points), 3):
                part = taken(points[index : index + 3], path=f"m{number}")
                written = write(session, run, number, part)
                memory.add(run, number, written.fresh)
                check()
                if number > 1 and index == 3:  # it announces its start only now
                    with session.transaction() as connection:
                        changes.set_attempt(connection, run, number, resumed_from=resumed_from)
                    memory.forget(run)
                    check()
        session.close()


@pytest.mark.parametrize("column", ["steps_total", "arm_document"])
def test_a_change_of_the_budget_or_of_the_primary_finds_the_best_anew(session: Session, column: str) -> None:
    document = {"primary": {"metric": "loss", "direction": "min"}}
    run = add_run(session, document=document, steps_total=10)
    add_attempt(session, run, 1)
    write(session, run, 1, taken([(1, 1.0), (10, 2.0), (20, 3.0)]))
    other = {"steps_total": 100, "arm_document": {"primary": {"metric": "loss", "direction": "max"}}}[column]
    with session.transaction() as connection:
        changes.set_run(connection, run, **{column: other})
        row = connection.execute(select(tables.runs.c.best_step, tables.runs.c.best_value)).one()
    assert tuple(row) == {"steps_total": (10, 2.0), "arm_document": (20, 3.0)}[column]


def test_the_earlier_value_holds_whatever_shape_its_record_has(session: Session) -> None:
    run = add_run(session)
    add_attempt(session, run, 1)
    records = (
        Record(1, {"loss": 1.0, "rate": 0.1}, 1.0), Record(2, {"loss": 2.0}, 2.0),
        Record(2, {"rate": 0.2, "loss": 5.0}), Record(3, {"loss": 3.0}, math.nan),
        Record(1, {"loss": 1.0}, 9.0),
    )  # fmt: skip
    written = write(session, run, 1, Taken(records, Position("m", 7, 1)))
    assert (written.points, written.contradicted) == (5, 1)
    with session.reading() as connection:
        curves = read_curves(connection, run)
    assert (curves["loss"].steps, curves["loss"].values) == ((1, 2, 3), (1.0, 2.0, 3.0))
    assert curves["loss"].times == (1.0, 2.0, 5.0)  # the last one told no time that could be one
    assert (curves["rate"].steps, curves["rate"].times) == ((1, 2), (1.0, 5.0))


def test_a_part_of_a_transaction_is_undone_alone_and_the_rest_is_kept(session: Session) -> None:
    def fail() -> None:
        with session.transaction() as inner:
            changes.add_event(inner, 1.0, "undone", "x")
            with session.reading() as connection:
                assert len(connection.execute(select(tables.events)).all()) == 2
            raise ZeroDivisionError

    with session.transaction() as outer:
        changes.add_event(outer, 1.0, "kept", "before")
        with pytest.raises(ZeroDivisionError):
            fail()
        with session.transaction() as inner:
            changes.add_event(inner, 1.0, "kept", "after")
    with session.reading() as connection:
        assert [row.reason for row in connection.execute(select(tables.events))] == ["before", "after"]
        with pytest.raises(AssertionError, match="while something is being read"), session.transaction():
            pass


def test_nothing_is_written_to_a_home_that_was_replaced(home: Home, session: Session) -> None:
    home.database.rename(home.root / "elsewhere.db")
    with pytest.raises(HomeError, match=r"runner\.db.*deleted or replaced"), session.transaction():
        pass
    (home.root / "runner.db").touch()
    with pytest.raises(HomeError, match="deleted or replaced"), session.transaction():
        pass


def test_a_status_reads_no_point_and_loads_no_more_than_the_driver(home: Home, session: Session) -> None:
    run = add_run(session, document={"primary": {"metric": "loss", "direction": "min"}})
    add_attempt(session, run, 1)
    write(session, run, 1, taken([(1, 3.0), (2, 1.0), (3, math.nan)]))
    refused: list[str] = []

    def guard(_action: int, table: str | None, *_rest: Any) -> int:
        if table == "points":
            refused.append(table)
        return sqlite3.SQLITE_DENY if table == "points" else sqlite3.SQLITE_OK

    with reading(home) as connection:
        driver_of(connection).set_authorizer(guard)
        ((entry,),) = [study["runs"] for study in read_status(connection, 1.0)["studies"]]
    assert refused == []
    assert entry["primary"] == {"name": "loss", "value": "nan", "best": 1.0, "best_step": 2}
    assert (entry["step"], entry["points"], entry["latest"]) == (3, 3, {"loss": "nan"})
    code = (
        "import sys\nfrom pathlib import Path\nfrom runner.home import Home\n"
        "from runner.store.status import home_status\n"
        "document = home_status(Home(Path(sys.argv[1])))\n"
        "print(len(document['studies'][0]['runs']), sorted({'sqlalchemy', 'pydantic', 'alembic'} & set(sys.modules)))"
    )
    root = Path(__file__).parents[1]
    argv = [sys.executable, "-c", code, str(home.root)]
    done = subprocess.run(argv, cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout == "1 []\n"


def test_requests_are_answered_once(home: Home, session: Session) -> None:
    number = requests.ask(home, "stop", {"runs": []})
    with session.transaction() as connection:
        (request,) = requests.pending(connection)
        changes.answer(connection, request.id, True, "done", 1.0)
        changes.answer(connection, request.id, False, "twice", 2.0)
        assert requests.pending(connection) == ()
    with reading(home) as connection:
        assert requests.read_answer(connection, number) == requests.Answer(True, "done")


def test_a_request_of_another_version_is_refused_and_does_not_stop_the_controller(home: Home, session: Session) -> None:
    from runner.accept import Accept
    from runner.places import Places

    number = requests.ask(home, "prune", {})
    with session.reading() as connection:
        (request,) = requests.pending(connection)
    Accept(session, home, Places(session, {}, lambda: 1.0), lambda: 1.0)(request)
    with reading(home) as connection:
        answer = requests.read_answer(connection, number)
    assert answer == requests.Answer(False, "prune: not in this version")


def test_verdicts_keep_words_where_json_has_no_number(session: Session) -> None:
    from runner.records import Finding, Severity

    run = add_run(session)
    finding = Finding("non_finite", Severity.ABORT, 7, "loss is nan", {"value": math.nan, "before": [1.0, math.inf]})
    verdict = Verdict(Health.DIVERGED, "abort", "non_finite", "loss is nan", (finding,), {"loss": 7})
    with session.transaction() as connection:
        changes.add_verdict(connection, run, 1, verdict, 1.0)
        row = connection.execute(select(tables.verdicts)).one()
        assert row.findings[0]["evidence"] == {"value": "nan", "before": [1.0, "inf"]}
        assert connection.execute(select(tables.runs.c.health)).scalar_one() == "diverged"
