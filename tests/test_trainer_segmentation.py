"""Weights of pixels by what they show: part maps, groups, normalisation, and that the switch does something."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.trainer_parts import NoiseSource, tiny_config
from trainer.config import SegmentationConfig
from trainer.control import StopRequest
from trainer.data.batches import Batches
from trainer.data.drawing import PARTS, draw
from trainer.data.parts import GROUPS, LABEL_SETS, PROCEDURAL_CLASSES, SAPIENS_CLASSES, group_of_class
from trainer.data.portraits import portrait_of
from trainer.data.procedural import ProceduralSource
from trainer.data.sample import collate
from trainer.errors import ConfigError
from trainer.objective.segmentation import PixelWeights, build_pixel_weights
from trainer.rules import notes
from trainer.step import Learner

ON = {"enabled": True}

# ---- part maps -------------------------------------------------------------------------------------------------------


def test_the_published_classes_fall_into_the_published_groups() -> None:
    """0 is background, 2, 3 and 23 to 27 are the face, everything else is other."""
    groups = [GROUPS[group] for group in group_of_class("sapiens")]
    assert len(groups) == len(SAPIENS_CLASSES) == 28
    assert [index for index, group in enumerate(groups) if group == "face"] == [2, 3, 23, 24, 25, 26, 27]
    assert [index for index, group in enumerate(groups) if group == "background"] == [0]


def test_portraits_have_a_face_and_the_rest() -> None:
    groups = dict(zip(PROCEDURAL_CLASSES, (GROUPS[group] for group in group_of_class("procedural")), strict=True))
    assert PARTS == PROCEDURAL_CLASSES
    assert groups == dict.fromkeys(("hair", "face", "eyes", "mouth", "neck"), "face") | {
        "background": "background",
        "shirt": "other",
    }
    assert set(LABEL_SETS) == {"procedural", "sapiens"}


def test_a_part_map_names_the_part_that_covers_most_of_a_pixel() -> None:
    drawing = draw(portrait_of("p000007"), 48, 40)
    parts_HW = drawing.parts_HW
    assert (parts_HW.shape, parts_HW.dtype) == ((48, 40), np.uint8)
    covered = np.take_along_axis(drawing.coverage_HWP, parts_HW[..., None].astype(np.int64), axis=2)[..., 0]
    assert (covered == drawing.coverage_HWP.max(axis=2)).all()
    assert {"background", "hair", "face", "shirt"} <= {PARTS[index] for index in np.unique(parts_HW)}


def test_part_maps_are_there_only_when_a_loss_asks_for_them() -> None:
    data = {"size": 16, "samples": 4, "held_out": 4}
    plain = ProceduralSource(tiny_config(data=data))
    asked = ProceduralSource(tiny_config(data=data, segmentation=ON))
    id = plain.train_ids[0]
    assert plain.load(id).parts_HW is None
    assert np.array_equal(plain.load(id).pixels_HWC, asked.load(id).pixels_HWC)
    batch = collate([asked.load(id), asked.load(asked.train_ids[1])])
    assert batch.parts_BHW is not None
    assert (batch.parts_BHW.shape, batch.parts_BHW.dtype) == ((2, 16, 16), torch.uint8)
    moved = batch.to("cpu").parts_BHW
    assert moved is not None
    assert torch.equal(moved, batch.parts_BHW)
    assert collate([plain.load(id)]).parts_BHW is None


# ---- weights ---------------------------------------------------------------------------------------------------------

WEIGHTS = st.floats(0.01, 100)


@given(WEIGHTS, WEIGHTS, WEIGHTS, st.integers(0, 2**31), st.booleans())
def test_every_pixel_has_the_weight_of_its_group(
    background: float, face: float, other: float, seed: int, normalize: bool
) -> None:
    settings = SegmentationConfig(background=background, face=face, other=other, normalize=normalize)
    parts_BHW = torch.randint(0, 28, (2, 4, 6), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    weight_B1HW = PixelWeights(settings, "sapiens", "cpu")(parts_BHW)
    assert weight_B1HW.shape == (2, 1, 4, 6)
    by_group = (background, face, other)
    expected = torch.tensor([by_group[group] for group in group_of_class("sapiens")])[parts_BHW.long()]
    if normalize:
        expected = expected / expected.mean(dim=(1, 2), keepdim=True)
        torch.testing.assert_close(weight_B1HW.mean(dim=(1, 2, 3)), torch.ones(2))
    torch.testing.assert_close(weight_B1HW[:, 0], expected)


# ---- the switch ------------------------------------------------------------------------------------------------------


def first_step(prediction: str = "x", **segmentation: Any) -> tuple[float, torch.Tensor]:
    """Flow loss and weights of the head after one step."""
    config = tiny_config(objective={"prediction": prediction}, segmentation=segmentation, optimizer={"lr": 0.01})
    source = NoiseSource(config, 0)
    learner = Learner(config, source.streams, 1, torch.device("cpu"))
    result = learner.step(Batches(source, 1, config.samples_per_step), 0, StopRequest())
    assert result is not None
    return float(result.losses_L[1]), learner.model.head.weight.detach()


@pytest.mark.parametrize("prediction", ["x", "v"])
def test_the_switch_changes_loss_and_step(prediction: str) -> None:
    plain, weighted = first_step(prediction), first_step(prediction, enabled=True)
    assert weighted[0] != plain[0]
    assert not torch.equal(weighted[1], plain[1])
    assert weighted[0] == pytest.approx(plain[0], rel=0.3), "normalised weights leave the size of the loss"
    assert first_step(prediction, enabled=True, normalize=False)[0] > weighted[0] * 1.2


def test_weights_of_one_are_no_weights() -> None:
    alike = first_step(enabled=True, background=1.0, face=1.0, other=1.0, normalize=False)
    assert alike[0] == first_step()[0]
    assert torch.equal(alike[1], first_step()[1])
    assert build_pixel_weights(tiny_config(), torch.device("cpu")) is None


# ---- configuration ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("block", "path", "words"),
    [
        ({"segmentation": ON, "data": {"source": "folder", "path": "x"}}, "segmentation.enabled", "procedural"),
        ({"segmentation": {**ON, "face": 0.0}}, "segmentation.face", "above 0"),
        ({"segmentation": {**ON, "background": 1.0, "face": 1.0}}, "segmentation", "weights that differ"),
        ({"segmentation": {**ON, "hair": 1.0}}, "segmentation.hair", "face"),
    ],
)
def test_what_cannot_be_meant_is_refused(block: dict[str, Any], path: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        tiny_config(**block)
    (issue,) = caught.value.issues
    assert issue.path == path
    assert words in str(issue)


def test_dead_weights_are_noted() -> None:
    assert any("segmentation is switched off" in note for note in notes(tiny_config(segmentation={"face": 3.0})))
