"""Runs that went bad on purpose: each is caught, not before it went bad, and within a bounded delay."""

from __future__ import annotations

import math
from random import Random
from statistics import median

import pytest

from runner.records import Health, Primary, Series, Severity
from tests.fakes.curves import SICK_LOSSES, Cadence, is_stopped, loss, metric, series, verdict_on

NAN, INF = math.nan, math.inf

# Half of all cases are caught within this share of the budget after the onset, and every one within the second.
DELAYS = {"explosion": (0.05, 0.13), "half_recovered": (0.13, 0.25), "climb": (0.25, 0.35)}


@pytest.mark.parametrize("kind", SICK_LOSSES)
@pytest.mark.parametrize("cadence", [Cadence(800, 1), Cadence(5000, 1), Cadence(5000, 10)], ids=str)
def test_a_sick_loss_is_caught_in_time_and_never_before_its_onset(kind: str, cadence: Cadence) -> None:
    usual, longest = DELAYS[kind]
    cases, delays = 0, []
    for noise in (0.02, 0.15):
        for seed in range(20):
            case = loss(kind, seed, cadence, noise)
            if case.onset > (1 - longest) * case.steps_total:
                continue  # too late in the run for any rule to be sure
            cases += 1
            verdict = case.verdict()
            if is_stopped(verdict):
                assert verdict.rule == "explosion"
                delays.append((verdict.findings[0].step - case.onset) / case.steps_total)
    # One may escape: stuck at not quite twice a level that itself still halves, it is back below within the horizon.
    assert len(delays) >= max(20, cases - 1)
    assert min(delays) >= 0
    assert median(delays) <= usual
    assert max(delays) <= longest


@pytest.mark.parametrize("begins", range(7, 16))
def test_a_run_that_breaks_before_any_baseline_and_stays_broken(begins: int) -> None:
    values = [2.0 - 0.01 * k if k < begins else 500.0 * (1 + 0.2 * (k % 4)) for k in range(800)]
    verdict = verdict_on({"train/loss": series("train/loss", values)}, 800)
    assert (verdict.action, verdict.rule) == ("abort", "explosion")
    assert verdict.findings[0].evidence["rule"] == "above_start"
    assert 40 <= verdict.findings[0].step <= 80


def test_a_run_that_breaks_early_and_recovers_is_left_alone() -> None:
    values = [2.0 if k < 10 else 0.5 + 60 * math.exp(-(k - 10) / 15) for k in range(800)]
    assert verdict_on({"train/loss": series("train/loss", values)}, 800).action == "none"


@pytest.mark.parametrize("per_sample", [0.012, 0.03, 0.1])
def test_a_loss_that_grows_without_end_is_not_taken_for_one_spike_on_another(per_sample: float) -> None:
    values = [1.0 + 0.01 * (k % 5) for k in range(300)]
    values += [math.exp(per_sample * k) + 0.01 * (k % 5) for k in range(250)]
    verdict = verdict_on({"train/loss": series("train/loss", values)}, 800)
    assert (verdict.action, verdict.rule) == ("abort", "explosion")
    # From 60 % above its level on, within the time that a spike would have had.
    assert verdict.findings[0].step <= 300 + math.log(1.6) / per_sample + 64


@pytest.mark.parametrize("level", [1.9, 2.5, 3.5])
def test_a_spike_that_recovers_only_half_way(level: float) -> None:
    values = [1.0 + 0.02 * (k % 5) for k in range(300)]
    values += [level + 6 * math.exp(-k / 5) + 0.02 * (k % 5) for k in range(200)]
    verdict = verdict_on({"train/loss": series("train/loss", values)}, 1000)
    assert (verdict.action, verdict.rule) == ("abort", "explosion")
    assert 300 < verdict.findings[0].step <= 300 + 80


def test_a_flat_explosion_takes_ten_to_twenty_samples() -> None:
    values = [1.0 + 0.02 * (k % 5) for k in range(300)] + [8.0 + 0.1 * (k % 5) for k in range(60)]
    finding = verdict_on({"train/loss": series("train/loss", values)}, 1000).findings[0]
    assert finding.evidence["rule"] == "plateau"
    assert 310 <= finding.step <= 320
    assert finding.evidence["first_step"] == 301


def test_a_loss_that_keeps_growing() -> None:
    values = [1.0 + 0.02 * (k % 5) for k in range(300)] + [1.08**k for k in range(100)]
    finding = verdict_on({"train/loss": series("train/loss", values)}, 1000).findings[0]
    assert finding.step <= 350


def test_a_loss_below_zero_is_measured_by_its_own_progress() -> None:
    falls = [5.0 - 0.05 * k for k in range(300)]
    quiet = {"train/loss": series("train/loss", falls + [-10.0 + 0.1 * (k % 7) for k in range(300)])}
    assert verdict_on(quiet, 800).action == "none"
    back_at_the_start = {"train/loss": series("train/loss", falls + [5.0 + 0.1 * (k % 7) for k in range(300)])}
    assert verdict_on(back_at_the_start, 800).action == "abort"


@pytest.mark.parametrize("points", [10, 20, 50, 100])
def test_a_slow_collapse_of_the_primary_is_caught(points: int) -> None:
    for seed in range(30):
        curve = metric("collapse", seed, points, 0.001)
        verdict = verdict_on({curve.name: curve}, 5000)
        assert (verdict.action, verdict.rule) == ("abort", "regress"), seed
        step = verdict.findings[-1].step
        assert 2500 < step <= 4750
        warned = next(f.step for f in verdict.findings if f.severity is Severity.WARN)
        assert warned <= step


def test_a_metric_that_jumps_and_stays_exactly_there() -> None:
    values = [1.0, 0.9, 0.85, 0.8, 0.78, 0.77] + [1.2] * 4
    verdict = verdict_on({"val/recon_lpips": series("val/recon_lpips", values, 500)}, 5000)
    assert (verdict.action, verdict.findings[-1].evidence["rule"]) == ("abort", "severe")
    assert verdict.findings[-1].step == 4000


def test_a_persistent_rise_of_more_than_three_percent() -> None:
    values = [1.0, 0.9, 0.84, 0.80, 0.78, 0.77, 0.800, 0.801, 0.802, 0.802]
    verdict = verdict_on({"val/recon_lpips": series("val/recon_lpips", values, 500)}, 5000)
    assert (verdict.action, verdict.findings[-1].evidence["rule"]) == ("abort", "persistent")


def test_a_projected_rise_is_stopped_before_it_is_large() -> None:
    values = [1.0 - 0.01 * k for k in range(25)] + [0.77 + 0.008 * k for k in range(25)]
    verdict = verdict_on({"val/recon_lpips": series("val/recon_lpips", values, 100)}, 5000)
    assert (verdict.action, verdict.findings[-1].evidence["rule"]) == ("abort", "projected")
    assert verdict.findings[-1].evidence["regress_percent"] < 4.5


def test_the_last_checkpoint_alone_gives_a_verdict_without_a_kill() -> None:
    values = [1.0, 0.9, 0.85, 0.82, 0.80, 0.79, 0.785, 0.782, 0.78, 0.85]
    verdict = verdict_on({"val/recon_lpips": series("val/recon_lpips", values, 500)}, 5000)
    assert (verdict.action, verdict.health) == ("verdict_only", Health.DIVERGED)
    assert verdict.findings[-1].evidence["rule"] == "final_verdict"


@pytest.mark.parametrize("noise", [0.0005, 0.002])
def test_a_metric_that_fell_steeply_before_is_not_called_noisy_for_its_bend(noise: float) -> None:
    for seed in range(10):
        draw = Random(f"{noise}/{seed}")
        values = []
        for k in range(1, 17):
            fallen = 1 / (1 + math.exp((0.28 - min(k, 12) / 16) / 0.08))
            values.append((3.3 - 2.4 * fallen) * (1 + 0.016 * max(0, k - 12)) * math.exp(draw.gauss(0, noise)))
        verdict = verdict_on({"val/recon_lpips": series("val/recon_lpips", values, 50)}, 800)
        assert verdict.rule == "regress", seed
        assert verdict.action in ("abort", "verdict_only"), (seed, verdict.reason)


def test_higher_is_better_is_the_mirror_image() -> None:
    falling = [0.50, 0.56, 0.60, 0.64, 0.66, 0.67, 0.60, 0.54, 0.50, 0.45]
    curves = {"accuracy": series("accuracy", falling, 500)}
    verdict = verdict_on(curves, 5000, primary=Primary("accuracy", direction="max"))
    assert (verdict.action, verdict.rule) == ("abort", "regress")
    assert verdict.findings[-1].evidence["best_value"] == 0.67
    assert verdict.findings[-1].evidence["value"] == pytest.approx(0.54)
    rising = {"accuracy": series("accuracy", [0.50 + 0.02 * k for k in range(10)], 500)}
    assert verdict_on(rising, 5000, primary=Primary("accuracy", direction="max")).action == "none"
    # Worse from its first validation on, as untrained models that draw grey are: told, and left to go on.
    assert verdict_on(rising, 5000, primary=Primary("accuracy", direction="min")).action == "warn"


def test_secondary_metrics_warn_and_probes_are_not_ranked() -> None:
    values = [1.0, 0.9, 0.85, 0.8, 0.78, 0.77, 0.9, 1.0, 1.1, 1.2]
    healthy = series("val/recon_lpips", [1.0 - 0.01 * k for k in range(10)], 500)
    for name in ("val/text_lpips", "val/recon_rmse", "val/loss"):
        verdict = verdict_on({healthy.name: healthy, name: series(name, values, 500)}, 5000)
        assert (verdict.action, verdict.rule, verdict.findings[0].evidence["metric"]) == ("warn", "regress", name)
    for name in ("val_probe/recon_lpips", "val/text_manip_delta", "val_raw/recon_lpips"):
        assert verdict_on({healthy.name: healthy, name: series(name, values, 500)}, 5000).action == "none"


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("name", ["train/loss", "train/grad_norm", "val/recon_lpips", "val_probe/loss", "accuracy"])
def test_one_value_that_is_not_finite_stops_the_run_at_once(name: str, bad: float) -> None:
    values = [1.0] * 50 + [bad] + [1.0] * 10
    verdict = verdict_on({name: series(name, values), "other": series("other", [1.0] * 61)}, 1000)
    assert (verdict.action, verdict.rule, verdict.health) == ("abort", "non_finite", Health.DIVERGED)
    finding = verdict.findings[0]
    assert (finding.step, finding.evidence["value"]) == (51, str(bad))
    assert (finding.evidence["last_finite_step"], finding.evidence["last_finite_value"]) == (50, 1.0)


@pytest.mark.parametrize("name", ["sys/mfu", "memory/peak_vram_gib"])
def test_the_counters_of_the_machine_are_not_watched(name: str) -> None:
    assert verdict_on({name: series(name, [NAN, INF])}, 1000).action == "none"


def test_which_series_is_the_loss() -> None:
    bad = [1.0 + 0.02 * (k % 5) for k in range(300)] + [8.0] * 60

    def verdict(name: str, loss_name: str | None, *others: Series) -> str:
        curves = {curve.name: curve for curve in (*others, series(name, bad))}
        return verdict_on(curves, 1000, loss_name=loss_name).action

    fine = [1.0] * 360
    assert verdict("train/loss", None) == verdict("loss", None) == verdict("objective", "objective") == "abort"
    assert verdict("objective", None) == "none"
    assert verdict("loss", None, series("train/loss", fine)) == "none"
    assert verdict("objective", "objective", series("loss", fine)) == "none"
