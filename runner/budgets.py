"""Budgets: what runs and studies have used, when that is enough, and what is left for the end. Pure.

A limit is in slot hours (one slot for one hour, whatever it is) or US dollars. A share of every limit, `reserve`, is
kept back for the checkpoint, the last validation and what else must happen after the training.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from provisioning.ledger import Rate, Spent, Usage, affordable_s, spent, used_s
from runner.plan import Plan
from runner.spec.models import ResolvedArm

Key = tuple[str, int]
"""(run, attempt)."""

NOTHING_SPENT = Spent()


@dataclass(frozen=True, slots=True)
class Limit:
    """Slot hours and US dollars; None = no limit."""

    max_hours: float | None = None
    max_usd: float | None = None


@dataclass(frozen=True, slots=True)
class Budget:
    """The limits of one run and of its study, and the share (0 to below 1) of both that is kept back."""

    run: Limit = Limit()
    study: Limit = Limit()
    reserve: float = 0.05

    @property
    def is_limited(self) -> bool:
        """Whether anything is limited at all."""
        return self.run != Limit() or self.study != Limit()


@dataclass(frozen=True, slots=True)
class Metered:
    """One attempt: whose it is, and when it used a slot at what rate."""

    study: str
    run: str
    attempt: int
    usage: Usage

    @property
    def key(self) -> Key:
        """(run, attempt)."""
        return self.run, self.attempt

    @property
    def is_live(self) -> bool:
        """Whether it uses its slot now."""
        return self.usage.started is not None and self.usage.ended is None


@dataclass(frozen=True, slots=True)
class Account:
    """What was used, and at which rates it is being used now: one rate for each live attempt."""

    spent: Spent = NOTHING_SPENT
    live: tuple[Rate, ...] = ()


def budget_of(arm_budget: Mapping[str, Any], study_document: Mapping[str, Any] | None = None) -> Budget:
    """The budget in an arm's document. The stored study has the last word on the study's limits: `--amend` moves
    them for arms that were launched before too."""
    stored = ((study_document or {}).get("budget") or {}).get("study")
    study = arm_budget["study"] if stored is None else stored
    return Budget(Limit(**arm_budget["run"]), Limit(**study), arm_budget["reserve"])


def meter(
    attempts: Sequence[Metered], now: float, known_s: Mapping[Key, float] | None = None, passed_s: float = 0.0
) -> dict[Key, float]:
    """Seconds used by each attempt. `known_s` is what the last call returned, `passed_s` the time since then on a
    clock that never runs backwards: nothing is ever given back, whatever happens to the wall clock."""
    before = known_s or {}
    return {
        one.key: used_s(
            one.usage, now, known_s=before.get(one.key, 0.0), passed_s=passed_s if one.key in before else 0.0
        )
        for one in attempts
    }


def accounts(
    attempts: Sequence[Metered], seconds: Mapping[Key, float]
) -> tuple[dict[str, Account], dict[str, Account]]:
    """(by run, by study), from the attempts and what `meter` says of them."""
    by_run: dict[str, list[Metered]] = {}
    by_study: dict[str, list[Metered]] = {}
    for one in attempts:
        by_run.setdefault(one.run, []).append(one)
        by_study.setdefault(one.study, []).append(one)
    return (
        {name: _account(mine, seconds) for name, mine in by_run.items()},
        {name: _account(mine, seconds) for name, mine in by_study.items()},
    )


def over_budget(budget: Budget, run: Account, study: Account, ahead_s: float = 0.0) -> str | None:
    """Which limit is used up but for the reserve, for a person; None while there is room.

    `ahead_s` is the time until the next look: what the live attempts will have used by then counts already.
    """
    for whose, limit, account in (("run", budget.run, run), ("study", budget.study, study)):
        for bound in _bounds(limit, account, ahead_s):
            if bound.ahead >= (1.0 - budget.reserve) * bound.limit:
                return bound.sentence(whose, budget.reserve)
    return None


def left_s(budget: Budget, run: Account, study: Account, rate: Rate) -> float | None:
    """Seconds that the limits, reserve included, leave for one more attempt at `rate`; None without a limit.

    What is left of a study is shared by its live attempts, for a spent study ends all of them at once.
    """
    found = [_left_s(budget.run, run.spent, rate), _left_s(budget.study, study.spent, rate) / max(1, len(study.live))]
    shortest_s = min(found)
    return None if math.isinf(shortest_s) else shortest_s


def foreseen(budget: Budget, whose: str, name: str, needed_s: float) -> str | None:
    """A plan's warning when a `whose` (run or study) called `name` needs more seconds of a slot than its hours allow;
    None when they are enough or without a limit."""
    limit = budget.run if whose == "run" else budget.study
    if limit.max_hours is None or needed_s / 3600.0 <= (1.0 - budget.reserve) * limit.max_hours:
        return None
    return (
        f"{name}: about {needed_s / 3600.0:.3g} slot hours are needed and budget.{whose}.max_hours is "
        f"{limit.max_hours:.6g}{_kept(budget.reserve)}: it will be stopped before its end"
    )


def budget_notes(arms: Sequence[ResolvedArm], plan: Plan, seconds_per_step: Mapping[str, float]) -> tuple[str, ...]:
    """Which hours of a launch will not do at the speed so far (`seconds_per_step`, by study/arm).

    A run that starts again counts in full; an arm that has never run here counts as nothing.
    """
    needed_s: dict[str, list[float]] = {arm.name: [0.0] for arm in arms}
    for run in plan.to_run:
        name = f"{run.study}/{run.arm}"
        needed_s[name].append(run.steps * seconds_per_step.get(name, 0.0))
    notes = [foreseen(budget_of(arm.budget), "run", arm.name, max(needed_s[arm.name])) for arm in arms]
    for first in {arm.study: arm for arm in reversed(arms)}.values():
        whole_s = sum(sum(needed_s[arm.name]) for arm in arms if arm.study == first.study)
        notes.append(foreseen(budget_of(first.budget), "study", first.study, whole_s))
    return tuple(note for note in notes if note)


@dataclass(frozen=True, slots=True)
class _Bound:
    """One limit, what of it is used, and what will be at the next look; all in `unit`."""

    unit: str
    key: str
    limit: float
    used: float
    ahead: float

    def sentence(self, whose: str, reserve: float) -> str:
        """For a person: the limit, what is used of it, what is kept back, and the key that says so."""
        return (
            f"the {whose} has used {self.used:.4g} of {self.limit:.6g} {self.unit}{_kept(reserve)} "
            f"(budget.{whose}.{self.key})"
        )


def _kept(reserve: float) -> str:
    return f", {reserve * 100:.3g} % of it kept back for the end" if reserve else ""


def _bounds(limit: Limit, account: Account, ahead_s: float) -> Iterator[_Bound]:
    if limit.max_hours is not None:
        hours = account.spent.hours
        yield _Bound("slot hours", "max_hours", limit.max_hours, hours, hours + len(account.live) * ahead_s / 3600.0)
    if limit.max_usd is not None:
        usd, next_usd = account.spent.usd, math.fsum(rate.usd_per_h for rate in account.live) * ahead_s / 3600.0
        yield _Bound("USD", "max_usd", limit.max_usd, usd, usd + next_usd)


def _left_s(limit: Limit, used: Spent, rate: Rate) -> float:
    hours_s = math.inf if limit.max_hours is None else max(0.0, limit.max_hours - used.hours) * 3600.0
    money_s = math.inf if limit.max_usd is None else affordable_s(limit.max_usd - used.usd, rate)
    return min(hours_s, money_s)


def _account(attempts: Sequence[Metered], seconds: Mapping[Key, float]) -> Account:
    return Account(
        spent([(seconds[one.key], one.usage.rate) for one in attempts]),
        tuple(one.usage.rate for one in attempts if one.is_live),
    )
