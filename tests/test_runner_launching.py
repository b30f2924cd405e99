"""What stands between a launch and its first run: disk, a newer database, unfair comparisons, earlier launches."""

from __future__ import annotations

import shutil
import sqlite3
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runner.cli import run as runner
from runner.commands.check import BRIEF_RUNS, print_plan
from runner.errors import HomeError, NotInThisVersion, SpecError, UsageError
from runner.home import Home
from runner.launching import Options, commit, prepare, ready_database, refuse_unfair
from runner.spec import read_study_arms
from tests.fakes.lab import ROOT, Lab
from tests.fakes.stored_study import StoredStudy

LIMIT = "budget.study.max_usd"
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    found = Lab(tmp_path, draws_reports=False)
    yield found
    found.clean_up()


def test_a_full_disk_is_refused_before_anything_starts(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = prepare(Home(lab.home), [lab.arm("talker")], Options())
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 10**9, 2**20))
    with pytest.raises(HomeError, match=rf"{lab.home}: .* only 1 MiB are free.*nothing was started"):
        commit(prepared)
    assert list(lab.home.iterdir()) == []


def test_preparing_writes_nothing(lab: Lab) -> None:
    prepared = prepare(Home(lab.home), [lab.arm("talker")], Options())
    assert [run.sentence for run in prepared.plan.runs] == ["starts"]
    assert not lab.home.exists()


def test_every_command_refuses_a_database_from_the_future(lab: Lab) -> None:
    arm = lab.arm("talker")
    lab.home.mkdir()
    ready_database(Home(lab.home))
    connection = sqlite3.connect(lab.home / "runner.db")
    connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.commit()
    connection.close()
    for arguments in (["launch", str(arm)], ["status"], ["resume"]):
        refused = lab.run(*arguments, code=3)
        assert f"{lab.home}/runner.db" in refused.stderr
        assert "9999" in refused.stderr


def test_a_provider_of_a_later_version_and_no_slots_are_refused(lab: Lab) -> None:
    arm = lab.arm("talker")
    with pytest.raises(NotInThisVersion, match="slurm"):
        prepare(Home(lab.home), [arm], Options(provider="slurm"))
    with pytest.raises(UsageError, match="at least one slot"):
        prepare(Home(lab.home), [arm], Options(slots=0))


def test_an_unfair_comparison_is_refused_until_a_reason_is_given(lab: Lab) -> None:
    arm = lab.folder / "dead.yaml"
    base = ROOT / "arms" / "base" / "quickstart.yaml"
    arm.write_text(f"extends: {base}\narm: A\nchanges: {{trainer.tread.ratio: 0.25}}\n")
    unfair = prepare(Home(lab.home), [arm], Options())
    with pytest.raises(UsageError, match=r"F17.*tread.*--allow F17="):
        refuse_unfair(unfair)
    refuse_unfair(prepare(Home(lab.home), [arm], Options(allow=("F17=a test of a dead switch",))))
    assert lab.run("launch", arm, code=2).stderr.startswith("runner: F17")
    assert not lab.home.exists()


def test_a_launch_of_hundreds_names_the_first_and_counts_the_others(
    lab: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared = prepare(Home(lab.home), [lab.arm("many", seeds=list(range(50)))], Options(slots=2))
    print_plan(prepared, brief=True)
    shown = capsys.readouterr().out
    assert shown.count("  starts\n") == BRIEF_RUNS
    assert f"… and {50 - BRIEF_RUNS} more runs; `runner check` lists them all" in shown
    print_plan(prepared)
    assert capsys.readouterr().out.count("  starts") == 50


def test_what_is_not_frozen_is_said_once_for_arms_of_one_code(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    first = lab.arm("a")
    for name in "uvwxyz":
        (first.parent / f"part_{name}" / "__pycache__").mkdir(parents=True)
        (first.parent / f"part_{name}" / "__init__.py").write_text("")
    second = first.with_name("b.yaml")
    second.write_text(first.read_text().replace('"arm": "a"', '"arm": "b"'))
    print_plan(prepare(Home(lab.home), [first, second], Options()))
    arms, caches = [line for line in capsys.readouterr().out.splitlines() if "left out" in line]
    assert arms == "  left out: a.yaml, b.yaml (an arm file)"
    assert caches.startswith("  left out: part_u/__pycache__, part_v/__pycache__, ")
    assert caches.endswith(" and 2 more (a cache or version control)")


def test_a_hook_that_cannot_be_started_is_told_before_anything_runs(
    lab: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    notify = {"command": ["no-such-program"]}
    prepared = prepare(Home(lab.home), [lab.arm("a", notify=notify), lab.arm("b", notify=notify)], Options())
    print_plan(prepared, brief=True)
    assert capsys.readouterr().out.count("there is no program no-such-program on PATH") == 1
    working = prepare(Home(lab.home), [lab.arm("a", notify={"command": ["true"]})], Options())
    assert working.notice_notes == ()


# ---- what a study may cost, at its first launch and later ------------------------------------------------------------


def stored_with(lab: Lab, limit: str, **keys: Any) -> Path:
    """An arm of a study that was launched with a limit."""
    path = lab.arm("A", **keys)
    stored = StoredStudy(Home(lab.home))
    stored.run(read_study_arms([path], [f"{LIMIT}={limit}"])[0])
    stored.close()
    return path


def limit_of(lab: Lab, path: Path, **options: Any) -> float | None:
    (arm,) = prepare(Home(lab.home), [path], Options(**options)).arms
    found: float | None = arm.budget["study"]["max_usd"]
    return found


@pytest.mark.parametrize("amend", [False, True])
def test_a_launch_that_says_nothing_of_the_limit_keeps_that_of_the_study(lab: Lab, amend: bool) -> None:
    assert limit_of(lab, stored_with(lab, "10"), amend=amend) == 10.0


def test_another_limit_is_refused_by_its_own_name_until_it_is_amended(lab: Lab) -> None:
    path = stored_with(lab, "10")
    with pytest.raises(SpecError) as refused:
        limit_of(lab, path, max_usd=0.9)
    said = str(refused.value)
    assert said.startswith("--max-usd: 0.9 USD, and the stored study lab may cost 10 USD; allowed: --amend to move")
    assert "--set" not in said
    assert str(path) not in said
    assert limit_of(lab, path, max_usd=10.0) == 10.0
    assert limit_of(lab, path, max_usd=0.9, amend=True) == 0.9


def test_a_limit_for_a_study_that_was_stored_without_one(lab: Lab) -> None:
    path = stored_with(lab, "null")
    assert limit_of(lab, path) is None
    with pytest.raises(SpecError, match=r"--max-usd: 5 USD, and the stored study lab has no limit; .*--amend"):
        limit_of(lab, path, max_usd=5.0)


def test_a_limit_is_named_by_who_asked_for_it(lab: Lab) -> None:
    path = stored_with(lab, "10", budget={"study": {"max_usd": 7.0}})
    with pytest.raises(SpecError, match=rf"^{path}:1: {LIMIT}: 7 USD, and the stored study lab may cost 10 USD"):
        limit_of(lab, path)
    with pytest.raises(SpecError, match=rf"^--set: {LIMIT}: 8 USD, and the stored study"):
        limit_of(lab, path, sets=(f"{LIMIT}=8",))
    with pytest.raises(SpecError, match=r"^--max-usd: .*-5.*above 0|^--max-usd: .*-5"):
        limit_of(lab, path, max_usd=-5.0)


def test_a_limit_is_taken_away_in_so_many_words_only(lab: Lab) -> None:
    path = stored_with(lab, "10")
    away = (f"{LIMIT}=null",)
    with pytest.raises(SpecError, match="no limit is asked for, and the stored study lab may cost 10 USD"):
        limit_of(lab, path, sets=away)
    assert limit_of(lab, path, sets=away, amend=True) is None


def test_other_keys_of_the_study_must_still_be_the_stored_ones(lab: Lab) -> None:
    path = stored_with(lab, "10")
    with pytest.raises(SpecError, match=r"resources\.colocate"):
        limit_of(lab, path, sets=("resources.colocate=off",))


# ---- options that another place of runs has --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "option",
    [
        ("--gpu", "A"), ("--max-usd-per-h", "1"), ("--hours", "1"), ("--disk-gb", "50"), ("--traffic-up-gb", "1"),
        ("--traffic-down-gb", "1"), ("--reliability", "0.9"), ("--cuda", "12"), ("--inet-down-mbit", "1"),
        ("--inet-up-mbit", "1"), ("--image", "a/b:1"), ("--unverified",), ("--datacenter",), ("--interruptible",),
        ("--bid-usd-per-h", "1"), ("--allow-upload", "a.txt"),
    ],
    ids=lambda option: str(option[0]),
)  # fmt: skip
def test_an_option_of_rented_machines_is_not_ignored(
    lab: Lab, option: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    code = runner([*map(str, ("launch", lab.arm("A"), *option)), "--home", str(lab.home)])
    said = capsys.readouterr().err
    assert code == 2
    assert said.startswith(f"runner: {option[0]}: only for a rented machine, which needs --provider vast; ")
    assert "this is --provider local (nothing was started)" in said
    assert not lab.home.exists()
