"""How often the controller looks never changes what is concluded, and nothing that is fed to the judge breaks it."""

from __future__ import annotations

import json
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.records import DeclaredEvent, Primary, Series, Verdict
from tests.fakes.curves import (
    HEALTHY_LOSSES,
    SICK_LOSSES,
    Cadence,
    is_stopped,
    loss,
    metric,
    series,
    verdict_on,
)


def upto(curves: dict[str, Series], step: int) -> dict[str, Series]:
    cut = {name: sum(at <= step for at in curve.steps) for name, curve in curves.items()}
    return {name: Series(name, curve.steps[: cut[name]], curve.values[: cut[name]]) for name, curve in curves.items()}


def decision(verdict: Verdict) -> tuple[object, ...]:
    return verdict.action, verdict.rule, verdict.reason, verdict.health, verdict.findings


def assert_prefixes_agree(curves: dict[str, Series], steps_total: int, looks: list[int], **context: object) -> None:
    final = verdict_on(curves, steps_total, **context)  # type: ignore[arg-type]
    for step in looks:
        seen = verdict_on(upto(curves, step), steps_total, **context)  # type: ignore[arg-type]
        if is_stopped(seen):
            assert decision(seen) == decision(final), step
        else:
            assert set(map(str, seen.findings)) <= set(map(str, final.findings)), step
    if is_stopped(final):
        decided_at = max(finding.step for finding in final.findings)
        assert is_stopped(verdict_on(upto(curves, decided_at), steps_total, **context))  # type: ignore[arg-type]
        assert not is_stopped(verdict_on(upto(curves, decided_at - 1), steps_total, **context))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [*HEALTHY_LOSSES, *SICK_LOSSES])
def test_any_prefix_of_a_loss_gives_the_verdict_of_hindsight(kind: str) -> None:
    for seed in range(4):
        case = loss(kind, seed, Cadence(5000, 10), (0.02, 0.3)[seed % 2])
        looks = sorted(random.Random(seed).sample(range(10, 5000), 25))
        assert_prefixes_agree({"train/loss": case.series}, 5000, looks, events=case.events)


@pytest.mark.parametrize("points", [10, 50, 400])
def test_any_prefix_of_a_metric_gives_the_verdict_of_hindsight(points: int) -> None:
    for seed in range(4):
        curve = metric("collapse", seed, points, 0.003)
        assert_prefixes_agree({curve.name: curve}, 5000, list(range(100, 5000, 130)))


values = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True),
    st.floats(0.1, 10),
    st.sampled_from([0.0, 1.0, -1.0, 1e300, -1e300, 5e-324, math.nan]),
)


@given(
    dense=st.lists(values, max_size=30).flatmap(
        lambda short: st.integers(1, 12).map(lambda repeats: [value for value in short for _ in range(repeats)])
    ),
    sparse=st.lists(values, max_size=25),
    gap=st.integers(1, 40),
    event=st.integers(0, 300),
    steps_total=st.one_of(st.none(), st.integers(1, 500)),
    direction=st.sampled_from(["min", "max"]),
    look=st.integers(0, 400),
)
def test_arbitrary_numbers_never_break_the_judge_nor_its_replay(
    dense: list[float],
    sparse: list[float],
    gap: int,
    event: int,
    steps_total: int | None,
    direction: str,
    look: int,
) -> None:
    curves = {"train/loss": series("train/loss", dense), "val/loss": series("val/loss", sparse, gap, first=0)}
    context = {"primary": Primary("val/loss", direction), "events": [DeclaredEvent(event, "repa_off")]}
    final = verdict_on(curves, steps_total, **context)  # type: ignore[arg-type]
    assert decision(final) == decision(verdict_on(curves, steps_total, **context))  # type: ignore[arg-type]
    seen = verdict_on(upto(curves, look), steps_total, **context)  # type: ignore[arg-type]
    if is_stopped(seen):
        assert decision(seen) == decision(final)
    for finding in final.findings:
        json.dumps(dict(finding.evidence), allow_nan=False)


@pytest.mark.parametrize(
    "garbage",
    [
        [],
        [1.0],
        [0.0] * 500,
        [1.0] * 500,
        [-3.0] * 500,
        [1e300] * 500,
        [1e300, -1e300] * 250,
        [5e-324] * 500,
        [0.0] * 250 + [5e-324] * 250,
        [5e-324] * 5 + [0.0] * 495,
    ],
    ids=["empty", "one", "zeros", "ones", "negative", "huge", "alternating", "tiny", "denormal", "tiny to zero"],
)
@pytest.mark.parametrize("direction", ["min", "max"])
def test_dull_and_extreme_curves_are_no_reason_to_stop(garbage: list[float], direction: str) -> None:
    curves = {name: series(name, garbage) for name in ("train/loss", "val/recon_lpips")}
    for steps_total in (500, 5000, None):
        verdict = verdict_on(curves, steps_total, primary=Primary("val/recon_lpips", direction))
        assert not is_stopped(verdict)


def test_a_run_of_nothing_but_nan_is_stopped_at_its_first_value() -> None:
    curves = {name: series(name, [math.nan] * 100) for name in ("val/recon_lpips", "train/loss")}
    verdict = verdict_on(curves, 1000)
    assert (verdict.action, verdict.rule, verdict.findings[0].step) == ("abort", "non_finite", 1)
    assert verdict.findings[0].evidence["metric"] == "train/loss"
    assert verdict.findings[0].evidence["last_finite_step"] is None


def test_without_a_budget_losses_are_judged_and_a_primary_only_warns() -> None:
    explodes = [1.0 + 0.02 * (k % 5) for k in range(300)] + [8.0] * 60
    assert verdict_on({"train/loss": series("train/loss", explodes)}, None).action == "abort"
    collapses = [1.0, 0.9, 0.85, 0.8, 0.78, 0.77, 0.9, 1.0, 1.1, 1.2]
    verdict = verdict_on({"val/recon_lpips": series("val/recon_lpips", collapses, 500)}, None)
    assert (verdict.action, verdict.rule) == ("warn", "regress")
