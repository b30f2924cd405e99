"""From what the detectors saw and what the policy allows to one verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from runner.records import STOPS, Finding, Health, Policy, Severity, Verdict

# Weakest first. An abort in the tail is as strong as any other: it is only not carried out.
STRENGTH = {"none": 0, "shadow": 1, "warn": 2, "verdict_only": 3, "abort": 3, "rescue": 3}
FINAL = STOPS | {"verdict_only"}


def decide(
    findings: Sequence[Finding],
    *,
    policy: Policy,
    steps_total: int | None,
    overridden: frozenset[str],
    as_of: Mapping[str, int],
) -> Verdict:
    """The verdict on `findings`, given in the order of the detector table.

    The strongest action wins, then the earliest step, then the table's order. Once something asks for an abort, what
    was seen after that step is left out: a controller that looks late concludes the same as one that looked at once.
    A detector that the policy does not list may warn; one in `overridden` may not abort any more.
    """
    ruled = [(action_for(finding, policy, steps_total, overridden), finding) for finding in findings]
    if not ruled:
        return Verdict(Health.OK, "none", as_of=as_of)
    action, deciding = min(ruled, key=lambda pair: (-STRENGTH[pair[0]], pair[1].step))
    is_final = action in FINAL
    return Verdict(
        health=_health(action, deciding.detector),
        action=action,
        rule=deciding.detector,
        reason=deciding.summary,
        findings=tuple(finding for finding in findings if not is_final or finding.step <= deciding.step),
        as_of=as_of,
    )


def _health(action: str, detector: str) -> Health:
    if action in FINAL:
        return Health.STALLED if detector == "stall" else Health.DIVERGED
    return Health.WARNED if action == "warn" else Health.OK


def action_for(finding: Finding, policy: Policy, steps_total: int | None, overridden: frozenset[str]) -> str:
    """shadow, warn, abort, rescue or verdict_only: what the policy makes of one finding."""
    allowed = Severity(policy.detectors.get(finding.detector, Severity.WARN))
    if allowed is Severity.SHADOW:
        return "shadow"
    if Severity.WARN in (allowed, finding.severity) or finding.detector in overridden:
        return "warn"
    return "verdict_only" if in_tail(finding.step, steps_total, policy.tail) else str(allowed)


def in_tail(step: int, steps_total: int | None, tail: float) -> bool:
    """Whether no more than the share `tail` of the budget is left at `step`; never without a budget."""
    return steps_total is not None and steps_total - step <= tail * steps_total
