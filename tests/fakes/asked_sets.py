"""A small set of photographs as shards, whose features come from small encoders of words, colours and brightness.

They are passes as the real ones are, on numpy alone: what they make depends on what they are shown and on nothing else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import skimage.data
from PIL import Image

from tests.fakes.shards import write_shards
from trainer.data.buckets import BUCKETS
from trainer.data.shapes import POSE_JOINTS
from trainer.prepare.ingest import image_recipe
from trainer.prepare.ingest.crop import make_crop
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


SMALL_PASSES: dict[str, type[SmallPass]] = {"t5": WordPass, "dinov3": ColourPass, "pose": BrightPosePass}


def small_passes(**changes: Any) -> dict[str, Any]:
    """Entries for the table of passes; `changes` are another revision, version or precision."""
    return {name: lambda options, kind=kind: kind(**changes) for name, kind in SMALL_PASSES.items()}


def recipes() -> dict[str, Any]:
    """As they stand in the index of the set."""
    made = {name: kind().recipe.as_json() for name, kind in SMALL_PASSES.items()}
    return {"image": image_recipe(SIDE).as_json(), **made}


def stored(path: Path, caption: str) -> tuple[str, dict[str, Any]]:
    """The bucket of a photograph and its sample."""
    crop = make_crop(path.read_bytes(), SIDE)
    image_CHW = np.asarray(crop.files["image.npy"])
    inputs = Inputs(path.stem, path, image_CHW, caption)
    features: dict[str, Any] = {}
    for kind in SMALL_PASSES.values():
        features |= kind().make(inputs).files
    return str(crop.facts["bucket"]), {
        "__key__": path.stem, "json": {"caption": caption}, "image.npy": image_CHW, **features
    }  # fmt: skip


def photograph_shards(root: Path, photographs: Sequence[str] = PHOTOGRAPHS) -> Path:
    """A set of photographs in their buckets, with its index; each is `a photograph of <name>`."""
    by_bucket: dict[str, list[dict[str, Any]]] = {}
    for name in photographs:
        bucket, sample = stored(photograph(root / "photos", name), f"a photograph of {name}")
        by_bucket.setdefault(bucket, []).append(sample)
    for bucket in BUCKETS:
        if bucket.name in by_bucket:
            height, width = bucket.scaled(SIDE) or (0, 0)
            write_shards(root / "shards" / f"bucket_{width}x{height}", by_bucket[bucket.name])
    index = {"recipes": recipes(), "labels": ["six photographs of scikit-image"]}
    (root / "shards" / "index.json").write_text(json.dumps(index))
    return root / "shards"
