"""The published curves of four real arms: B collapsed, A, C and D did not. Everything else must respect them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from runner.judge import LEVEL_NAMES
from runner.judge.backtest import RecordedArm, replay_study
from runner.judge.best import best_point
from runner.judge.levels import Scaling
from runner.records import Health, Policy, Primary, Series, Severity, Verdict
from tests.fakes.curves import ABORT_ALL, is_stopped, series, verdict_on

DATA = Path(__file__).parent / "data"
PUBLISHED = json.loads((DATA / "published_arms.json").read_text())
QUICKSTART = json.loads((DATA / "quickstart_losses.json").read_text())
ARMS = tuple(PUBLISHED["arms"])


def arm_curves(arm: str, scale: float = 1.0, upto: int = 5000) -> dict[str, Series]:
    found = PUBLISHED["arms"][arm]
    kept = [k for k, step in enumerate(found["steps"]) if step <= upto]
    steps = tuple(found["steps"][k] for k in kept)
    names = {"recon_lpips": "val/recon_lpips", "text_lpips": "val/text_lpips", "train_loss": "train/loss"}
    return {name: Series(name, steps, tuple(scale * found[key][k] for k in kept)) for key, name in names.items()}


def recorded() -> list[RecordedArm]:
    """The published arms as one study."""
    steps_total, primary = PUBLISHED["steps_total"], Primary("val/recon_lpips")
    return [RecordedArm("published", arm, steps_total, arm_curves(arm), primary) for arm in ARMS]


def judged(arm: str, *, primary: str = "val/recon_lpips", scale: float = 1.0, upto: int = 5000) -> Verdict:
    return verdict_on(arm_curves(arm, scale, upto), PUBLISHED["steps_total"], primary=Primary(primary))


@pytest.mark.parametrize("scale", [0.7, 1.0, 1.3])
def test_arm_b_is_warned_at_3500_and_aborted_at_4000(scale: float) -> None:
    verdict = judged("B", scale=scale)
    steps = {f.severity: f.step for f in verdict.findings if f.evidence["metric"] == "val/recon_lpips"}
    assert steps == {Severity.WARN: 3500, Severity.ABORT: 4000}
    assert (verdict.action, verdict.rule, verdict.health) == ("abort", "regress", Health.DIVERGED)
    assert verdict.findings[-1].evidence["best_step"] == 3000
    assert "worse than its best of step 3000" in verdict.reason


@pytest.mark.parametrize("scale", [0.7, 1.0, 1.3])
@pytest.mark.parametrize("arm", ["A", "C", "D"])
def test_the_healthy_arms_are_never_aborted(arm: str, scale: float) -> None:
    for upto in range(500, 5001, 500):
        assert not is_stopped(judged(arm, scale=scale, upto=upto))


@pytest.mark.parametrize("factor", [0.7, 1.3])
def test_nothing_hangs_on_the_last_digit_of_a_threshold(factor: float) -> None:
    for scaling in (Scaling(factor), *(Scaling(named={name: factor}) for name in LEVEL_NAMES)):
        replays = {one.arm: one for one in replay_study(recorded(), scaling=scaling)}
        assert [replays[arm].action in ("none", "warn") for arm in "ACD"] == [True, True, True], scaling
        assert (replays["B"].action, replays["B"].step, replays["B"].warn_step) == ("abort", 4000, 3500), scaling


@pytest.mark.parametrize("arm", ARMS)
def test_what_was_seen_at_each_checkpoint_agrees_with_hindsight(arm: str) -> None:
    final = judged(arm)
    for upto in range(500, 5001, 500):
        seen = judged(arm, upto=upto)
        if is_stopped(seen):
            assert (seen.action, seen.rule, seen.reason, seen.findings) == (
                final.action,
                final.rule,
                final.reason,
                final.findings,
            )
        else:
            assert all(finding in final.findings for finding in seen.findings)


@pytest.mark.parametrize("arm", ARMS)
def test_text_lpips_warns_even_on_healthy_arms_and_so_aborts_none(arm: str) -> None:
    assert not is_stopped(judged(arm, primary="val/text_lpips"))


@pytest.mark.parametrize("arm", ARMS)
def test_the_train_loss_says_nothing_about_any_of_them(arm: str) -> None:
    loss = arm_curves(arm)["train/loss"]
    assert verdict_on({"train/loss": loss}, 5000, primary=None).action == "none"
    assert not is_stopped(verdict_on({"train/loss": loss}, 5000, primary=Primary("train/loss")))


def test_a_policy_that_only_warns_keeps_arm_b_alive() -> None:
    policy = Policy({**ABORT_ALL.detectors, "regress": "warn"})
    verdict = verdict_on(arm_curves("B"), 5000, primary=Primary("val/recon_lpips"), policy=policy)
    assert (verdict.action, verdict.health, verdict.rule) == ("warn", Health.WARNED, "regress")


def test_best_points_of_the_published_arms() -> None:
    best = {arm: best_point(arm_curves(arm)["val/recon_lpips"], "min", 5000) for arm in ARMS}
    assert best == {"A": (3500, 0.932465), "B": (3000, 0.906958), "C": (3500, 0.929638), "D": (5000, 0.926661)}


@pytest.mark.parametrize("name", ["hot_seed0", "hot_seed1"])
def test_a_learning_rate_of_one_is_stopped_before_a_fifth_of_the_run(name: str) -> None:
    curve = series("train/loss", QUICKSTART["curves"][name])
    verdict = verdict_on({"train/loss": curve}, QUICKSTART["steps_total"])
    assert (verdict.action, verdict.rule) == ("abort", "explosion")
    assert verdict.findings[0].evidence["rule"] == "above_start"
    assert verdict.findings[0].step <= 160


@pytest.mark.parametrize("name", ["warm", "normal"])
def test_a_real_run_that_spikes_and_recovers_is_left_alone(name: str) -> None:
    curve = series("train/loss", QUICKSTART["curves"][name])
    assert verdict_on({"train/loss": curve}, QUICKSTART["steps_total"]).action == "none"
