"""What would rent a machine once more asks first; what costs nothing never does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runner.commands.rent_again import confirm_rent
from runner.errors import UsageError
from runner.home import Home
from runner.naming import find_run
from runner.records import RunState
from runner.spec.models import DEFAULT_BUDGET, ResolvedArm
from runner.store.queries import read_named_runs
from tests.fakes.arms import command_arm
from tests.fakes.stored_study import StoredStudy


@pytest.fixture
def stored(tmp_path: Path) -> Iterator[StoredStudy]:
    found = StoredStudy(Home(tmp_path / "runs"))
    yield found
    found.close()


def ended(stored: StoredStudy, arm: ResolvedArm | None = None, **values: Any) -> Any:
    run = stored.run(arm or command_arm(), state=RunState.FAILED, **values)
    return find_run(run.rpartition("-")[2], read_named_runs(stored.home))


def test_a_rented_machine_is_not_rented_again_without_a_yes(
    stored: StoredStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = ended(stored, provider="vast", wanted={"key": "k", "max_usd": 5.0})
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    with pytest.raises(UsageError, match=r"5 USD in all; to agree without a terminal: --yes \(nothing was rented\)"):
        confirm_rent(stored.home, run, yes=False)
    confirm_rent(stored.home, run, yes=True)


def test_the_limit_that_is_named_is_the_one_in_force(stored: StoredStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    limited = {**DEFAULT_BUDGET, "study": {"max_hours": None, "max_usd": 12.5}}
    run = ended(stored, command_arm(budget=limited), provider="vast", wanted={"key": "k", "max_usd": 5.0})
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    with pytest.raises(UsageError, match=r"its study may cost 12\.5 USD in all"):
        confirm_rent(stored.home, run, yes=False)


@pytest.mark.parametrize(("word", "is_yes"), [("y\n", True), ("n\n", False), ("\n", False)])
def test_a_person_at_a_terminal_is_asked(
    stored: StoredStudy, monkeypatch: pytest.MonkeyPatch, word: str, is_yes: bool
) -> None:
    run = ended(stored, provider="vast", wanted={"key": "k", "max_usd": 5.0})
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("typer.confirm", lambda _text, default: word.strip() == "y" or default)
    if is_yes:
        confirm_rent(stored.home, run, yes=False)
        return
    with pytest.raises(UsageError, match="nothing was rented"):
        confirm_rent(stored.home, run, yes=False)


@pytest.mark.parametrize("provider", ["local", "ssh"])
def test_what_costs_nothing_is_not_asked_about(stored: StoredStudy, provider: str) -> None:
    confirm_rent(stored.home, ended(stored, provider=provider), yes=False)
