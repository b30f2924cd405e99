"""What a policy makes of something that is wrong with a live attempt: told only, or a reason to stop it. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType

from runner.judge.policy import in_tail
from runner.liveness import HUNG, NEVER_STARTED, THROUGHPUT_COLLAPSE, Concern
from runner.records import Policy, Severity

RULES: Mapping[str, str] = MappingProxyType(
    {HUNG: "hung", NEVER_STARTED: "never_started", THROUGHPUT_COLLAPSE: "throughput"}
)
"""What a concern is called in `policy.detectors`. The others may only warn: nothing that we can see gets better by a
stop."""

RULE_NAMES = tuple(RULES.values())


def action_on(
    concern: Concern, policy: Policy, *, step: int, steps_total: int | None, overridden: Collection[str]
) -> str:
    """shadow, warn, verdict_only, abort or rescue: what the policy makes of a concern of a run at `step`.

    A rule in `overridden` may not stop the run any more. In the tail of the budget a slow run is let through. A hung
    one and one that never started are not: they would keep their slot for ever, and there is nothing to wait for.
    """
    rule = RULES.get(concern.name)
    allowed = Severity.WARN if rule is None else Severity(policy.detectors.get(rule, Severity.WARN))
    if allowed is Severity.SHADOW:
        return "shadow"
    is_grave = concern.severity is Severity.ABORT
    if rule is None or allowed is Severity.WARN or not is_grave or rule in overridden:
        return "warn"
    if concern.name == THROUGHPUT_COLLAPSE and in_tail(step, steps_total, policy.tail):
        return "verdict_only"
    return str(allowed)


def is_shadow(name: str, policy: Policy) -> bool:
    """Whether the policy has a concern of this name recorded only: it changes no health and wakes nobody up."""
    return policy.detectors.get(RULES.get(name, "")) == Severity.SHADOW
