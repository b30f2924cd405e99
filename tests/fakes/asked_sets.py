"""A small set of photographs, prepared and packed as any other, and small encoders of words, colours and brightness.

They are passes as the real ones are, on numpy alone: what they make depends on what they are shown and on nothing else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
from PIL import Image

from trainer.data.shapes import POSE_JOINTS
from trainer.prepare import command as prepare
from trainer.prepare import table
from trainer.prepare.passes import Encode, Inputs, Made
from trainer.prepare.recipe import Recipe

SIDE, WIDTH, TOKENS = 256, 8, 12
PHOTOGRAPHS = ("astronaut", "brick", "camera", "chelsea", "coffee", "rocket")
LABEL = "small: says nothing about real encoders"
RESIDENT: list[str] = []
"""Artefacts whose encoders are open at this moment."""


def photograph(folder: Path, name: str) -> Path:
    """A photograph of scikit-image as a file."""
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(getattr(skimage.data, name)()).save(folder / f"{name}.png")
    return folder / f"{name}.png"


def _vector(word: str) -> np.ndarray:
    seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "big")
    return np.random.default_rng(seed).standard_normal(WIDTH)


class SmallPass:
    """What the small encoders share."""

    artefact: str
    batch = 4

    def __init__(self, revision: str = "1a2b", preprocessing: int = 1, precision: str = "float32") -> None:
        options = {"width": WIDTH, "precision": precision}
        self.recipe = Recipe(f"small-{self.artefact}", revision, preprocessing, options, LABEL)

    @contextmanager
    def open(self) -> Iterator[Encode]:
        """One at a time."""
        assert not RESIDENT, f"{RESIDENT} is there while {self.artefact} is opened"
        RESIDENT.append(self.artefact)
        try:
            yield lambda inputs: [self.make(one) for one in inputs]
        finally:
            RESIDENT.remove(self.artefact)

    def make(self, one: Inputs) -> Made:
        raise NotImplementedError


class WordPass(SmallPass):
    """One vector a word."""

    artefact, files, needs = "t5", ("t5h.npy", "t5m.npy"), ("caption",)

    def make(self, one: Inputs) -> Made:
        assert one.caption is not None
        words = one.caption.split()
        hidden_TD = np.zeros((TOKENS, WIDTH), dtype=np.float16)
        for place, word in enumerate(words[:TOKENS]):
            hidden_TD[place] = _vector(word)
        mask_T = (np.arange(TOKENS) < len(words)).astype(np.uint8)
        return Made({"t5h.npy": hidden_TD, "t5m.npy": mask_T}, {"truncated": max(0, len(words) - TOKENS)})


class ColourPass(SmallPass):
    """The mean colour and contrast of every cell of 16 pixels; their mean over all cells."""

    artefact, files, needs = "dinov3", ("dinov3.npy", "dinov3_patches.npy"), ("image",)

    def make(self, one: Inputs) -> Made:
        assert one.image_CHW is not None
        _, height, width = one.image_CHW.shape
        cells = one.image_CHW.reshape(3, height // 16, 16, width // 16, 16).astype(np.float64) / 127.5 - 1.0
        features_DRC = np.concatenate([cells.mean((2, 4)), cells.std((2, 4)), np.ones((2, height // 16, width // 16))])
        patches_PD = features_DRC.reshape(WIDTH, -1).T.astype(np.float16)
        return Made(
            {"dinov3.npy": patches_PD.mean(0, dtype=np.float64).astype(np.float16), "dinov3_patches.npy": patches_PD}
        )


class BrightPosePass(SmallPass):
    """All joints in a row between the darkest and the brightest cell; nobody is in an image of one colour."""

    artefact, files, needs = "pose", ("pose.npy",), ("image",)

    def make(self, one: Inputs) -> Made:
        assert one.image_CHW is not None
        grey_HW = one.image_CHW.mean(0)
        joints_J3 = np.zeros((POSE_JOINTS, 3), dtype=np.float16)
        if grey_HW.min() < grey_HW.max():
            ends = [np.array(np.unravel_index(index, grey_HW.shape)) for index in (grey_HW.argmin(), grey_HW.argmax())]
            ends_2 = [2.0 * end[::-1] / np.array(grey_HW.shape[::-1]) - 1.0 for end in ends]
            share_J1 = np.linspace(0.0, 1.0, POSE_JOINTS)[:, None]
            joints_J3[:, :2] = (1 - share_J1) * ends_2[0] + share_J1 * ends_2[1]
            joints_J3[:, 2] = 0.9
        return Made({"pose.npy": joints_J3})


SMALL_PASSES: dict[str, type[WordPass] | type[ColourPass] | type[BrightPosePass]] = {
    "t5": WordPass,
    "dinov3": ColourPass,
    "pose": BrightPosePass,
}


def small_passes(**changes: Any) -> dict[str, Any]:
    """Entries for the table of passes; `changes` are another revision, version or precision."""
    return {name: lambda options, kind=kind: kind(**changes) for name, kind in SMALL_PASSES.items()}


def photograph_shards(root: Path, *options: str) -> Path:
    """Prepare and pack six photographs, each `a photograph of <name>`, with these options of `prepare`."""
    for name in PHOTOGRAPHS:
        photograph(root / "photos", name).with_suffix(".txt").write_text(f"a photograph of {name}")
    command = [str(root / "photos"), "--out", str(root / "data"), "--side", str(SIDE), "--device", "cpu", *options]
    assert prepare.main(command) == 0
    return root / "data" / "shards"


def small_shards(root: Path) -> Path:
    """The set as the small encoders make it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table, "PASSES", {"caption": table.PASSES["caption"], **small_passes()})
        return photograph_shards(root)


def recipes(shards: Path) -> dict[str, Any]:
    """Recipes by artefact as they stand in the index of a set."""
    found: dict[str, Any] = json.loads((shards / "index.json").read_text())["recipes"]
    return found


def id_of(photograph: Path) -> str:
    """The id that a photograph has in the set."""
    return hashlib.sha256(photograph.read_bytes()).hexdigest()[:16]
