"""Two runs side by side: what was asked of them, what they ran, where, and how they came out."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.commands.diff import diff
from runner.diff import Side, as_document, compare, render
from runner.errors import UsageError
from runner.home import Home
from runner.records import RunState
from tests.fakes.arms import trainer_arm
from tests.fakes.stored_study import StoredStudy

A = Side(
    name="trial/A-s0",
    id="0000000a",
    config={"study": "trial", "arm": "A", "title": "A", "seed": 0, "run": "0000000a", "trainer.optimizer.lr": 0.001,
            "trainer.steps": 100},
    code_hash="aa" * 32,
    files={"trainer/train.py": "1", "trainer/step.py": "2", "trainer/old.py": "3"},
    provenance={"commit": "1234567", "packages.torch": "2.13.0", "cores": 2, "code.hash": "aa", "arm_files": 1},
    outcome={"state": "finished", "step": 100, "last loss": 0.25},
)  # fmt: skip
B = dataclasses.replace(
    A,
    name="trial/B-s0",
    id="0000000b",
    config={**A.config, "arm": "B", "run": "0000000b", "trainer.optimizer.lr": 0.002, "trainer.repa.enabled": None},
    code_hash="bb" * 32,
    files={"trainer/train.py": "1", "trainer/step.py": "20", "trainer/new.py": "4"},
    provenance={**A.provenance, "commit": "89abcde", "packages.torch": "2.13.1", "code.hash": "bb"},
    outcome={"state": "failed(data)", "step": 40},
)


def test_everything_that_differs_is_listed_and_nothing_else() -> None:
    found = compare(A, B)
    assert [(entry.key, *entry.texts) for entry in found.config] == [
        ("trainer.optimizer.lr", "0.001", "0.002"),
        ("trainer.repa.enabled", "(not set)", "null"),
    ]
    assert (found.code.changed, found.code.only_a, found.code.only_b) == (
        ("trainer/step.py",), ("trainer/old.py",), ("trainer/new.py",),
    )  # fmt: skip
    assert [entry.key for entry in found.provenance] == ["commit", "packages.torch"]
    assert [(entry.key, *entry.texts) for entry in found.outcome] == [
        ("state", "finished", "failed(data)"), ("step", "100", "40"), ("last loss", "0.25", "(not set)"),
    ]  # fmt: skip


@pytest.mark.parametrize(("a", "b"), [(1, "1"), (True, "true"), (None, "null"), ([1], "[1]"), (1, 1.0)])
def test_values_that_look_alike_are_told_apart(a: Any, b: Any) -> None:
    (entry,) = compare(*(dataclasses.replace(A, config={"k": value}) for value in (a, b))).config
    assert entry.texts == (json.dumps(a), json.dumps(b))


def test_it_reads_well_at_80_columns() -> None:
    long = dataclasses.replace(B, config={**B.config, "command": ["python3", "x" * 200, "--lr", "0.002"]})
    assert '"0.002"]' in "".join(line.strip() for line in render(compare(A, long))), "long values are folded, not cut"
    lines = list(render(compare(A, long)))
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    assert text.startswith("A  trial/A-s0 (0000000a)\nB  trial/B-s0 (0000000b)\n\nconfiguration\n")
    assert "  trainer.optimizer.lr  0.001                        0.002\n" in text
    assert '  command\n    A (not set)\n    B ["python3", "xxx' in text
    assert "  changed    trainer/step.py\n  only in A  trainer/old.py\n  only in B  trainer/new.py\n" in text
    assert [line.split() for line in lines[-3:]] == [
        ["state", "finished", "failed(data)"], ["step", "100", "40"], ["last", "loss", "0.25", "-"],
    ]  # fmt: skip


def test_equal_runs_say_so_and_still_show_their_outcomes() -> None:
    found = compare(A, dataclasses.replace(A, id="0000000c", outcome={"state": "failed"}))
    assert found.is_empty
    text = "\n".join(render(found))
    assert "nothing differs: same configuration, same code, same environment" in text
    assert "state" in text
    assert not compare(A, B).is_empty


def test_another_seed_is_a_difference() -> None:
    seed = dataclasses.replace(A, name="trial/A-s1", config={**A.config, "seed": 1})
    found = compare(A, seed)
    assert [(entry.key, *entry.texts) for entry in found.config] == [("seed", "0", "1")]
    assert not found.is_empty
    text = "\n".join(render(found))
    assert "configuration\n  seed  0" in text
    assert "nothing differs" not in text
    assert as_document(found)["same"] is False


def test_frozen_code_that_is_gone_is_told_and_not_guessed() -> None:
    found = compare(A, dataclasses.replace(B, files=None)).code
    assert found.differs
    assert (found.changed, found.unknown) == ((), "the frozen copy of trial/B-s0 is not there")
    assert "  the frozen copy of trial/B-s0 is not there" in list(
        render(compare(A, dataclasses.replace(B, files=None)))
    )


def test_text_of_others_cannot_steer_the_terminal() -> None:
    evil = dataclasses.replace(B, config={"k\x1b[2J": "v\u202e\n"}, provenance={"c": "\x1b]0;x\x07"})
    text = "\n".join(render(compare(A, evil)))
    assert not {"\x1b", "\u202e", "\x07"} & set(text)


values = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=90), st.lists)
maps = st.dictionaries(st.text(min_size=1, max_size=60), values, max_size=5)


@given(maps, maps, st.integers(70, 130))
def test_whatever_differs_fits_the_width_and_nothing_differs_from_itself(
    one: dict[str, Any], other: dict[str, Any], width: int
) -> None:
    a, b = (dataclasses.replace(A, config=found, provenance=found, outcome=found) for found in (one, other))
    assert compare(a, a).is_empty
    forth, back = compare(a, b), compare(b, a)
    assert [entry.texts for entry in forth.config] == [entry.texts[::-1] for entry in back.config]
    assert all(len(line) <= width for line in render(forth, width))
    assert json.dumps(as_document(forth))


@pytest.fixture
def stored(tmp_path: Path) -> Iterator[StoredStudy]:
    found = StoredStudy(Home(tmp_path / "runs"))
    yield found
    found.close()


def two_runs(stored: StoredStudy) -> None:
    """Arm A finished, arm B with another rate and other code aborted on the way."""
    for name, lr, state, steps in (("A", 0.001, RunState.FINISHED, 100), ("B", 0.002, RunState.ABORTED, 60)):
        root = f".snapshots/{name}"
        (stored.home.root / root / "trainer" / "__pycache__").mkdir(parents=True)
        (stored.home.root / root / "trainer" / "step.py").write_text(f"print({lr})\n")
        (stored.home.root / root / "trainer" / "same.py").write_text("pass\n")
        (stored.home.root / root / "trainer" / "__pycache__" / f"{name}.pyc").write_text(name)
        run = stored.run(
            trainer_arm({"optimizer.lr": lr}, arm=name), state=state, rule="regress" if name == "B" else "",
            snapshot={"hash": name * 64, "root": root, "arm_dir": "."},
            provenance={"commit": "c" * 40, "hardware": {"gpus": [], "cores": 2}, "packages": {"numpy": f"2.{name}"}},
        )  # fmt: skip
        stored.attempt(run, 1)
        stored.points(run, 1, "val/loss", {step: lr * step for step in range(0, steps + 1, 20)})


def test_the_command_reads_two_runs_by_any_name(stored: StoredStudy, capsys: pytest.CaptureFixture[str]) -> None:
    two_runs(stored)
    assert diff(stored.home.root, "trial/A-s0", "00000002", as_json=False) == 0
    text = capsys.readouterr().out
    assert "trainer.optimizer.lr" in text
    assert "  changed    trainer/step.py\n" in text
    assert "packages.numpy" in text
    assert "pyc" not in text
    assert "same.py" not in text
    lines = [line.split() for line in text.partition("outcome\n")[2].splitlines()]
    assert ["state", "finished", "aborted(regress)"] in lines
    assert ["points", "6", "4"] in lines
    assert ["last", "val/loss", "0.1", "0.12"] in lines
    assert ["best", "val/loss", "0.02", "0.04"] in lines
    assert ["val/loss", "at", "step", "60", "0.06", "0.12"] in lines


def test_json_holds_the_same_and_non_finite_values_by_name(
    stored: StoredStudy, capsys: pytest.CaptureFixture[str]
) -> None:
    two_runs(stored)
    stored.points("trial/B-s0-00000002", 1, "val/loss", {80: math.inf})
    assert diff(stored.home.root, "trial/A-s0", "trial/B-s0", as_json=True) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["same"] is False
    assert document["config"] == [{"key": "trainer.optimizer.lr", "a": 0.001, "b": 0.002}]
    assert document["code"]["changed"] == ["trainer/step.py"]
    assert document["outcome"]["last val/loss"] == {"a": 0.1, "b": "inf"}


@pytest.mark.parametrize(
    ("resumed_from", "kind", "second", "points", "step"),
    [(None, "train", (2, 4, 6, 8), 4, 8), (4, "train", (6,), 3, 6), (None, "evaluate", (6, 7), 11, 20)],
    ids=["began anew", "went on", "evaluation"],
)
def test_steps_and_points_are_those_of_the_joined_curve(
    stored: StoredStudy,
    capsys: pytest.CaptureFixture[str],
    resumed_from: int | None,
    kind: str,
    second: tuple[int, ...],
    points: int,
    step: int,
) -> None:
    run = stored.run(trainer_arm())
    stored.attempt(run, 1)
    stored.points(run, 1, "val/loss", {at: 1.0 / at for at in range(2, 21, 2)})
    stored.attempt(run, 2, kind, resumed_from=resumed_from)
    stored.points(run, 2, "val/loss", {at: 2.0 / at for at in second})
    assert diff(stored.home.root, run, run, as_json=True) == 0
    outcome = json.loads(capsys.readouterr().out)["outcome"]
    shown = {key: outcome[key]["a"] for key in ("step", "last at step", "points", "attempts")}
    assert shown == {"step": step, "last at step": step, "points": points, "attempts": 2}


def test_runs_without_a_point_and_unknown_names(stored: StoredStudy, capsys: pytest.CaptureFixture[str]) -> None:
    stored.run(trainer_arm(), state=RunState.QUEUED)
    assert diff(stored.home.root, "trial/A-s0", "trial/A-s0", as_json=False) == 0
    assert "nothing differs" in capsys.readouterr().out
    with pytest.raises(UsageError, match="there is no run 'trial/Z-s0'"):
        diff(stored.home.root, "trial/A-s0", "trial/Z-s0", as_json=False)
