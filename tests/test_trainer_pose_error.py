"""Errors of joints: units, which joints count, and what alignment takes out."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.data.anatomy import joints_of
from trainer.data.portraits import portrait_of
from trainer.pose.error import GROUPS, counted, interocular, mpjpe, pa_mpjpe


def joints(id: str = "p000001", height: int = 32, width: int = 32) -> np.ndarray:
    return joints_of(portrait_of(id), height, width).astype(np.float64)


def test_the_groups_are_those_of_wholebody_and_cover_all_joints() -> None:
    sizes = {name: group.stop - group.start for name, group in GROUPS.items()}
    assert sizes == {"body": 17, "feet": 6, "face": 68, "hands": 42}
    assert sorted(index for group in GROUPS.values() for index in range(133)[group]) == list(range(133))


def test_a_joint_counts_when_it_is_confident_and_in_the_frame() -> None:
    condition = np.zeros((133, 3))
    condition[:4] = [[0, 0, 0.3], [0, 0, 0.29], [1.01, 0, 1], [-1, 1, 1]]
    assert np.flatnonzero(counted(condition)).tolist() == [0, 3]


def test_the_unit_is_the_distance_of_the_eyes_in_pixels() -> None:
    condition = joints()
    condition[1], condition[2] = (0.25, 0, 1), (-0.25, 0, 1)
    assert interocular(condition, 40, 80) == 20.0
    found = condition[:, :2] + (0.0, 0.5)  # 10 of 40 pixels down
    assert mpjpe(found, condition, 40, 80) == pytest.approx(0.5)


@pytest.mark.parametrize("eye", [(0, 0, 0.1), (1.5, 0, 1), (0.25, 0, 1)])
def test_without_two_eyes_there_is_no_unit(eye: tuple[float, float, float]) -> None:
    condition = joints()
    condition[1], condition[2] = (0.25, 0, 1), eye
    assert math.isnan(mpjpe(condition[:, :2], condition, 32, 32))
    assert all(math.isnan(error) for error in pa_mpjpe(condition[:, :2], condition, 32, 32).values())


def test_without_any_joint_there_is_no_error() -> None:
    assert math.isnan(mpjpe(np.zeros((133, 2)), np.zeros((133, 3)), 32, 32))
    assert pa_mpjpe(np.zeros((133, 2)), np.zeros((133, 3)), 32, 32) == {}


@given(st.floats(-3, 3), st.floats(0.3, 3), st.floats(-0.5, 0.5), st.sampled_from([(32, 32), (24, 48)]))
def test_alignment_takes_out_place_size_and_tilt_in_pixels(angle, scale, shift, size) -> None:
    condition, (height, width) = joints(height=size[0], width=size[1]), size
    unit = np.array([width / 2, height / 2])
    rotation = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    found = (scale * condition[:, :2] * unit @ rotation.T + shift * 16) / unit
    assert max(pa_mpjpe(found, condition, height, width).values()) < 1e-6
    assert mpjpe(found, condition, height, width) >= 0


def test_alignment_does_not_take_out_a_mirror() -> None:
    condition = joints()
    mirrored = condition[:, :2] * (-1, 1)
    assert pa_mpjpe(mirrored, condition, 32, 32)["face"] > 0.05


def test_a_portrait_has_a_body_and_a_face_and_each_is_aligned_alone() -> None:
    condition = joints()
    found = condition[:, :2].copy()
    found[GROUPS["face"]] += 0.3  # the face as a whole elsewhere: no error within a group
    assert set(pa_mpjpe(found, condition, 32, 32)) == {"body", "face"}
    assert max(pa_mpjpe(found, condition, 32, 32).values()) < 1e-9
    assert mpjpe(found, condition, 32, 32) > 0.5


def test_an_uncertain_joint_pulls_less_and_so_stays_further_off() -> None:
    condition = joints()
    found = condition[:, :2].copy()
    found[3] += 0.4
    errors = []
    for confidence in (0.3, 1.0):
        condition[3, 2] = confidence
        errors.append(pa_mpjpe(found, condition, 32, 32)["body"])
    assert errors[0] > errors[1]
