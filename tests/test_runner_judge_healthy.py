"""Seeded healthy runs: none of them may ever be stopped."""

from __future__ import annotations

import math
from random import Random

import pytest

from runner.records import DeclaredEvent, Primary, Series
from tests.fakes.curves import (
    CADENCES,
    HEALTHY_LOSSES,
    HEALTHY_METRICS,
    Cadence,
    is_stopped,
    loss,
    metric,
    series,
    verdict_on,
)


@pytest.mark.parametrize("kind", HEALTHY_LOSSES)
@pytest.mark.parametrize("cadence", CADENCES, ids=str)
def test_no_healthy_loss_is_stopped(kind: str, cadence: Cadence) -> None:
    stopped = [
        (seed, noise, verdict.reason)
        for noise in (0.02, 0.15, 0.3)
        for seed in range(12)
        if is_stopped(verdict := loss(kind, seed, cadence, noise).verdict())
    ]
    assert not stopped


@pytest.mark.parametrize("kind", HEALTHY_METRICS)
@pytest.mark.parametrize("points", [8, 10, 20, 50])
def test_no_healthy_primary_is_stopped(kind: str, points: int) -> None:
    stopped = [
        (seed, noise, verdict.reason)
        for noise in (0.0, 0.001, 0.003)
        for seed in range(40)
        if is_stopped(verdict := verdict_on({"val/recon_lpips": metric(kind, seed, points, noise)}, 5000))
    ]
    assert not stopped


def test_a_raw_curve_that_rises_by_four_percent_and_comes_back() -> None:
    values = [0.30, 0.26, 0.24, 0.23, 0.225, 0.234, 0.226, 0.222, 0.220]
    assert not is_stopped(verdict_on({"val/recon_lpips": series("val/recon_lpips", values, 100, first=0)}, 800))


def test_single_samples_at_four_times_the_running_median() -> None:
    values = [(4.0 if k % 9 == 0 else 1.0) * (1 + 0.1 * (k % 3)) for k in range(800)]
    assert verdict_on({"train/loss": series("train/loss", values)}, 800).action == "none"


def test_a_single_wild_sample_is_no_explosion() -> None:
    values = [1.0] * 300 + [1e6] + [1.0] * 300
    assert verdict_on({"train/loss": series("train/loss", values)}, 800).action == "none"


SPIKES_IN_A_ROW = {
    # (sample, height above the level, samples of rise, samples of fall)
    "a higher one on top": [(300, 1.2, 1.0, 9.0), (310, 3.5, 1.5, 9.0)],
    "one on each way back": [(300, 6.0, 1.0, 8.0), (322, 6.0, 1.0, 8.0), (344, 6.0, 1.0, 8.0)],
    "far apart, never quite back": [(300, 4.0, 1.0, 16.0), (345, 3.0, 1.0, 14.0), (390, 8.0, 1.0, 8.0)],
    "a round top": [(300, 3.5, 4.0, 14.0), (320, 0.8, 3.0, 14.0)],
}


@pytest.mark.parametrize("kind", SPIKES_IN_A_ROW)
@pytest.mark.parametrize("noise", [0.005, 0.03, 0.1])
def test_spikes_in_a_row_that_all_recover(kind: str, noise: float) -> None:
    for seed in range(10):
        draw = Random(f"{kind}/{noise}/{seed}")
        values = []
        for k in range(800):
            excess = sum(
                height * (1 - math.exp(-(k - at + 1) / rise)) * math.exp(-(k - at) / fall)
                for at, height, rise, fall in SPIKES_IN_A_ROW[kind]
                if k >= at
            )
            values.append((0.5 + math.exp(-k / 200)) * (1 + excess) * math.exp(draw.gauss(0, noise)))
        verdict = verdict_on({"train/loss": series("train/loss", values)}, 800)
        assert verdict.action == "none", (seed, verdict.reason)


def test_a_declared_change_of_the_loss_starts_a_new_baseline() -> None:
    values = [1.0 + 0.01 * (k % 5) for k in range(200)] + [2.5 + 0.02 * (k % 5) for k in range(200)]
    curves = {"train/loss": series("train/loss", values)}
    assert not is_stopped(verdict_on(curves, 400, events=[DeclaredEvent(200, "resolution")]))
    # Only what changes the meaning of the loss does so: a checkpoint, or nothing declared at all, does not.
    assert is_stopped(verdict_on(curves, 400, events=[DeclaredEvent(200, "checkpoint")]))
    assert is_stopped(verdict_on(curves, 400))


def test_the_bump_after_a_declared_change_is_awaited() -> None:
    values = [1.0, 0.95, 0.91, 0.88, 0.86, 0.85, 0.875, 0.89, 0.90]
    curves = {"val/recon_lpips": series("val/recon_lpips", values, 500)}
    assert is_stopped(verdict_on(curves, 5000))
    assert not is_stopped(verdict_on(curves, 5000, events=[DeclaredEvent(3000, "repa_off")]))


def test_a_severe_rise_is_not_excused_by_a_declared_change() -> None:
    values = [1.0, 0.95, 0.91, 0.88, 0.86, 0.85, 1.1, 1.2, 1.3]
    curves = {"val/recon_lpips": series("val/recon_lpips", values, 500)}
    verdict = verdict_on(curves, 5000, events=[DeclaredEvent(3000, "repa_off")])
    assert (verdict.action, verdict.findings[-1].evidence["rule"]) == ("abort", "severe")


def test_a_primary_that_is_logged_at_every_step_is_judged_by_its_pools() -> None:
    for seed in range(5):
        noisy = loss("decay", seed, Cadence(5000, 1), 0.3).series
        verdict = verdict_on({"train/loss": noisy}, 5000, primary=Primary("train/loss"))
        assert not is_stopped(verdict)


def test_the_untrained_value_and_the_first_tenth_are_never_the_best() -> None:
    values = [0.10, 0.9, 0.8, 0.7, 0.6, 0.55, 0.52, 0.50, 0.49]  # an untrained model that predicts the mean scores well
    curve = Series("val/recon_lpips", (0, 100, 200, 300, 400, 500, 600, 700, 800), tuple(values))
    assert verdict_on({curve.name: curve}, 800).action == "none"
