"""What a stopping rule did to arms whose truth is known, in numbers. Pure.

An arm counts as recognised when it was stopped, or a verdict was recorded, at or after its onset. Stopping it earlier
is a mistake of its own and saves nothing here: nobody could know.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """One arm under one rule. `stopped` is the step at which it was ended, `named` that of a stop or a mere verdict."""

    case: str
    """SEED/PROFILE/ARM."""
    kind: str
    onset: int | None
    """The step from which it is sick; None for a healthy arm."""
    steps_total: int
    stopped: int | None
    named: int | None
    rule: str = ""
    warned: bool = False
    probes: int = 0
    lines_late: int | None = None
    """Log lines that were not finite before the one that ended it; None without such a line or without an end."""

    def is_recognised(self) -> bool:
        """Sick, and said to be at or after its onset."""
        return self.onset is not None and self.named is not None and self.named >= self.onset

    def is_too_early(self) -> bool:
        """Sick, but stopped before that."""
        return self.onset is not None and self.stopped is not None and self.stopped < self.onset

    def saved_steps(self) -> int:
        """Steps after the onset that were not trained."""
        if self.onset is None or self.stopped is None or self.is_too_early():
            return 0
        return self.steps_total - self.stopped

    def delay(self) -> float:
        """Share of the budget from the onset to the moment of recognition, of a recognised arm."""
        assert self.onset is not None
        assert self.named is not None
        return (self.named - self.onset) / self.steps_total


def scores(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The figures of one rule; percentages 0 to 100, None where nothing was there to be measured."""
    sick = [one for one in outcomes if one.onset is not None]
    healthy = [one for one in outcomes if one.onset is None]
    killed = [one for one in healthy if one.stopped is not None]
    recognised = [one for one in sick if one.is_recognised()]
    delays = sorted(100 * one.delay() for one in recognised)
    # In budgets, not in steps: otherwise the arms with 100,000 steps would be all that is seen.
    after = sum(1 - (one.onset or 0) / one.steps_total for one in sick)
    saved = sum(one.saved_steps() / one.steps_total for one in sick)
    return {
        "sick": len(sick),
        "healthy": len(healthy),
        "recall": _percent(len(recognised), len(sick)),
        "aborted": _percent(sum(_is_stopped_before_end(one) for one in recognised), len(sick)),
        "before_onset": _percent(sum(one.is_too_early() for one in sick), len(sick)),
        "false_aborts": len(killed),
        "false_aborts_percent": _percent(len(killed), len(healthy)),
        "false_aborts_bound": 100 * upper_bound(len(killed), len(healthy)) if healthy else None,
        "false_verdicts": sum(one.named is not None and one.stopped is None for one in healthy),
        "warned_healthy_percent": _percent(sum(one.warned for one in healthy), len(healthy)),
        "delay_median": median(delays) if delays else None,
        "delay_p90": delays[math.ceil(0.9 * len(delays)) - 1] if delays else None,
        "saved": 100 * saved / after if after else None,
        "probes_per_healthy": sum(one.probes for one in healthy) / len(healthy) if healthy else None,
        "lines_late_max": max((one.lines_late for one in sick if one.lines_late is not None), default=None),
        "probes_per_sick": sum(one.probes for one in sick) / len(sick) if sick else None,
    }


def by_kind(outcomes: Sequence[Outcome]) -> dict[str, dict[str, Any]]:
    """The same for each kind of arm."""
    kinds = sorted({one.kind for one in outcomes}, key=lambda kind: (_is_healthy_kind(outcomes, kind), kind))
    return {kind: scores([one for one in outcomes if one.kind == kind]) for kind in kinds}


def worst_cases(outcomes: Sequence[Outcome]) -> dict[str, list[dict[str, Any]]]:
    """The arms behind every mistake, to be looked at one by one."""

    def told(chosen: Sequence[Outcome]) -> list[dict[str, Any]]:
        return [
            {"case": one.case, "kind": one.kind, "rule": one.rule, "step": one.named, "onset": one.onset}
            for one in sorted(chosen, key=lambda one: (one.kind, one.case))
        ]

    return {
        "false_aborts": told([one for one in outcomes if one.onset is None and one.stopped is not None]),
        "false_verdicts": told(
            [one for one in outcomes if one.onset is None and one.stopped is None and one.named is not None]
        ),
        "before_onset": told([one for one in outcomes if one.is_too_early()]),
        "missed": told(
            [one for one in outcomes if one.onset is not None and not one.is_recognised() and not one.is_too_early()]
        ),
    }


def upper_bound(events: int, trials: int, confidence: float = 0.95) -> float:
    """The one-sided Clopper-Pearson bound (1934): the rate at which so few events are only 1 - confidence likely.

    Rates are 0 to 1. Found by halving, to 1e-9.
    """
    if not 0 <= events <= trials or trials < 1:
        raise ValueError(f"{events} events in {trials} trials; allowed: 0 to trials, and at least one trial")
    if events == trials:
        return 1.0
    low, high = events / trials, 1.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        if _at_most(events, trials, middle) > 1 - confidence:
            low = middle
        else:
            high = middle
    return high


def _at_most(events: int, trials: int, rate: float) -> float:
    """The probability of at most so many events."""
    if rate >= 1.0:
        return 0.0
    if rate <= 0.0:
        return 1.0
    logs = (
        math.lgamma(trials + 1) - math.lgamma(k + 1) - math.lgamma(trials - k + 1)
        + k * math.log(rate) + (trials - k) * math.log1p(-rate)
        for k in range(events + 1)
    )  # fmt: skip
    return min(1.0, sum(math.exp(one) for one in logs))


def _is_stopped_before_end(one: Outcome) -> bool:
    return one.stopped is not None and one.stopped < one.steps_total


def _is_healthy_kind(outcomes: Sequence[Outcome], kind: str) -> bool:
    return next(one for one in outcomes if one.kind == kind).onset is None


def _percent(part: int, whole: int) -> float | None:
    return 100 * part / whole if whole else None
