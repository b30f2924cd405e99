"""An average with another half-life, rebuilt from the stored averages of one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.fakes.trainer_parts import SHAPES, tiny_config
from trainer.autopsy.rebuild import LARGEST_DISTANCE, combine
from trainer.autopsy.weights import load_sets
from trainer.checkpoint import Contents, ema_name, save
from trainer.config import EmaConfig, filled
from trainer.model.nanodit import build
from trainer.optim.ema import Ema, decay

increasing = st.lists(st.integers(1, 40), min_size=1, max_size=8).map(lambda gaps: list(np.cumsum(gaps)))


def profile(updates: int, factor: float) -> np.ndarray:
    """What each update counts in an average, oldest first."""
    mass = factor ** np.arange(updates - 1, -1, -1, dtype=float)
    return mass / mass.sum()


@given(increasing, st.floats(0.5, 0.995), st.floats(0.5, 0.995))
def test_factors_sum_to_one_and_the_distance_is_that_of_the_profiles(
    counts: list[int], stored: float, wanted: float
) -> None:
    counts = [int(count) for count in counts]
    found = combine(counts, stored, wanted)
    assert sum(found.factors) == pytest.approx(1.0, abs=1e-6)
    realised = np.zeros(counts[-1])
    for count, factor in zip(counts, found.factors, strict=True):
        realised[:count] += factor * profile(count, stored)
    assert found.distance == pytest.approx(0.5 * np.abs(realised - profile(counts[-1], wanted)).sum(), abs=1e-6)
    assert realised.min() >= -1e-9


@given(st.integers(1, 60), st.floats(0.5, 0.99), st.floats(0.5, 0.99))
def test_with_every_update_stored_the_other_average_is_exact(updates: int, stored: float, wanted: float) -> None:
    assert combine(range(1, updates + 1), stored, wanted).distance < 1e-9


@given(increasing, st.floats(0.5, 0.99))
def test_the_same_half_life_is_the_last_average_itself(counts: list[int], stored: float) -> None:
    found = combine([int(count) for count in counts], stored, stored)
    assert found.factors[-1] == pytest.approx(1.0)
    assert found.factors[:-1] == pytest.approx([0.0] * (len(counts) - 1), abs=1e-9)
    assert found.distance == pytest.approx(0.0, abs=1e-9)


def test_too_few_stored_averages_are_too_far_away() -> None:
    """The kept checkpoints of an ordinary run: the last two and the best one."""
    stored, wanted = decay(0.05, 1, 800), decay(0.20, 1, 800)
    assert combine([600, 700, 800], stored, wanted).distance > LARGEST_DISTANCE
    assert combine(range(25, 801, 25), stored, wanted).distance < LARGEST_DISTANCE


def walk(run_dir: Path, steps: int, kept_every: int, extended_at: int | None = None) -> nn.Module:
    """Checkpoints of weights on a random walk with one stored average; returns the other average as it really was."""
    config = tiny_config(steps=steps)
    model = build(config.model, SHAPES, 0)
    ema = Ema(EmaConfig(half_lives=(0.05, 0.20)), model, steps)
    source = torch.Generator().manual_seed(0)
    for step in range(steps + 1):
        if step:
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(0.1 * torch.randn(parameter.shape, generator=source))
            ema.update(model, step)
        if step % kept_every == 0:
            content = filled(config)
            content["ema"]["half_lives"] = [0.05]
            if extended_at is not None and step >= extended_at:
                content["steps"] = 2 * steps
            modules = {"model": model, ema_name(0.05): ema.models[0.05]}
            save(run_dir, step, Contents(modules, {}, {"step": step, "finite": True, "config": content}))
    return ema.models[0.20]


def apart(tensors: dict[str, torch.Tensor], model: nn.Module) -> float:
    """Distance from a model's weights as a share of their size."""
    other = dict(model.named_parameters())
    gap = sum(float((tensors[name] - other[name]).square().sum()) for name in other)
    return (gap / sum(float(value.square().sum()) for value in other.values())) ** 0.5


def test_the_rebuilt_average_is_the_real_one_where_every_step_is_kept(tmp_path: Path) -> None:
    real = walk(tmp_path, 20, 1)
    sets = load_sets(tmp_path, 20)
    assert sets.finite
    assert sets.distance == pytest.approx(0.0, abs=1e-6)
    assert apart(dict(sets.tensors["ema_alt"]), real) < 1e-5
    assert apart(dict(sets.tensors["ema"]), real) > 0.01


def test_kept_now_and_then_it_is_near_and_kept_too_seldom_it_is_refused(tmp_path: Path) -> None:
    near, far = tmp_path / "near", tmp_path / "far"
    real = walk(near, 40, 2)
    sets = load_sets(near, 40)
    assert sets.distance is not None
    assert 0.0 < sets.distance <= LARGEST_DISTANCE
    assert apart(dict(sets.tensors["ema_alt"]), real) < apart(dict(sets.tensors["ema"]), real)
    walk(far, 40, 20)
    sets = load_sets(far, 40)
    assert "ema_alt" not in sets.tensors
    assert sets.distance is not None
    assert f"{sets.distance:.2f} (total variation" in sets.why_not


def test_before_the_first_update_all_averages_are_the_first_weights(tmp_path: Path) -> None:
    walk(tmp_path, 4, 2)
    sets = load_sets(tmp_path, 0)
    assert sets.tensors["ema_alt"] is sets.tensors["ema"]
    assert sets.distance == 0.0


def test_an_extended_run_has_several_half_lives(tmp_path: Path) -> None:
    walk(tmp_path, 8, 2, extended_at=6)
    sets = load_sets(tmp_path, 8)
    assert "was extended" in sets.why_not
    assert "ema_alt" not in sets.tensors
