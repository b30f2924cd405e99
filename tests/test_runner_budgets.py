"""Budgets: when enough is enough, why, and what is left for the end."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import insert, update

from provisioning.base import Slot
from provisioning.ledger import Rate, Spent, Usage
from runner.budgets import (
    Account,
    Budget,
    Limit,
    Metered,
    accounts,
    budget_notes,
    budget_of,
    foreseen,
    left_s,
    meter,
    over_budget,
)
from runner.home import Home
from runner.lock import HomeLock
from runner.plan import Capacity, make_plan
from runner.schedule import BUDGET
from runner.spec.models import DEFAULT_BUDGET
from runner.spending import Spending
from runner.store import tables
from runner.store.facts import StoredRun, open_runs
from runner.store.session import Session
from runner.store.usage import read_usage
from tests.fakes.arms import command_arm
from tests.fakes.new_database import new_database

H = 3600.0
FREE = Rate()
UNLIMITED = Account()


def account(hours: float = 0.0, usd: float = 0.0, *live: Rate) -> Account:
    return Account(Spent(hours, usd), live)


def test_without_limits_nothing_is_ever_over() -> None:
    budget = budget_of(DEFAULT_BUDGET)
    assert not budget.is_limited
    assert over_budget(budget, account(1e9, 1e9), account(1e9, 1e9)) is None
    assert left_s(budget, account(1e9, 1e9), account(), FREE) is None


@pytest.mark.parametrize(
    ("budget", "run", "study", "reason"),
    [
        (
            Budget(run=Limit(max_hours=2.0)), account(1.9), account(),
            "the run has used 1.9 of 2 slot hours, 5 % of it kept back for the end (budget.run.max_hours)",
        ),
        (
            Budget(study=Limit(max_usd=10.0), reserve=0.2), account(), account(0.0, 8.25),
            "the study has used 8.25 of 10 USD, 20 % of it kept back for the end (budget.study.max_usd)",
        ),
        (
            Budget(run=Limit(max_usd=1.5), reserve=0.0), account(0.0, 1.5), account(),
            "the run has used 1.5 of 1.5 USD (budget.run.max_usd)",
        ),
        (Budget(run=Limit(max_hours=2.0)), account(1.89), account(), None),
        (Budget(run=Limit(max_hours=2.0), study=Limit(max_hours=4.0)), account(1.0), account(3.7), None),
    ],
)  # fmt: skip
def test_the_reason_names_the_limit_what_is_used_and_what_is_kept(
    budget: Budget, run: Account, study: Account, reason: str | None
) -> None:
    assert over_budget(budget, run, study) == reason


def test_a_study_looks_ahead_for_all_its_live_attempts_together() -> None:
    budget = Budget(study=Limit(max_hours=10.0, max_usd=None), reserve=0.0)
    assert over_budget(budget, account(), account(9.0, 0.0, FREE), ahead_s=H / 2) is None
    assert over_budget(budget, account(), account(9.0, 0.0, FREE, FREE), ahead_s=H / 2)
    paid = Budget(study=Limit(max_usd=10.0), reserve=0.0)
    assert over_budget(paid, account(), account(0.0, 9.0, Rate(1.0), FREE), ahead_s=H / 2) is None
    assert over_budget(paid, account(), account(0.0, 9.0, Rate(1.0), Rate(2.0, 0.5)), ahead_s=H / 2)


def test_the_reserve_is_what_the_end_may_take() -> None:
    budget = Budget(run=Limit(max_hours=2.0))
    assert left_s(budget, account(1.9), account(), FREE) == pytest.approx(360.0)
    assert left_s(budget, account(2.5), account(), FREE) == 0.0
    both = Budget(run=Limit(max_hours=2.0), study=Limit(max_usd=4.0))
    assert left_s(both, account(1.0), account(0.0, 3.9), Rate(2.0, 0.5)) == pytest.approx(360.0)
    assert left_s(both, account(1.0), account(0.0, 3.9), FREE) == pytest.approx(H)


def test_live_runs_share_what_is_left_of_their_study() -> None:
    budget = Budget(study=Limit(max_hours=10.0))
    assert left_s(budget, account(), account(9.5, 0.0, FREE, FREE), FREE) == pytest.approx(900.0)


limits = st.builds(Limit, st.none() | st.floats(0.01, 100.0), st.none() | st.floats(0.01, 100.0))
budgets = st.builds(Budget, limits, limits, st.floats(0.0, 0.9))
used = st.builds(Spent, st.floats(0.0, 200.0), st.floats(0.0, 200.0))


@given(budgets, used, used, st.floats(0.0, 60.0), st.floats(0.0, 60.0))
def test_looking_further_ahead_never_finds_more_room(
    budget: Budget, run: Spent, study: Spent, ahead_s: float, more_s: float
) -> None:
    near = over_budget(budget, Account(run, (FREE,)), Account(study, (FREE,)), ahead_s)
    far = over_budget(budget, Account(run, (FREE,)), Account(study, (FREE,)), ahead_s + more_s)
    assert far or not near


@given(budgets, used, used)
def test_while_there_is_room_the_reserve_is_left(budget: Budget, run: Spent, study: Spent) -> None:
    if budget.is_limited and over_budget(budget, Account(run), Account(study)) is None:
        rate = Rate(1.0)
        left = left_s(budget, Account(run), Account(study), rate)
        tightest = min(limit for limit in (*_values(budget.run), *_values(budget.study)) if limit is not None)
        assert left is not None
        assert left >= budget.reserve * tightest * H * (1 - 1e-9)


def _values(limit: Limit) -> tuple[float | None, float | None]:
    return limit.max_hours, limit.max_usd


def test_the_stored_study_has_the_last_word_on_its_limits() -> None:
    own = {"run": {"max_hours": 1.0, "max_usd": None}, "study": {"max_hours": 2.0, "max_usd": None}, "reserve": 0.1}
    amended = {"study": "s", "budget": {"study": {"max_hours": 5.0, "max_usd": 7.0}}}
    assert budget_of(own) == Budget(Limit(1.0), Limit(2.0), 0.1)
    assert budget_of(own, amended) == Budget(Limit(1.0), Limit(5.0, 7.0), 0.1)


def test_every_attempt_counts_for_its_run_and_its_study() -> None:
    attempts = [
        Metered("s", "s/a", 1, Usage(0.0, H, Rate(2.0))),
        Metered("s", "s/a", 2, Usage(2 * H, None, Rate(2.0, 0.5))),
        Metered("s", "s/b", 1, Usage(None)),
        Metered("t", "t/a", 1, Usage(0.0, 2 * H)),
    ]
    by_run, by_study = accounts(attempts, meter(attempts, now=3 * H))
    assert by_run["s/a"] == Account(Spent(2.0, 3.0), (Rate(2.0, 0.5),))
    assert by_run["s/b"] == Account(Spent(0.0, 0.0), ())
    assert by_study["s"] == by_run["s/a"]
    assert by_study["t"].spent == Spent(2.0, 0.0)


def test_a_clock_set_back_gives_no_time_back_and_charges_none() -> None:
    live = [Metered("s", "s/a", 1, Usage(1000.0))]
    first = meter(live, now=1600.0)
    second = meter(live, now=-5000.0, known_s=first, passed_s=10.0)
    ended = [Metered("s", "s/a", 1, Usage(1000.0, -5000.0))]
    assert (first, second) == ({("s/a", 1): 600.0}, {("s/a", 1): 610.0})
    assert meter(ended, now=-5000.0, known_s=second, passed_s=10.0) == second
    fresh = [Metered("s", "s/b", 1, Usage(1000.0, 400.0))]
    assert meter(fresh, now=0.0) == {("s/b", 1): 0.0}


def test_an_attempt_seen_for_the_first_time_is_not_charged_for_the_last_wait() -> None:
    assert meter([Metered("s", "s/a", 1, Usage(100.0))], now=100.0, known_s={}, passed_s=60.0) == {("s/a", 1): 0.0}


def test_a_plan_that_cannot_end_says_so() -> None:
    budget = Budget(run=Limit(max_hours=1.0), study=Limit(max_hours=10.0))
    assert foreseen(budget, "run", "s/a", 0.94 * H) is None
    assert foreseen(budget, "run", "s/a", 2 * H) == (
        "s/a: about 2 slot hours are needed and budget.run.max_hours is 1, 5 % of it kept back for the end: "
        "it will be stopped before its end"
    )
    assert "budget.study.max_hours is 10" in str(foreseen(budget, "study", "s", 10 * H))
    assert foreseen(Budget(), "run", "s/a", 1e9) is None


def test_a_launch_is_weighed_by_run_and_by_study() -> None:
    budget = {"run": {"max_hours": 1.0, "max_usd": None}, "study": {"max_hours": 2.0, "max_usd": None}, "reserve": 0.0}
    arms = [command_arm(arm=name, seeds=(0, 1), budget=budget) for name in ("A", "B")]
    plan = make_plan(arms, {arm.name: "0" * 64 for arm in arms}, capacity=Capacity(cpu_slots=2))
    hour_per_run = H / arms[0].steps
    assert budget_notes(arms, plan, {}) == ()
    assert budget_notes(arms, plan, {arms[0].name: hour_per_run}) == ()
    notes = budget_notes(arms, plan, {arms[0].name: hour_per_run, arms[1].name: 1.5 * hour_per_run})
    assert [note.split(" slot")[0] for note in notes] == [
        f"{arms[1].name}: about 1.5", f"{arms[0].study}: about 5",
    ]  # fmt: skip


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    home = Home(tmp_path / "runs")
    new_database(home)
    lock = HomeLock(home.lock)
    assert lock.acquire()
    found = Session(home.database, pid=os.getpid(), now=0.0)
    yield found
    found.close()
    lock.release()


GPU = {"name": "gpu0", "cores": [0], "gpu_uuids": ["a"], "gpu_indices": [0], "vram_mib": 1, "shares_cores": False}


def store_study(session: Session, budget: dict[str, Any], document: dict[str, Any] | None = None) -> None:
    """A study of one run on a host of 2 USD an hour."""
    with session.transaction() as connection:
        connection.execute(
            insert(tables.studies).values(study="s", document=document or {}, source="", lint=[], created=0.0)
        )
        connection.execute(
            insert(tables.leases).values(
                id=1, provider="vast", label="x", host="h", state="owned", price_usd_per_h=2.0, created=0.0
            )
        )
        connection.execute(
            insert(tables.runs).values(
                run="s/a", id="0" * 8, study="s", arm="a", seed=0, generation=1, arm_order=0, launch=1, identity="i",
                arm_document={"budget": budget}, snapshot={}, provenance={}, state="running", overridden=[],
                created=0.0, changed=0.0,
            )
        )  # fmt: skip


def store_attempt(session: Session, number: int, started: float, ended: float | None) -> None:
    with session.transaction() as connection:
        connection.execute(
            insert(tables.attempts).values(
                run="s/a", attempt=number, kind="train", phase="live", lease=1, slot=GPU, sync="pending",
                created=0.0, started=started, ended=ended,
            )
        )  # fmt: skip


def stored_runs(session: Session) -> tuple[StoredRun, ...]:
    with session.reading() as connection:
        return open_runs(connection)


def test_usage_is_read_with_the_price_of_its_lease(session: Session) -> None:
    store_study(session, dict(DEFAULT_BUDGET))
    store_attempt(session, 1, 1.0, 5.0)
    store_attempt(session, 2, 6.0, None)
    with session.reading() as connection:
        assert read_usage(connection, ["other"]) == ()
        alone = read_usage(connection, ["s"])
        shared = read_usage(connection, ["s"], {1: [Slot("gpu1", (1,), ("b",))]})
    assert alone == (
        Metered("s", "s/a", 1, Usage(1.0, 5.0, Rate(2.0))),
        Metered("s", "s/a", 2, Usage(6.0, None, Rate(2.0))),
    )
    assert [one.usage.rate for one in shared] == [Rate(2.0, 0.5)] * 2


def test_each_slot_of_a_rented_machine_pays_its_part(session: Session) -> None:
    """Four runs side by side cost what the machine costs, not four times as much."""
    store_study(session, dict(DEFAULT_BUDGET))
    store_attempt(session, 1, 1.0, 5.0)
    with session.transaction() as connection:
        connection.execute(update(tables.leases).values(slots_requested=4))
    with session.reading() as connection:
        (one,) = read_usage(connection, ["s"])
    assert one.usage.rate == Rate(2.0, 0.25)


def test_the_meter_runs_on_while_the_wall_clock_is_set_back(session: Session) -> None:
    store_study(session, {**DEFAULT_BUDGET, "run": {"max_hours": 1.0, "max_usd": None}})
    store_attempt(session, 1, 1000.0, None)
    wall, steady = [1000.0 + 0.9 * H], [0.0]
    spending = Spending(session, lambda: wall[0], lambda: steady[0])
    (run,) = stored_runs(session)
    spending.look([run])
    assert spending.reason(run) is None
    assert spending.left_s(run) == pytest.approx(0.1 * H)
    wall[0], steady[0] = 0.0, 0.06 * H
    spending.look([run])
    assert str(spending.reason(run)).startswith("the run has used 0.96 of 1 slot hours, 5 % of it kept back")
    assert spending.left_s(run) == pytest.approx(0.04 * H)
    overruled = replace(run, overridden=(BUDGET,))
    assert (spending.reason(overruled), spending.left_s(overruled)) == (None, None)


def test_limits_of_a_study_that_were_amended_hold_for_runs_of_before(session: Session) -> None:
    store_study(session, dict(DEFAULT_BUDGET), {"budget": {"study": {"max_hours": None, "max_usd": 1.0}}})
    store_attempt(session, 1, 0.0, 0.25 * H)
    store_attempt(session, 2, 0.25 * H, None)
    spending = Spending(session, lambda: 0.5 * H, lambda: 0.0)
    (run,) = stored_runs(session)
    spending.look([run])
    assert "1 of 1 USD" in str(spending.reason(run))


def test_without_limits_no_attempt_is_read(session: Session) -> None:
    store_study(session, dict(DEFAULT_BUDGET))
    store_attempt(session, 1, 0.0, None)
    spending = Spending(session, lambda: 1e9, lambda: 0.0)
    (run,) = stored_runs(session)
    spending.look([run])
    assert (spending.reason(run), spending.left_s(run)) == (None, None)
