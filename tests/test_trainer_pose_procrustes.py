"""Alignment of points: what it is invariant under, what it must not forgive, and what it cannot use."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.pose.procrustes import LEAST_POINTS, best_similarity

seeds = st.integers(0, 2**32 - 1)
counts = st.integers(LEAST_POINTS, 30)


def points(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 2))


def turned(points_N2: np.ndarray, angle: float, scale: float, shift: tuple[float, float]) -> np.ndarray:
    rotation_22 = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return scale * points_N2 @ rotation_22.T + shift


def residual(source_N2: np.ndarray, target_N2: np.ndarray, weight_N: np.ndarray) -> float:
    apart_N2 = best_similarity(source_N2, target_N2, weight_N)(source_N2) - target_N2
    return float((weight_N * (apart_N2**2).sum(axis=1)).sum())


@given(seeds, counts, st.floats(-4, 4), st.floats(0.01, 100), st.tuples(st.floats(-9, 9), st.floats(-9, 9)))
def test_a_similarity_is_undone(seed, count, angle, scale, shift) -> None:
    target = points(seed, count)
    weight = np.random.default_rng(seed + 1).uniform(0.1, 1.0, count)
    found = best_similarity(turned(target, angle, scale, shift), target, weight)
    assert np.allclose(found(turned(target, angle, scale, shift)), target, atol=1e-6)
    assert found.scale == pytest.approx(1 / scale, rel=1e-6)
    assert np.linalg.det(found.rotation_22) == pytest.approx(1.0)


@given(seeds, counts, st.floats(-4, 4), st.floats(0.1, 10))
def test_the_result_does_not_depend_on_where_the_source_was(seed, count, angle, scale) -> None:
    source, target, weight = points(seed, count), points(seed + 1, count), np.ones(count)
    moved = turned(source, angle, scale, (3.0, -2.0))
    one, other = best_similarity(source, target, weight), best_similarity(moved, target, weight)
    assert np.allclose(one(source), other(moved), atol=1e-6)


@given(seeds, counts)
def test_a_mirror_image_is_not_the_same_shape(seed, count) -> None:
    target = points(seed, count) * (1.0, 0.6)
    mirrored, weight = target * (-1.0, 1.0), np.ones(count)
    found = best_similarity(mirrored, target, weight)
    assert np.linalg.det(found.rotation_22) == pytest.approx(1.0)
    assert residual(mirrored, target, weight) > 1e-3 * residual(np.zeros_like(target), target, weight)


@given(seeds, counts, st.floats(-0.5, 0.5), st.floats(0.7, 1.4), st.floats(-0.3, 0.3))
def test_no_other_similarity_is_better(seed, count, angle, scale, shift) -> None:
    source, target = points(seed, count), points(seed + 1, count)
    weight = np.random.default_rng(seed + 2).uniform(0.1, 1.0, count)
    best = best_similarity(source, target, weight)(source)
    other = turned(best, angle, scale, (shift, 0.0))
    cost = [float((weight * ((each - target) ** 2).sum(axis=1)).sum()) for each in (best, other)]
    assert cost[0] <= cost[1] + 1e-9


@given(seeds, counts)
def test_a_weight_counts_like_so_many_copies(seed, count) -> None:
    source, target = points(seed, count), points(seed + 1, count)
    times = np.random.default_rng(seed).integers(1, 4, count)
    weighted = best_similarity(source, target, times.astype(float))
    repeated = best_similarity(source.repeat(times, axis=0), target.repeat(times, axis=0), np.ones(times.sum()))
    assert np.allclose(weighted(source), repeated(source), atol=1e-8)


@given(seeds)
def test_a_point_without_weight_does_not_matter(seed) -> None:
    source, target = points(seed, 6), points(seed + 1, 6)
    weight = np.array([1.0, 1, 1, 1, 1, 0])
    wild = source.copy()
    wild[5] = 1e6
    found = best_similarity(wild, target, weight)
    assert np.allclose(found(source[:5]), best_similarity(source[:5], target[:5], weight[:5])(source[:5]), atol=1e-6)


@pytest.mark.parametrize("side", ["source", "target"])
def test_points_that_coincide_shrink_to_the_centre(side: str) -> None:
    same, spread = np.full((5, 2), (0.1, 7.3)), points(0, 5)
    source, target = (same, spread) if side == "source" else (spread, same)
    found = best_similarity(source, target, np.ones(5))
    assert found.scale == pytest.approx(0.0, abs=1e-12)
    assert np.allclose(found(source), target.mean(axis=0))


def test_points_on_a_line_are_aligned() -> None:
    line = np.stack([np.arange(5.0), np.zeros(5)], axis=1)
    target = turned(line, 1.0, 2.0, (1, 1))
    assert np.allclose(best_similarity(line, target, np.ones(5))(line), target)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"weight_N": np.array([1.0, 1, 1, 0, 0])}, "3 points of positive weight"),
        ({"weight_N": np.array([1.0, 1, 1, 1, -1])}, "at least 0"),
        ({"weight_N": np.ones(4)}, "do not belong together"),
        ({"source_N2": np.full((5, 2), np.nan)}, "finite"),
        ({"target_N2": np.zeros((5, 3))}, "do not belong together"),
    ],
)
def test_what_cannot_be_aligned_is_refused(changes: dict, words: str) -> None:
    usable = {"source_N2": points(0, 5), "target_N2": points(1, 5), "weight_N": np.ones(5)}
    with pytest.raises(ValueError, match=words):
        best_similarity(**{**usable, **changes})
