"""A study as tables: the Python door and the CSV export say what the report says, and hold little while they do."""

from __future__ import annotations

import csv
import io
import json
import math
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import runner
from reports.tables import points_csv
from runner.commands.export import export, write_tables
from runner.door import load_study
from runner.errors import InfrastructureError, UsageError
from runner.home import Home
from runner.records import Finding, Health, RunState, Severity, Verdict
from runner.store import changes
from runner.store.curves import AttemptPoints, join
from runner.store.database import reading
from runner.store.study_view import build_study_view
from runner.study_tables import COLUMNS, joined_points, rows_of
from tests.fakes.arms import command_arm
from tests.fakes.lab import Lab
from tests.fakes.others import as_nobody, open_to_others
from tests.fakes.stored_study import StoredStudy, with_primary

ROOT = Path(__file__).resolve().parent.parent
ODD = 'he said "0,5", then\nleft'


@pytest.fixture
def stored(tmp_path: Path) -> Iterator[StoredStudy]:
    found = StoredStudy(Home(tmp_path / "runs"))
    yield found
    found.close()


def a_resumed_study(stored: StoredStudy) -> tuple[str, str]:
    """Arm A in two attempts and an evaluation, arm B superseded by a second B; a verdict, events, odd text."""
    arm = with_primary(command_arm(steps=6, title=f"{ODD} \udc80"))
    a = stored.run(arm, state=RunState.FAILED, reason=ODD, rule="data")
    stored.attempt(a, 1, started=10.0, ended=20.0, exit={"cause": "exited", "code": 65, "max_rss_mib": 12})
    stored.points(a, 1, "loss", {0: 9.0, 1: 8.0, 2: 7.0, 3: math.inf, 4: 1.0})
    stored.attempt(a, 2, resumed_from=2)
    stored.points(a, 2, "loss", {2: 5.0, 3: 0.1 + 0.2, 5: math.nan})
    stored.attempt(a, 3, kind="evaluate")
    stored.points(a, 3, "loss", {3: 0.5, 4: 0.25})
    stored.points(a, 3, "val/loss", {4: -math.inf})
    old = stored.run(command_arm(arm="B"), superseded_by="00000003")
    stored.attempt(old, 1)
    stored.points(old, 1, "loss", {1: 1.0})
    b = stored.run(command_arm(arm="B"), generation=2, state=RunState.RUNNING)
    finding = Finding("explosion", Severity.WARN, 3, "it rose", {"ratio": math.inf})
    with stored.session.transaction() as connection:
        verdict = Verdict(health=Health.WARNED, action="warn", rule="explosion", findings=(finding,))
        changes.add_verdict(connection, a, 1, verdict, 15.0)
        changes.add_event(connection, 15.0, "verdict:warn", ODD, study="trial", run=a, attempt=1, step=3)
        changes.add_event(connection, 16.0, "evaluate", "no study is written here", run=a, data={"limit_s": 900})
        changes.add_event(connection, 17.0, "amended", "of the whole study", study="trial")
        changes.add_event(connection, 18.0, "amended", "of another study", study="elsewhere")
    return a, b


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_points_are_those_of_the_report_to_the_last_byte(stored: StoredStudy, tmp_path: Path) -> None:
    a_resumed_study(stored)
    with reading(stored.home) as connection:
        write_tables(connection, "trial", tmp_path / "out")
        view = build_study_view(connection, stored.home, "trial")
    assert (tmp_path / "out" / "points.csv").read_text() == points_csv(view)
    loss = [row for row in rows(tmp_path / "out" / "points.csv") if row["name"] == "loss"]
    assert [(row["attempt"], row["step"], row["value"]) for row in loss] == [
        ("1", "0", "9.0"), ("1", "1", "8.0"), ("1", "2", "7.0"), ("2", "3", repr(0.1 + 0.2)), ("3", "4", "0.25"),
        ("2", "5", "nan"),
    ]  # fmt: skip


attempts_of_a_run = st.lists(
    st.tuples(st.sampled_from([None, 0, 0, 1, 3, 5]), st.dictionaries(st.integers(0, 7), st.integers(0, 9))),
    min_size=1,
    max_size=5,
)


@given(attempts_of_a_run)
def test_streaming_joins_attempts_as_the_one_view_does(runs: list[tuple[int | None, dict[int, int]]]) -> None:
    """None stands for an evaluation, which cuts nothing off."""
    starts = {number: 2**62 if start is None else start for number, (start, _) in enumerate(runs, 1)}
    parts = [AttemptPoints(n, starts[n], {s: (float(v), float(n)) for s, v in found.items()})
             for n, (_, found) in enumerate(runs, 1)]  # fmt: skip
    whole = join(parts)
    streams = [[(step, part.attempt, *part.points[step]) for step in sorted(part.points)] for part in parts]
    expected = list(zip(whole.steps, whole.attempts, whole.values, whole.times, strict=True))
    assert list(joined_points(streams, starts)) == expected


def test_the_other_tables_cover_every_generation_in_a_fixed_order(stored: StoredStudy, tmp_path: Path) -> None:
    a_resumed_study(stored)
    with reading(stored.home) as connection:
        first = [path.read_bytes() for path in write_tables(connection, "trial", tmp_path / "out")]
        second = [path.read_bytes() for path in write_tables(connection, "trial", tmp_path / "out")]
    assert first == second
    found = {table: rows(tmp_path / "out" / f"{table}.csv") for table in COLUMNS}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(f"{table}.csv" for table in COLUMNS)
    runs = found["runs"]
    assert [(row["arm"], row["generation"], row["superseded_by"]) for row in runs] == [
        ("A", "1", ""), ("B", "1", "00000003"), ("B", "2", ""),
    ]  # fmt: skip
    a = runs[0]
    assert (a["title"], a["reason"]) == (f"{ODD} \\udc80", ODD)
    assert (a["state"], a["rule"], a["step"], a["last_step"], a["last"]) == ("failed", "data", "5", "5", "nan")
    assert (a["best_step"], a["best"], a["attempts"], a["points"]) == ("4", "0.25", "3", "11")
    assert [row["kind"] for row in found["attempts"]] == ["train", "train", "evaluate", "train"]
    assert (found["attempts"][0]["host"], found["attempts"][0]["exit_code"]) == ("box", "65")
    assert [row["event"] for row in found["events"]] == ["verdict:warn", "evaluate", "amended"]
    assert json.loads(found["events"][1]["data"]) == {"limit_s": 900}
    assert json.loads(found["verdicts"][0]["findings"])[0]["evidence"] == {"ratio": "inf"}


def test_a_study_that_cannot_be_written_leaves_the_earlier_tables(stored: StoredStudy, tmp_path: Path) -> None:
    a_resumed_study(stored)
    out = tmp_path / "out"
    with reading(stored.home) as connection:
        write_tables(connection, "trial", out)
        before = {path.name: path.read_bytes() for path in out.iterdir()}
        out.chmod(0o555)
        open_to_others(out / "runs.csv")

        def attempt() -> str:
            with pytest.raises(InfrastructureError, match="cannot be written: Permission denied"):
                write_tables(connection, "trial", out)
            return "refused"

        assert as_nobody(attempt)
    out.chmod(0o755)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_an_export_holds_a_few_rows_of_however_many_points(stored: StoredStudy, tmp_path: Path) -> None:
    run = stored.run(command_arm())
    stored.attempt(run, 1)
    stored.points(run, 1, "loss", {step: step / 3 for step in range(40_000)})
    with reading(stored.home) as connection:
        tracemalloc.start()
        count = sum(1 for _ in rows_of(connection, "trial", "points"))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert count == 40_000
    # All points at once are above 10 MiB; what is left is the reading of a few thousand rows.
    assert peak < 3 * 2**20


def test_the_door_gives_columns_and_nothing_can_be_changed_through_them(stored: StoredStudy) -> None:
    a_resumed_study(stored)
    study = runner.load_study(stored.home.root / "trial")
    assert (study.name, study.primary, study.folder) == ("trial", "loss", stored.home.root / "trial")
    for table, columns in COLUMNS.items():
        found = getattr(study, table)
        assert tuple(found) == columns
        assert len({len(column) for column in found.values()}) == 1
        found.clear()
        assert tuple(getattr(study, table)) == columns
    assert study.points["step"] == (0, 1, 2, 3, 4, 5, 4)
    assert study.points["value"][6] == -math.inf
    assert math.isnan(study.points["value"][5])
    assert study.configs["00000001"]["steps"] == 6
    study.configs["00000001"].clear()
    assert study.configs["00000001"]
    with pytest.raises(AttributeError):
        study.name = "other"  # type: ignore[misc]


def test_the_door_reads_only_the_metrics_that_are_named(stored: StoredStudy) -> None:
    a_resumed_study(stored)
    only = load_study(stored.home.root / "trial", names=["val/loss"])
    assert only.points["name"] == ("val/loss",)
    assert load_study(stored.home.root / "TRIAL").name == "trial"
    with pytest.raises(UsageError, match=r"a list of metric names is wanted.*\['loss'\]"):
        load_study(stored.home.root / "trial", names="loss")


def test_a_wrong_path_is_named_with_what_would_be_right(stored: StoredStudy, tmp_path: Path) -> None:
    stored.run(command_arm())
    with pytest.raises(UsageError, match="there is no study 'trail'; studies: trial"):
        load_study(stored.home.root / "trail")
    with pytest.raises(UsageError, match=r"no study lies here.*this is a home"):
        load_study(stored.home.root)
    with pytest.raises(UsageError, match=r"no study lies here, because .*runner\.db is not there$"):
        load_study(tmp_path / "nowhere" / "x")


@pytest.mark.skipif(find_spec("pandas") is None, reason="pandas is no dependency; its half of the door needs it")
def test_pandas_takes_every_table_as_it_is(stored: StoredStudy) -> None:
    import pandas

    a_resumed_study(stored)
    study = load_study(stored.home.root / "trial")
    frame = pandas.DataFrame(study.points)
    assert list(frame.columns) == list(COLUMNS["points"])
    assert str(frame["value"].dtype) == "float64"
    assert [len(pandas.DataFrame(getattr(study, table))) for table in COLUMNS] == [3, 4, 7, 3, 1]


def test_importing_runner_loads_nothing_else() -> None:
    code = (
        "import sys, runner\nassert callable(runner.load_study)\n"
        "heavy = ('runner.', 'sqlalchemy', 'pydantic', 'yaml', 'rich')\n"
        "print([name for name in sys.modules if name.startswith(heavy)])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_live_study_is_read_and_exported_while_its_controller_works(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lab = Lab(tmp_path, draws_reports=False)
    lab.run("launch", lab.arm("A", steps=400), "--detach")
    try:
        run = lab.until(lambda: (found := lab.status().get("A-s0")) and found["step"] >= 5 and found, "five steps")
        early = load_study(lab.home / "lab")
        assert export(lab.home, "lab", None) == 0
        lab.until_state("A-s0", "finished")
        late = load_study(lab.home / "lab")
    finally:
        lab.clean_up()
    assert early.points["step"] == tuple(range(1, len(early.points["step"]) + 1))
    assert late.points["step"] == tuple(range(1, 401))
    assert late.points["value"][: len(early.points["value"])] == early.points["value"]
    assert late.runs["run"] == (run["run"],)
    assert late.runs["state"] == ("finished",)
    exported = csv.reader(io.StringIO((lab.home / "lab" / "export" / "points.csv").read_text()))
    assert tuple(next(exported)) == COLUMNS["points"]
    assert len(list(exported)) >= len(early.points["step"])
    assert capsys.readouterr().out.splitlines()[-1] == str(lab.home / "lab" / "export" / "verdicts.csv")
