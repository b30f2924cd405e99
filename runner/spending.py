"""Keeps the meter of a home: what its runs and studies have used of their budgets, looked at once a round."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlalchemy import select

from provisioning.base import Slot
from provisioning.ledger import Rate
from runner.budgets import Account, Budget, Key, accounts, budget_of, left_s, meter, over_budget
from runner.schedule import BUDGET
from runner.store import tables
from runner.store.facts import StoredRun
from runner.store.session import Session
from runner.store.usage import read_usage

AHEAD_S = 1.0
"""A round at its longest: what is used until the next look counts already."""


class Spending:
    """What the controller asks about budgets. Holds only what makes a clock that is set back harmless."""

    def __init__(self, session: Session, now: Callable[[], float], monotonic: Callable[[], float]) -> None:
        self._session = session
        self._now = now
        self._monotonic = monotonic
        self._looked_s: float | None = None
        self._known_s: Mapping[Key, float] = {}
        self._budgets: dict[str, Budget] = {}
        self._documents: dict[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {}
        self._by_run: dict[str, Account] = {}
        self._by_study: dict[str, Account] = {}

    def look(self, runs: Sequence[StoredRun], slots: Mapping[int, Sequence[Slot]] | None = None) -> None:
        """Count anew for the open runs; `slots` are all slots of a lease's host, needed where a host costs money."""
        studies = tables.studies
        names = sorted({run.study for run in runs})
        with self._session.reading() as connection:
            rows = connection.execute(select(studies.c.study, studies.c.document).where(studies.c.study.in_(names)))
            documents = {row.study: row.document for row in rows}
            self._budgets = {run.run: self._budget(run, documents[run.study]) for run in runs}
            limited = {run.study for run in runs if self._budgets[run.run].is_limited}
            attempts = read_usage(connection, sorted(limited), slots) if limited else ()
        monotonic_s = self._monotonic()
        passed_s = 0.0 if self._looked_s is None else monotonic_s - self._looked_s
        self._looked_s = monotonic_s
        self._known_s = meter(attempts, self._now(), self._known_s, passed_s)
        self._by_run, self._by_study = accounts(attempts, self._known_s)

    def reason(self, run: StoredRun) -> str | None:
        """Why this run must end, None while it may go on or when a person has overruled its budget."""
        budget = self._budgets.get(run.run, Budget())
        if BUDGET in run.overridden or not budget.is_limited:
            return None
        return over_budget(budget, self._run(run), self._study(run), AHEAD_S)

    def left_s(self, run: StoredRun, rate: Rate | None = None) -> float | None:
        """Seconds that are left for its last validation; None without a limit."""
        if BUDGET in run.overridden:
            return None
        return left_s(self._budgets.get(run.run, Budget()), self._run(run), self._study(run), rate or Rate())

    def _budget(self, run: StoredRun, study: Mapping[str, Any]) -> Budget:
        """The store hands out one object for one text, so the same objects say the same."""
        known = self._documents.get(run.run)
        if known is None or known[0] is not run.arm_document or known[1] is not study:
            self._documents[run.run] = (run.arm_document, study)
            return budget_of(run.arm_document["budget"], study)
        return self._budgets.get(run.run) or budget_of(run.arm_document["budget"], study)

    def _run(self, run: StoredRun) -> Account:
        return self._by_run.get(run.run, Account())

    def _study(self, run: StoredRun) -> Account:
        return self._by_study.get(run.study, Account())
