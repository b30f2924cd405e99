"""What the policy makes of findings: shadow, warn, abort, the tail of the budget, and rules a person has overruled."""

from __future__ import annotations

import math

import pytest

from runner.judge import DETECTORS
from runner.judge.policy import decide, in_tail
from runner.records import DeclaredEvent, Finding, Health, Policy, Severity, Verdict
from tests.fakes.curves import ABORT_ALL, series, verdict_on


def finding(detector: str, severity: Severity, step: int) -> Finding:
    return Finding(detector, severity, step, f"{detector} at {step}")


def decided(*findings: Finding, policy: Policy = ABORT_ALL, overridden: frozenset[str] = frozenset()) -> Verdict:
    return decide(findings, policy=policy, steps_total=1000, overridden=overridden, as_of={})


def test_nothing_seen_is_healthy() -> None:
    verdict = decided()
    assert (verdict.health, verdict.action, verdict.rule, verdict.reason) == (Health.OK, "none", "", "")


@pytest.mark.parametrize(
    ("allowed", "severity", "action", "health"),
    [
        ("abort", Severity.ABORT, "abort", Health.DIVERGED),
        ("abort", Severity.WARN, "warn", Health.WARNED),
        ("warn", Severity.ABORT, "warn", Health.WARNED),
        ("warn", Severity.WARN, "warn", Health.WARNED),
        ("shadow", Severity.ABORT, "shadow", Health.OK),
        ("shadow", Severity.WARN, "shadow", Health.OK),
        (None, Severity.ABORT, "warn", Health.WARNED),
    ],
)
def test_the_policy_caps_what_a_detector_asks_for(
    allowed: str | None, severity: Severity, action: str, health: Health
) -> None:
    policy = Policy({} if allowed is None else {"explosion": allowed})
    verdict = decided(finding("explosion", severity, 500), policy=policy)
    assert (verdict.action, verdict.health, verdict.rule) == (action, health, "explosion")
    assert len(verdict.findings) == 1


def test_an_unknown_policy_value_is_refused() -> None:
    with pytest.raises(ValueError, match="kill"):
        decided(finding("explosion", Severity.ABORT, 500), policy=Policy({"explosion": "kill"}))


def test_a_rescue_is_an_abort_that_something_follows_and_in_the_tail_neither() -> None:
    policy = Policy({"explosion": "rescue"})
    assert decided(finding("explosion", Severity.ABORT, 500), policy=policy).action == "rescue"
    assert decided(finding("explosion", Severity.ABORT, 990), policy=policy).action == "verdict_only"
    assert decided(finding("explosion", Severity.WARN, 500), policy=policy).action == "warn"


@pytest.mark.parametrize(("step", "action"), [(959, "abort"), (960, "verdict_only"), (1000, "verdict_only")])
def test_in_the_last_part_of_the_budget_nothing_is_killed(step: int, action: str) -> None:
    verdict = decided(finding("explosion", Severity.ABORT, step))
    assert (verdict.action, verdict.health, verdict.rule) == (action, Health.DIVERGED, "explosion")


def test_without_a_budget_there_is_no_tail() -> None:
    assert not in_tail(10**9, None, 0.04)


def test_an_overruled_rule_warns_and_the_others_still_abort() -> None:
    both = (finding("non_finite", Severity.ABORT, 700), finding("explosion", Severity.ABORT, 500))
    verdict = decided(*both, overridden=frozenset({"explosion"}))
    assert (verdict.action, verdict.rule) == ("abort", "non_finite")
    assert decided(*both, overridden=frozenset({"explosion", "non_finite"})).action == "warn"


def test_the_earliest_abort_decides_and_later_findings_are_left_out() -> None:
    early = finding("explosion", Severity.ABORT, 300)
    verdict = decided(
        finding("non_finite", Severity.ABORT, 400),
        early,
        finding("regress", Severity.WARN, 200),
        finding("regress", Severity.ABORT, 990),
    )
    assert verdict.rule == "explosion"
    assert [found.step for found in verdict.findings] == [300, 200]


def test_of_two_aborts_at_one_step_the_table_decides() -> None:
    names = list(DETECTORS)
    verdict = decided(*(finding(name, Severity.ABORT, 500) for name in names))
    assert verdict.rule == names[0] == "non_finite"


def test_a_verdict_remembers_the_last_step_of_every_series() -> None:
    curves = {
        "b": series("b", [1.0] * 7),
        "a": series("a", [1.0] * 3),
        "sys/x": series("sys/x", [1.0]),
        "e": series("e", []),
    }
    assert dict(verdict_on(curves, 100).as_of) == {"a": 3, "b": 7, "sys/x": 1}


def test_the_last_checkpoint_before_a_bad_value_is_named() -> None:
    events = [DeclaredEvent(step, "checkpoint") for step in (10, 20, 30)] + [DeclaredEvent(25, "repa_off")]
    verdict = verdict_on({"loss": series("loss", [1.0] * 27 + [math.nan])}, 100, events=events)
    assert verdict.findings[0].evidence["last_checkpoint_step"] == 20
