"""A replay of a study: arms advance together, a stopped one gives its siblings nothing more, and a probe is taken."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import pytest

from runner.judge.backtest import ARMED, RecordedArm, Replay, replay_study
from runner.records import DeclaredEvent, Policy, Primary, Series
from tests.fakes.curves import PRIMARY, series

TOTAL = 5000


def arm(name: str, shape: Callable[[float], float], **changes: Any) -> RecordedArm:
    steps = tuple(range(250, TOTAL + 1, 250))
    curve = Series(PRIMARY.metric, steps, tuple(shape(step / TOTAL) for step in steps))
    hours = {step: step / 100 for step in steps}
    return RecordedArm("s", name, TOTAL, {curve.name: curve}, PRIMARY, **{"hours": hours, **changes})


def learner(u: float) -> float:
    return 1.0 - 0.4 * (1 - math.exp(-3 * u))


def flat(u: float) -> float:
    return 1.0 - 0.02 * min(1.0, u / 0.1)


def collapsing(u: float) -> float:
    return learner(min(u, 0.5)) * (1 + 0.5 * max(0.0, u - 0.5))


def slow_learners() -> list[RecordedArm]:
    return [arm(f"L{k}", lambda u, k=k: learner(u) * (1 + 0.01 * k)) for k in range(3)]


def replayed(*arms: RecordedArm, **options: Any) -> dict[str, Replay]:
    found = replay_study(arms, **options)
    assert [one.arm for one in found] == [one.arm for one in arms]
    return {one.arm: one for one in found}


def test_what_became_of_each_kind_of_arm() -> None:
    found = replayed(*slow_learners(), arm("flat", flat), arm("bad", collapsing))
    assert [(found[name].verdict, found[name].action, found[name].step) for name in ("L0", "L1", "L2")] == [
        ("healthy", "none", None)
    ] * 3
    assert (found["flat"].verdict, found["flat"].action, found["flat"].rule) == ("stalled", "abort", "stall")
    assert (found["bad"].verdict, found["bad"].action, found["bad"].rule) == ("diverged", "abort", "regress")
    bad = found["bad"]
    assert bad.warn_step is not None
    assert bad.step is not None
    assert TOTAL / 2 < bad.warn_step <= bad.step
    assert bad.hours_saved == pytest.approx((TOTAL - bad.step) / 100)
    assert found["L0"].hours_saved is None


def test_twice_the_same_is_the_same_to_the_byte_in_any_order_of_the_arms() -> None:
    arms = [*slow_learners(), arm("flat", flat), arm("bad", collapsing)]
    first, second = (json.dumps([asdict(one) for one in replay_study(arms)]) for _ in range(2))
    assert first == second
    backwards = {one.arm: one for one in replay_study(arms[::-1])}
    assert {one.arm: (one.action, one.step) for one in replay_study(arms)} == {
        name: (one.action, one.step) for name, one in backwards.items()
    }


def test_a_rescue_counts_as_an_abort() -> None:
    policy = Policy({**ARMED.detectors, "regress": "rescue"})
    armed, rescued = (replayed(arm("bad", collapsing), policy=one)["bad"] for one in (ARMED, policy))
    assert rescued == armed
    assert rescued.hours_saved is not None


@pytest.mark.parametrize(("severity", "verdict", "action"), [("warn", "warned", "warn"), ("shadow", "healthy", "none")])
def test_what_a_weaker_policy_leaves_of_it(severity: str, verdict: str, action: str) -> None:
    found = replayed(arm("bad", collapsing), policy=Policy({**ARMED.detectors, "regress": severity}))["bad"]
    assert (found.verdict, found.action, found.hours_saved) == (verdict, action, None)
    if action == "none":
        assert (found.rule, found.reason, found.step, found.warn_step, found.evidence) == ("", "", None, None, {})
    else:
        assert found.step == found.warn_step


def test_an_overruled_rule_may_only_warn() -> None:
    found = replayed(arm("bad", collapsing, overridden=frozenset({"regress"})))["bad"]
    assert (found.verdict, found.action, found.rule) == ("warned", "warn", "regress")


def test_in_the_tail_there_is_a_verdict_and_nothing_saved() -> None:
    values = [1.0, 0.9, 0.85, 0.82, 0.80, 0.79, 0.785, 0.782, 0.78, 0.85]
    curve = series(PRIMARY.metric, values, 500)
    late = RecordedArm("s", "late", TOTAL, {curve.name: curve}, PRIMARY, hours={5000: 9.0})
    found = replayed(late)["late"]
    assert (found.verdict, found.action, found.step, found.hours_saved) == ("diverged", "verdict_only", 5000, None)


def test_a_value_that_is_not_finite_is_a_verdict_of_its_own() -> None:
    curve = series("train/loss", [1.0] * 50 + [math.nan], 10)
    found = replayed(RecordedArm("s", "a", TOTAL, {curve.name: curve}, None))["a"]
    assert (found.verdict, found.action, found.step, found.hours_saved) == ("non_finite", "abort", 510, None)


# ---- siblings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"eval_set": "other"},
        {"primary": Primary(PRIMARY.metric, "max")},
        {"primary": None},
        {"steps_total": None},
    ],
    ids=str,
)
def test_arms_that_cannot_be_compared_are_no_siblings(change: dict[str, Any]) -> None:
    others = [replace(one, **change) for one in slow_learners()]
    assert replayed(*slow_learners(), arm("flat", flat))["flat"].action == "abort"
    assert replayed(*others, arm("flat", flat))["flat"].action == "none"


def test_two_siblings_only_warn() -> None:
    found = replayed(*slow_learners()[:2], arm("flat", flat))["flat"]
    assert (found.verdict, found.action, found.rule) == ("warned", "warn", "stall")


def test_a_sibling_that_was_stopped_gives_no_later_points() -> None:
    def lost(u: float) -> float:
        return 50.0 * u if u > 0.3 else learner(u)

    gone = [replace(one, arm=f"gone{k}", series=arm("x", lost).series) for k, one in enumerate(slow_learners())]
    found = replayed(*gone, arm("flat", flat))
    assert all(found[one.arm].action == "abort" and found[one.arm].step <= 0.42 * TOTAL for one in gone)
    assert found["flat"].action == "none"  # nobody was left to compare with when rules may act
    spared = replayed(*gone, arm("flat", flat), policy=Policy({**ARMED.detectors, "regress": "warn"}))
    assert all(spared[one.arm].action == "warn" for one in gone)


def test_an_arm_that_stalls_is_no_sibling_of_those_after_it() -> None:
    arms = [*slow_learners(), arm("first", flat), arm("second", lambda u: flat(u) + 0.001)]
    found = replayed(*arms)
    assert {found["first"].action, found["second"].action} == {"abort"}
    assert "first" not in found["second"].evidence["siblings"] or found["first"].step >= found["second"].step


# ---- probes ----------------------------------------------------------------------------------------------------------


def probed(shape: Callable[[float], float], policy: Policy = ARMED) -> tuple[Replay, list[int]]:
    asked: list[int] = []

    def probe(name: str, step: int) -> float:
        assert name == "p"
        asked.append(step)
        return shape(step / TOTAL)

    return replayed(arm("p", shape), probe=probe, policy=policy)["p"], asked


def test_probes_are_taken_after_the_warning_and_stop_sooner() -> None:
    alone = replayed(arm("p", collapsing))["p"]
    found, asked = probed(collapsing)
    assert alone.step is not None
    assert found.step is not None
    assert found.action == "abort"
    assert found.step < alone.step
    assert found.warn_step == alone.warn_step is not None
    assert asked
    assert min(asked) > found.warn_step
    assert all(step % 100 == 0 and step % 250 for step in asked)
    assert set(found.probes) <= set(asked)
    assert all(step <= found.step for step in found.probes)


def test_a_healthy_arm_is_never_probed() -> None:
    assert probed(learner)[1] == []


def test_probes_end_when_the_warning_clears() -> None:
    def bump(u: float) -> float:
        return learner(min(u, 0.45)) * (1.02 if 0.48 < u <= 0.52 else 1.0)

    found, asked = probed(bump)
    assert found.action == "warn"
    assert asked
    assert all(0.48 * TOTAL <= step <= 0.56 * TOTAL for step in asked)


def test_a_shadow_asks_for_none_and_none_are_taken_in_the_tail() -> None:
    assert probed(collapsing, Policy({**ARMED.detectors, "regress": "shadow"}))[1] == []
    found, asked = probed(lambda u: learner(min(u, 0.9)) * (1 + 0.2 * max(0.0, u - 0.9)))
    assert found.warn_step is not None
    assert all(step <= 0.96 * TOTAL for step in asked)


def test_what_probes_show_alone_is_no_reason_to_stop() -> None:
    healthy = arm("p", learner)
    steps = healthy.series[PRIMARY.metric].steps
    values = [collapsing(step / TOTAL) for step in steps]
    series_of_both = {**healthy.series, "val_probe/recon_lpips": Series("val_probe/recon_lpips", steps, tuple(values))}
    assert replayed(replace(healthy, series=series_of_both))["p"].action == "none"


def test_what_probes_showed_before_the_first_warning_counts_again_once_there_is_one() -> None:
    def sudden(u: float) -> float:
        return collapsing(u) if u > 0.8 else learner(u)

    late = arm("p", sudden)
    steps = late.series[PRIMARY.metric].steps
    values = [collapsing(step / TOTAL) for step in steps]
    series_of_both = {**late.series, "val_probe/recon_lpips": Series("val_probe/recon_lpips", steps, tuple(values))}
    found = replayed(replace(late, series=series_of_both))["p"]
    assert (found.action, found.rule) == ("abort", "regress")
    assert found.step == found.warn_step
    assert found.step is not None
    assert 0.8 * TOTAL < found.step <= 0.86 * TOTAL


@pytest.mark.parametrize("event", ["repa_off", "resolution", "routing_off"])
def test_the_bump_after_a_declared_change_is_awaited(event: str) -> None:
    def bumped(u: float) -> float:
        return learner(min(u, 0.45)) * (1.045 if 0.5 < u <= 0.65 else 1.0)

    bump = arm("b", bumped)
    assert replayed(bump)["b"].action == "abort"
    excused = replayed(replace(bump, events=(DeclaredEvent(2500, event),)))["b"]
    assert (excused.action, excused.rule) == ("warn", "regress")
    assert replayed(replace(bump, events=(DeclaredEvent(2500, "checkpoint"),)))["b"].action == "abort"


@pytest.mark.parametrize(("step", "left"), [(0, 4.0), (500, 3.0), (700, 3.0), (2000, 0.0)])
def test_hours_after_a_step_count_from_the_last_known_time(step: int, left: float) -> None:
    known = RecordedArm("s", "a", 2000, {}, None, hours={500: 1.0, 1000: 2.5, 2000: 4.0})
    assert known.hours_after(step) == left
    assert RecordedArm("s", "a", 2000, {}, None).hours_after(step) is None
