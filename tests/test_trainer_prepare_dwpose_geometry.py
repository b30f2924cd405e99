"""The steps of finding a pose, each alone: places there and back, boxes out of anchors, joints out of bins."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.prepare.dwpose.crop import HEIGHT, WIDTH, person_crop
from trainer.prepare.dwpose.simcc import joints_in_crop, pose_of_image
from trainer.prepare.dwpose.yolox import ANCHORS, FEATURES, people, suppressed
from trainer.prepare.placement import Placement, letterbox

sizes = st.tuples(st.integers(1, 4096), st.integers(1, 4096))
numbers = st.floats(-3000, 3000)


@given(sizes, st.sampled_from([(640, 640), (768, 1024)]), st.booleans(), numbers, numbers)
def test_a_letterbox_holds_the_whole_image_and_leads_back(
    image: tuple[int, int], canvas: tuple[int, int], centred: bool, x: float, y: float
) -> None:
    place = letterbox(image, canvas, centred)
    np.testing.assert_allclose(place.to_image(place.to_canvas(np.asarray([[x, y]]))), [[x, y]], atol=1e-6)
    (first,), (last,) = place.to_canvas(np.zeros((1, 2))), place.to_canvas(np.asarray([image]))
    assert (first >= -1e-9).all()
    assert (last <= np.asarray(canvas) + 1e-6).all()
    assert np.isclose(last - first, canvas, rtol=1e-9).any(), "it could be larger"
    np.testing.assert_allclose(first, (canvas - last) if centred else 0.0, atol=1e-6)


@given(numbers, numbers, st.floats(0, 3000), st.floats(0, 3000), numbers, numbers)
def test_a_crop_has_the_box_in_its_middle_and_leads_back(
    left: float, top: float, width: float, height: float, x: float, y: float
) -> None:
    box_4 = np.asarray([left, top, left + width, top + height])
    place = person_crop(box_4)
    np.testing.assert_allclose(place.to_image(place.to_canvas(np.asarray([[x, y]]))), [[x, y]], atol=1e-6)
    corners_22 = place.to_canvas(box_4.reshape(2, 2))
    np.testing.assert_allclose(corners_22.mean(axis=0), (WIDTH / 2, HEIGHT / 2), atol=1e-6)
    share = (corners_22[1] - corners_22[0]) / (WIDTH, HEIGHT)
    assert share.max() <= 1 / 1.25 + 1e-9
    if max(width, height) > 2:
        np.testing.assert_allclose(share.max(), 1 / 1.25, rtol=1e-9)


@given(
    st.tuples(st.floats(20, 76), st.floats(20, 40)), st.floats(0.4, 3.0), st.tuples(st.floats(-9, 9), st.floats(-9, 9))
)
def test_pixels_land_where_the_geometry_says(
    centre: tuple[float, float], scale: float, shift: tuple[float, float]
) -> None:
    x_W, y_H = np.arange(96) + 0.5, np.arange(60) + 0.5
    dot_HW = 255 * np.exp(-((x_W - centre[0]) ** 2 + (y_H[:, None] - centre[1]) ** 2) / (2 * 3.0**2))
    place = Placement(scale, shift[0] + 10, shift[1] + 10)
    canvas_HWC = place.draw(np.repeat(dot_HW[None].round().astype(np.uint8), 3, axis=0), (320, 220), (0, 0, 0))
    weight_HW = canvas_HWC[:, :, 0].astype(np.float64)
    found = (
        (weight_HW.sum(axis=0) * (np.arange(320) + 0.5)).sum() / weight_HW.sum(),
        (weight_HW.sum(axis=1) * (np.arange(220) + 0.5)).sum() / weight_HW.sum(),
    )
    np.testing.assert_allclose(found, place.to_canvas(np.asarray([centre]))[0], atol=0.1)


boxes = st.lists(
    st.tuples(*(st.integers(0, 12) for _ in range(2)), *(st.integers(1, 9) for _ in range(2)), st.integers(0, 5)),
    max_size=9,
)


@given(boxes, st.sampled_from([0.2, 0.45, 0.7]))
def test_suppression_keeps_what_no_better_kept_box_covers(found: list[tuple[int, ...]], most: float) -> None:
    """The two halves of its definition: nothing kept overlaps, and whatever is dropped overlaps a better one."""
    cells = [{(x, y) for x in range(a, a + w) for y in range(b, b + h)} for a, b, w, h, _ in found]
    box_N4 = np.asarray([(a, b, a + w, b + h) for a, b, w, h, _ in found], dtype=float).reshape(-1, 4)
    score_N = np.asarray([s / 5 for *_, s in found])

    def overlap(one: int, other: int) -> bool:
        return len(cells[one] & cells[other]) / len(cells[one] | cells[other]) > most

    def better(one: int, other: int) -> bool:
        return (-score_N[one], one) < (-score_N[other], other)

    kept = suppressed(box_N4, score_N, most).tolist()
    assert kept == sorted(kept, key=lambda index: (-score_N[index], index))
    assert not any(overlap(one, other) for one in kept for other in kept if one != other)
    for dropped in set(range(len(found))) - set(kept):
        assert any(better(one, dropped) and overlap(one, dropped) for one in kept)


def raw(*planted: tuple[int, int, int, tuple[float, ...], float, int]) -> np.ndarray:
    """What YOLOX would say of boxes (stride, column, row, (x0, y0, x1, y1), score, class) on its canvas."""
    raw_NF = np.zeros((ANCHORS, FEATURES), dtype=np.float32)
    for stride, column, row, (x0, y0, x1, y1), score, kind in planted:
        before = {8: 0, 16: 80 * 80, 32: 80 * 80 + 40 * 40}[stride]
        anchor = raw_NF[before + row * (640 // stride) + column]
        anchor[:2] = (x0 + x1) / 2 / stride - column, (y0 + y1) / 2 / stride - row
        anchor[2:4] = np.log((x1 - x0) / stride), np.log((y1 - y0) / stride)
        anchor[4], anchor[5 + kind] = 0.8, score / 0.8
    return raw_NF


WHOLE = letterbox((1280, 640), (640, 640))


def test_boxes_come_back_in_pixels_of_the_image() -> None:
    found = people(raw((8, 3, 70, (10, 20, 30, 60), 0.5, 0), (32, 19, 0, (600, 0, 640, 64), 0.7, 0)), WHOLE)
    np.testing.assert_allclose(found.box_N4, [(1200, 0, 1280, 128), (20, 40, 60, 120)], atol=1e-3)
    np.testing.assert_allclose(found.score_N, [0.7, 0.5], rtol=1e-6)
    assert found.largest() == 0


def test_only_people_count_who_are_certain_enough() -> None:
    box = (100.0, 100.0, 300.0, 300.0)
    found = people(raw((16, 9, 9, box, 0.9, 1), (16, 10, 9, box, 0.29, 0), (16, 9, 10, box, 0.31, 0)), WHOLE)
    np.testing.assert_allclose(found.score_N, [0.31], rtol=1e-6)


def test_the_largest_person_is_chosen_and_of_equals_the_surest() -> None:
    small, one, other = (0.0, 0.0, 50.0, 50.0), (100.0, 100.0, 200.0, 300.0), (300.0, 100.0, 400.0, 300.0)
    found = people(raw((8, 1, 1, small, 0.95, 0), (8, 2, 2, one, 0.5, 0), (8, 3, 3, other, 0.6, 0)), WHOLE)
    assert len(found.score_N) == 3
    chosen = found.largest()
    np.testing.assert_allclose(found.box_N4[chosen], np.asarray(other) * 2, atol=1e-2)


@pytest.mark.parametrize(("column", "value"), [(4, np.nan), (5, np.inf), (0, np.nan), (2, 1e30)])
def test_numbers_that_are_no_boxes_are_an_error(column: int, value: float) -> None:
    said = raw((8, 3, 3, (10, 10, 50, 50), 0.8, 0))
    said[3 * 80 + 3, column] = value
    with pytest.raises(ValueError, match="not finite"):
        people(said, WHOLE)


def test_bins_are_half_pixels_and_the_weaker_axis_is_believed() -> None:
    x_JX, y_JY = np.zeros((3, 576), dtype=np.float32), np.zeros((3, 768), dtype=np.float32)
    x_JX[0, 100], y_JY[0, 201] = 0.5, 0.9
    x_JX[1, 575], y_JY[1, 0] = 1.4, 1.2
    place_J2, confidence_J = joints_in_crop(x_JX, y_JY)
    np.testing.assert_allclose(place_J2[:2], [(50.5, 101.0), (288.0, 0.5)])
    np.testing.assert_allclose(confidence_J, [0.5, 1.2, 0.0], rtol=1e-6)


def test_joints_outside_have_no_confidence_and_no_confidence_is_above_one() -> None:
    x_JX, y_JY = np.zeros((4, 576), dtype=np.float32), np.zeros((4, 768), dtype=np.float32)
    for joint, (x, y) in enumerate([(200, 200), (20, 200), (200, 700), (300, 300)]):
        x_JX[joint, x] = y_JY[joint, y] = 1.5
    x_JX[3] = -0.1  # a network may say less than nothing
    pose_J3 = pose_of_image(x_JX, y_JY, Placement(1.0, 20.0, 20.0), (200, 300))
    np.testing.assert_allclose(pose_J3[0], ((100.5 - 20) / 100 - 1, (100.5 - 20) / 150 - 1, 1.0), atol=1e-3)
    assert not pose_J3[1:].any()
