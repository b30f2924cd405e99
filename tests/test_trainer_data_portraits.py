"""Portraits: the same everywhere, fully described by their captions, and with joints where the drawing has them."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.data.anatomy import anatomy_of, joints_of
from trainer.data.captions import CLOSED_WORDS, TEMPLATES, caption, parse, words
from trainer.data.drawing import PARTS, draw
from trainer.data.features import encode_cls, encode_patches, encode_text
from trainer.data.portraits import CHOICES, COLOURS, PLACES, Portrait, colour_edit, edited, portrait_of
from trainer.data.shapes import PORTRAIT_WORDS, POSE_JOINTS

SIZES = [(32, 32), (64, 64), (40, 24), (26, 44)]
portraits = st.builds(Portrait, **{name: st.sampled_from(choices) for name, choices in CHOICES.items()})


def part_centre(portrait: Portrait, part: str, height: int, width: int) -> tuple[float, float]:
    """Centre of mass (x, y) of a part in [-1, 1]."""
    share_HW = draw(portrait, height, width).coverage_HWP[..., PARTS.index(part)]
    rows, columns = np.mgrid[0:height, 0:width]
    x, y = (share_HW * (columns + 0.5)).sum(), (share_HW * (rows + 0.5)).sum()
    return 2 * x / share_HW.sum() / width - 1, 2 * y / share_HW.sum() / height - 1


# ---- words -----------------------------------------------------------------------------------------------------------


@given(portraits, st.integers(0, len(TEMPLATES) - 1))
def test_a_caption_says_everything_that_is_drawn(portrait: Portrait, phrasing: int) -> None:
    text = caption(portrait, phrasing)
    assert parse(text) == portrait
    assert len(words(text)) <= PORTRAIT_WORDS
    assert set(words(text)) <= CLOSED_WORDS


@given(portraits)
def test_the_two_phrasings_mean_the_same_and_differ(portrait: Portrait) -> None:
    assert caption(portrait, 0) != caption(portrait, 1)
    assert parse(caption(portrait, 0)) == parse(caption(portrait, 1))


@given(st.text(max_size=60))
def test_text_that_is_no_caption_of_ours_describes_no_portrait(text: str) -> None:
    assert parse(text) is None
    assert parse(caption(portrait_of("p000001")) + text + ".") is None


def test_words_ignore_case_and_punctuation() -> None:
    assert words("A well-known man's HAT, (blue)… café!") == ["a", "well-known", "man's", "hat", "blue", "café"]
    assert words(" ,.— ") == []


# ---- attributes ------------------------------------------------------------------------------------------------------


def test_every_word_of_every_attribute_occurs_about_equally_often() -> None:
    drawn = [portrait_of(f"p{index:06d}") for index in range(4000)]
    for name, choices in CHOICES.items():
        shares = [sum(getattr(portrait, name) == word for portrait in drawn) / len(drawn) for word in choices]
        assert min(shares) > 0.8 / len(choices), name
    assert len(set(drawn)) > 3950


@given(portraits, st.data())
def test_an_edit_changes_one_attribute_and_its_word(portrait: Portrait, data: st.DataObject) -> None:
    attribute = data.draw(st.sampled_from(tuple(CHOICES)))
    word = data.draw(st.sampled_from(CHOICES[attribute]))
    after = edited(portrait, attribute, word)
    assert {name for name in CHOICES if getattr(after, name) != getattr(portrait, name)} <= {attribute}
    changed = [pair for pair in zip(words(caption(portrait)), words(caption(after)), strict=True) if len(set(pair)) > 1]
    assert len(changed) == (getattr(portrait, attribute) != word)


@pytest.mark.parametrize(("attribute", "word"), [("hat", "red"), ("shirt", "plaid")])
def test_an_unknown_edit_names_what_is_allowed(attribute: str, word: str) -> None:
    with pytest.raises(ValueError, match=r"allowed: .*(hair_style|purple)"):
        edited(portrait_of("p000000"), attribute, word)


def test_validation_edits_every_kind_of_colour_to_a_far_one() -> None:
    edits = [(portrait_of(f"p{index}"), *colour_edit(portrait_of(f"p{index}"), f"p{index}")) for index in range(60)]
    assert {attribute for _, attribute, _ in edits} == set(COLOURS)
    for portrait, attribute, word in edits:
        before, after = COLOURS[attribute][getattr(portrait, attribute)], COLOURS[attribute][word]
        assert np.abs(np.subtract(before, after)).max() > 60


# ---- pixels ----------------------------------------------------------------------------------------------------------


def test_a_portrait_is_the_same_on_every_machine() -> None:
    pixels = b"".join(draw(portrait_of(f"p{index:06d}"), 32, 32).pixels_HWC.tobytes() for index in range(20))
    assert hashlib.sha256(pixels).hexdigest()[:16] == "c50c07397f21e2d3"


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_coverage_sums_to_one_and_every_part_is_visible(height: int, width: int) -> None:
    for index in range(12):
        drawing = draw(portrait_of(f"p{index}"), height, width)
        assert drawing.pixels_HWC.shape == (height, width, 3)
        assert drawing.pixels_HWC.dtype == np.uint8
        np.testing.assert_allclose(drawing.coverage_HWP.sum(axis=2), 1.0, atol=1e-6)
        assert (drawing.coverage_HWP.sum(axis=(0, 1)) > 0).all()


def test_edges_are_smooth_and_sizes_agree() -> None:
    portrait = portrait_of("p000003")
    large = draw(portrait, 128, 128).pixels_HWC.astype(float)
    averaged = large.reshape(32, 4, 32, 4, 3).mean(axis=(1, 3))
    assert np.abs(averaged - draw(portrait, 32, 32).pixels_HWC).mean() < 2.0
    share = draw(portrait, 32, 32).coverage_HWP
    assert ((share > 0.05) & (share < 0.95)).any(axis=2).mean() > 0.1


@given(portraits, st.sampled_from(("skin", "hair_colour", "shirt", "background")), st.data())
def test_a_colour_edit_changes_its_own_parts_only(portrait: Portrait, attribute: str, data: st.DataObject) -> None:
    parts = {"skin": ("face", "neck"), "hair_colour": ("hair",)}.get(attribute, (attribute,))
    word = data.draw(st.sampled_from([word for word in CHOICES[attribute] if word != getattr(portrait, attribute)]))
    before, after = draw(portrait, 32, 32), draw(edited(portrait, attribute, word), 32, 32)
    np.testing.assert_array_equal(before.coverage_HWP, after.coverage_HWP)
    share_HW = sum(before.coverage_HWP[..., PARTS.index(part)] for part in parts)
    differs_HW = (before.pixels_HWC != after.pixels_HWC).any(axis=2)
    assert not differs_HW[share_HW == 0].any()
    assert differs_HW[share_HW > 0.5].all()


@pytest.mark.parametrize("attribute", ["mouth", "yaw", "gaze", "hair_style", "place"])
def test_every_word_of_a_shape_draws_another_image(attribute: str) -> None:
    portrait = portrait_of("p000002")
    drawn = {draw(edited(portrait, attribute, word), 32, 32).pixels_HWC.tobytes() for word in CHOICES[attribute]}
    assert len(drawn) == len(CHOICES[attribute])


def test_left_is_the_viewers_left() -> None:
    portrait = edited(portrait_of("p000002"), "yaw", "forward")
    for attribute, part in (("place", "face"), ("yaw", "mouth")):
        left, right = (part_centre(edited(portrait, attribute, side), part, 64, 64)[0] for side in ("left", "right"))
        assert left < right - 0.1
    left, right = (anatomy_of(edited(portrait, "gaze", side), 64, 64).irises[0].x for side in ("left", "right"))
    assert left < right


# ---- joints ----------------------------------------------------------------------------------------------------------


@given(portraits, st.sampled_from(SIZES))
def test_joints_are_in_the_frame_or_have_no_confidence(portrait: Portrait, size: tuple[int, int]) -> None:
    joints_J3 = joints_of(portrait, *size)
    assert joints_J3.shape == (POSE_JOINTS, 3)
    assert (np.abs(joints_J3[:, :2]) <= 1).all()
    assert set(np.unique(joints_J3[:, 2])) <= {0.0, 0.5, 1.0}
    assert not joints_J3[joints_J3[:, 2] == 0].any()
    assert not joints_J3[7:23].any(), "a portrait shows neither elbows nor feet"
    assert not joints_J3[91:].any(), "a portrait shows no hands"
    assert (joints_J3[23:91, 2] == 1).all()


@given(portraits)
def test_joints_lie_on_what_they_name(portrait: Portrait) -> None:
    joints_J3, coverage_HWP = joints_of(portrait, 64, 64), draw(portrait, 64, 64).coverage_HWP

    def part_at(joint: int) -> str:
        column, row = ((joints_J3[joint, :2] + 1) * 32).astype(int)
        return PARTS[coverage_HWP[row, column].argmax()]

    assert [part_at(1), part_at(2)] == ["eyes", "eyes"]
    assert part_at(0) in ("face", "mouth")
    mouth_x, mouth_y = joints_J3[71:83, :2].mean(axis=0)
    assert np.hypot(*(np.subtract(part_centre(portrait, "mouth", 64, 64), (mouth_x, mouth_y)))) < 0.08
    assert joints_J3[1, 0] > joints_J3[2, 0], "the person's left eye is on the right of the image"


def test_a_shoulder_out_of_the_frame_is_not_claimed() -> None:
    shoulders = {place: joints_of(edited(portrait_of("p000000"), "place", place), 32, 32)[5:7] for place in PLACES}
    assert not shoulders["low"].any()
    assert all((shoulders[place][:, 2] == 1).all() for place in PLACES if place != "low")


def test_hair_and_turning_away_cover_ears() -> None:
    portrait = edited(edited(portrait_of("p000000"), "hair_style", "short"), "yaw", "forward")
    assert joints_of(portrait, 32, 32)[3:5, 2].tolist() == [1.0, 1.0]
    assert joints_of(edited(portrait, "yaw", "right"), 32, 32)[3:5, 2].tolist() == [0.5, 1.0]
    assert joints_of(edited(portrait, "hair_style", "long"), 32, 32)[3:5, 2].tolist() == [0.5, 0.5]


# ---- features --------------------------------------------------------------------------------------------------------


def test_a_word_has_one_vector_and_a_place() -> None:
    red_top, top_red = encode_text("red top", 16), encode_text("top red", 16)
    assert red_top.dtype == np.float16
    assert red_top.shape == (2, 64)
    assert not np.array_equal(red_top[0], top_red[1])
    np.testing.assert_array_equal(encode_text("Red, top!", 16), red_top)
    assert len(encode_text("one two three", 2)) == 2


def test_words_never_seen_and_no_words_have_vectors_too() -> None:
    assert not np.array_equal(encode_text("zebra", 4), encode_text("quagga", 4))
    assert encode_text("", 4).shape == (1, 64)
    assert np.isfinite(encode_text("", 4)).all()


@given(portraits, portraits)
def test_cls_tells_portraits_apart(one: Portrait, other: Portrait) -> None:
    assert np.array_equal(encode_cls(one), encode_cls(other)) == (one == other)


@pytest.mark.parametrize(
    ("size", "grid"), [((32, 32), (4, 4)), ((64, 64), (8, 8)), ((128, 96), (8, 6)), ((20, 20), (2, 2))]
)
def test_image_features_follow_the_image(size: tuple[int, int], grid: tuple[int, int]) -> None:
    portrait = portrait_of("p000000")
    features_PD, found = encode_patches(portrait, draw(portrait, *size).coverage_HWP)
    assert found == grid
    assert features_PD.shape == (grid[0] * grid[1], 64)
    dyed = edited(portrait, "shirt", "green" if portrait.shirt != "green" else "red")
    changed_P = (encode_patches(dyed, draw(dyed, *size).coverage_HWP)[0] != features_PD).any(axis=1)
    assert changed_P.any()
    assert not changed_P[: grid[1]].any(), "the shirt is not in the top row"
