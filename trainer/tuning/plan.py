"""What is tried, what is not worth trying, and what is chosen: decisions over outcomes, without a clock or a process.

No torch here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from trainer.tuning.candidate import Candidate
from trainer.tuning.outcome import Outcome

SAME = 0.03
"""Medians and peaks that differ by at most this share count as the same: the noise of a machine decides nothing."""
ESTIMATE_SLACK = 1.5
"""A candidate is ruled out by arithmetic alone only if its estimate, an upper one, exceeds the limit by this factor."""
HOPELESS = 3.0
"""A candidate that took this times the best in its first turn gets no other; the configuration's own always does."""
SLOW = 1.5
"""A candidate whose fastest step takes this times the median of the best is not measured to the end."""


def fits(outcome: Outcome, limit_mib: float) -> bool:
    """Whether a candidate was measured within the memory."""
    return outcome.kind == "measured" and outcome.peak_mib is not None and outcome.peak_mib <= limit_mib


def skip_reason(
    candidate: Candidate, estimate_mib: float, outcomes: Iterable[Outcome], limit_mib: float | None
) -> str | None:
    """Why a candidate need not be tried; None if it should be. `limit_mib` is None as long as nobody knows it."""
    for outcome in outcomes:
        other = outcome.candidate
        if outcome.kind == "impossible" and (other.compiled, other.compute) == (candidate.compiled, candidate.compute):
            return f"as impossible here as {other}"
        if not other.needs_no_more_than(candidate):
            continue
        if outcome.kind == "out_of_memory":
            return f"{other} ran out of memory, and needs no more than this"
        if limit_mib is not None and outcome.kind == "measured" and not fits(outcome, limit_mib):
            return f"{other} took {outcome.peak_mib:,.0f} MiB, and needs no more than this"
    if limit_mib is not None and estimate_mib > ESTIMATE_SLACK * limit_mib:
        return f"estimated at {estimate_mib:,.0f} MiB, and there are {limit_mib:,.0f}"
    return None


def choose(outcomes: Sequence[Outcome], limit_mib: float, own: Candidate) -> Outcome | None:
    """The fastest that fits; None if nothing does.

    Of those within `SAME` of the fastest those with the least memory; of several such the configuration's `own`, then
    the fastest, then the first in the order of candidates.
    """
    fitting = [outcome for outcome in outcomes if fits(outcome, limit_mib)]
    if not fitting:
        return None
    fastest_s = min(outcome.median_s for outcome in fitting)
    fast = [outcome for outcome in fitting if outcome.median_s <= fastest_s * (1 + SAME)]
    least_mib = min(_peak(outcome) for outcome in fast)
    lean = [outcome for outcome in fast if _peak(outcome) <= least_mib * (1 + SAME)]
    return min(lean, key=lambda each: (each.candidate != own, each.median_s, each.candidate))


def best_s(outcomes: Iterable[Outcome], limit_mib: float | None) -> float | None:
    """Seconds of a step of the fastest so far that fits; None before there is one."""
    limit = float("inf") if limit_mib is None else limit_mib
    return min((outcome.median_s for outcome in outcomes if fits(outcome, limit)), default=None)


def gets_another_turn(outcome: Outcome, outcomes: Iterable[Outcome], limit_mib: float | None, own: Candidate) -> bool:
    """Whether a candidate is measured again in a later turn: it could be measured, and may yet be the best."""
    best = best_s(outcomes, limit_mib)
    if outcome.kind != "measured" or best is None:
        return False
    return outcome.candidate == own or outcome.median_s <= HOPELESS * best


def smallest_need(outcomes: Iterable[Outcome], estimates: Mapping[Candidate, float]) -> str:
    """The least memory that any candidate is known, or else estimated, to take; for a person."""
    measured = [(outcome.peak_mib, outcome.candidate) for outcome in outcomes if outcome.peak_mib is not None]
    if measured:
        mib, candidate = min(measured)
        return f"{mib:,.0f} MiB, measured of {candidate}"
    candidate = min(estimates, key=lambda each: (estimates[each], each))
    return f"about {estimates[candidate]:,.0f} MiB, estimated of {candidate}"


def turns(candidates: Sequence[Candidate], repeats: int) -> list[tuple[int, Candidate]]:
    """Who is measured when: every candidate once, then all again in the opposite order, and so on.

    So no candidate owes its place to what the machine did at one time of the tuning.
    """
    return [
        (turn, candidate)
        for turn in range(repeats)
        for candidate in (candidates if turn % 2 == 0 else list(reversed(candidates)))
    ]


def _peak(outcome: Outcome) -> float:
    assert outcome.peak_mib is not None, "what fits has a peak"
    return outcome.peak_mib
