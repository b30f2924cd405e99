"""Keeps the meter of a home: what its runs and studies have used of their budgets, looked at once a round."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from provisioning.base import Slot
from provisioning.ledger import Rate
from runner.budgets import Account, Budget, Key, accounts, budget_of, left_s, meter, over_budget
from runner.schedule import BUDGET
from runner.store.facts import StoredRun
from runner.store.opening import driver_of, stored_document
from runner.store.session import Session
from runner.store.usage import read_usage

AHEAD_S = 1.0
"""A round at its longest: what is used until the next look counts already."""


@dataclass(frozen=True, slots=True)
class _Limits:
    """The budget of a run, None without a limit, and the documents it was read from: the store hands out one object for
    one text, so the same objects say the same."""

    arm: Mapping[str, Any]
    study: Mapping[str, Any]
    budget: Budget | None


class Spending:
    """What the controller asks about budgets. Holds only what makes a clock that is set back harmless."""

    def __init__(self, session: Session, now: Callable[[], float], monotonic: Callable[[], float]) -> None:
        self._session = session
        self._now = now
        self._monotonic = monotonic
        self._looked_s: float | None = None
        self._known_s: Mapping[Key, float] = {}
        self._limits: dict[str, _Limits] = {}
        self._by_run: dict[str, Account] = {}
        self._by_study: dict[str, Account] = {}

    def look(self, runs: Sequence[StoredRun], slots: Mapping[int, Sequence[Slot]] | None = None) -> None:
        """Count anew for the open runs; `slots` are all slots of a lease's host, needed where a host costs money."""
        with self._session.reading() as connection:
            stored = driver_of(connection).execute("SELECT study, document FROM studies").fetchall()
            documents = {study: stored_document(text) for study, text in stored}
            self._limits = {run.run: self._limits_of(run, documents[run.study]) for run in runs}
            limited = {run.study for run in runs if self._limits[run.run].budget is not None}
            attempts = read_usage(connection, sorted(limited), slots) if limited else ()
        monotonic_s = self._monotonic()
        passed_s = 0.0 if self._looked_s is None else monotonic_s - self._looked_s
        self._looked_s = monotonic_s
        self._known_s = meter(attempts, self._now(), self._known_s, passed_s)
        self._by_run, self._by_study = accounts(attempts, self._known_s)

    def reason(self, run: StoredRun) -> str | None:
        """Why this run must end, None while it may go on or when a person has overruled its budget."""
        budget = self._budget(run)
        if budget is None or BUDGET in run.overridden:
            return None
        return over_budget(budget, self._run(run), self._study(run), AHEAD_S)

    def left_s(self, run: StoredRun, rate: Rate | None = None) -> float | None:
        """Seconds that are left for its last validation; None without a limit."""
        if BUDGET in run.overridden:
            return None
        return left_s(self._budget(run) or Budget(), self._run(run), self._study(run), rate or Rate())

    def _budget(self, run: StoredRun) -> Budget | None:
        known = self._limits.get(run.run)
        return None if known is None else known.budget

    def _limits_of(self, run: StoredRun, study: Mapping[str, Any]) -> _Limits:
        known = self._limits.get(run.run)
        if known is not None and known.arm is run.arm_document and known.study is study:
            return known
        budget = budget_of(run.arm_document["budget"], study)
        return _Limits(run.arm_document, study, budget if budget.is_limited else None)

    def _run(self, run: StoredRun) -> Account:
        return self._by_run.get(run.run, Account())

    def _study(self, run: StoredRun) -> Account:
        return self._by_study.get(run.study, Account())
