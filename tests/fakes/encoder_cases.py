"""Inputs for the passes of text and images, and what the tests of both ask of them. Imports no transformers.

Shapes: C channels, H x W pixels.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trainer.cache import cache_folder
from trainer.errors import DataError
from trainer.prepare.dinov3 import dinov3_pass
from trainer.prepare.options import Options
from trainer.prepare.passes import Failed, Inputs, Made, Pass
from trainer.prepare.t5 import t5_pass

TINY = Options(side=256, tiny=True, device="cpu")
CAPTIONS = (
    "A photograph of a woman with dark hair and a red scarf, soft light.",
    "A cat.",
    "The rocket stands near the sea under a large grey cloud; behind, two small boats.",
)


@contextmanager
def own_cache(folder: Path) -> Iterator[None]:
    """Stand-ins are built below this folder while the context lasts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield


def copied_stand_ins(target: Path) -> dict[str, Path]:
    """Copies of both stand-ins that a test may change, by the name of the option."""
    found = {}
    for option, work in (("t5", t5_pass(TINY)), ("dinov3", dinov3_pass(TINY))):
        assert work.recipe.revision
        found[option] = target / option
        shutil.copytree(cache_folder() / f"tiny-{option}-1", found[option])
    return found


def captioned(*captions: str) -> list[Inputs]:
    return [Inputs(str(index), Path("x.jpg"), caption=caption) for index, caption in enumerate(captions)]


def picture(height: int = 256, width: int = 256, seed: int = 0) -> np.ndarray:
    """Smooth random colours with some noise: (C, H, W) uint8."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (3, height // 16, width // 16)).repeat(16, axis=1).repeat(16, axis=2)
    return np.clip(coarse + random.integers(-20, 21, coarse.shape), 0, 255).astype(np.uint8)


def pictured(*pictures: np.ndarray) -> list[Inputs]:
    return [Inputs(str(index), Path("x.jpg"), image_CHW=image) for index, image in enumerate(pictures)]


def made(answers: Sequence[Made | Failed]) -> list[dict[str, Any]]:
    assert all(isinstance(answer, Made) for answer in answers), answers
    return [dict(answer.files) for answer in answers if isinstance(answer, Made)]


def folder_passes(folders: dict[str, Path]) -> dict[str, Pass]:
    options = Options(side=256, device="cpu", t5=str(folders["t5"]), dinov3=str(folders["dinov3"]))
    return {"t5": t5_pass(options), "dinov3": dinov3_pass(options)}


def refusal(work: Pass) -> str:
    """What is said when the pass is looked up or its model is loaded."""
    with pytest.raises(DataError) as caught:  # noqa: PT012
        assert work.recipe
        with work.open():
            pass
    return str(caught.value)


def digest() -> str:
    """Of both recipes, of one caption's features and of one image's."""
    found = hashlib.sha256()
    for make in (t5_pass, dinov3_pass):
        work = make(TINY)
        found.update(work.recipe.hash.encode())
        with work.open() as encode:
            for files in made(encode([Inputs("0", Path("x"), image_CHW=picture(), caption=CAPTIONS[0])])):
                for name in sorted(files):
                    found.update(files[name].tobytes())
    return found.hexdigest()
