"""Image features: the last hidden states of a DINOv3 vision transformer, one vector an image and one a patch.

Shapes: B images, C channels, H x W pixels, N patches, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainer.data.shard_set import FEATURE_CELL
from trainer.device import cap_threads
from trainer.errors import DataError
from trainer.prepare.colours import Colours, read_colours
from trainer.prepare.options import Options
from trainer.prepare.passes import Encode, Inputs, Made, Pass
from trainer.prepare.pipeline import threads_of_machine
from trainer.prepare.pretrained import CONFIG, Kind, Source, locate
from trainer.prepare.recipe import Recipe
from trainer.prepare.resident import choose_device, load_model, resident
from trainer.prepare.tiny.dinov3 import LABEL, tiny_dinov3

BATCH, BATCH_SIDE = 16, 256
COLOURS = "preprocessor_config.json"
KIND = Kind(option="--dinov3", model_type="dinov3_vit", files=(COLOURS,))


@dataclass(frozen=True)
class DinoV3Pass:
    """The artefact dinov3: dinov3.npy float16 (D,), dinov3_patches.npy float16 (N, D) in raster order, N = H/16 x W/16.

    Both are taken behind the model's final norm: the patches from `last_hidden_state`, without the class token and the
    registers, of which the configuration says how many there are; the image's own vector is `pooler_output`, which in
    DINOv3 is the class token behind that norm (token 0 itself for a model that pools nothing).

    The model sees the crop as it is, neither resized nor cropped again, in the colours that its
    preprocessor_config.json asks for, and computes in float32 on every device.
    """

    named: str
    is_tiny: bool
    asked_device: str
    side: int
    asked_batch: int | None

    artefact = "dinov3"
    files = ("dinov3.npy", "dinov3_patches.npy")
    needs = ("image",)

    @cached_property
    def batch(self) -> int:
        """A quarter on a CPU, where large ones are no faster and several are computed at once."""
        suited = batch_at(self.side) if self._device.type == "cuda" else max(1, batch_at(self.side) // 4)
        return self.asked_batch or suited

    @cached_property
    def recipe(self) -> Recipe:
        """Model and revision, which covers the colours."""
        _ = self._device  # one that is not there is known before anything is written
        return Recipe(model=self._source.name, revision=self._source.revision, label=LABEL if self.is_tiny else "")

    @property
    def threads(self) -> int:
        """One batch at a time on a GPU, one for each core on a CPU."""
        return 1 if self._device.type == "cuda" else threads_of_machine()

    def open(self) -> AbstractContextManager[Encode]:
        """Load the model."""
        return resident(self._load, self._device)

    @cached_property
    def _source(self) -> Source:
        source = tiny_dinov3(KIND) if self.is_tiny else locate(self.named, KIND)
        check_tokens(source)
        read_colours(source.folder / COLOURS)
        return source

    @cached_property
    def _device(self) -> torch.device:
        return choose_device(self.asked_device)

    def _load(self) -> Encode:
        model = load_model("AutoModel", self._source, KIND, torch.float32, self._device)
        return ImageEncoder(model, read_colours(self._source.folder / COLOURS))


def dinov3_pass(options: Options) -> Pass:
    """The pass for these options: `dinov3`, `tiny`, `device`, `side` and `batch` count."""
    return DinoV3Pass(options.dinov3, options.tiny, options.device, options.side, options.batch)


def batch_at(side: int) -> int:
    """How many images suit one batch where the square bucket has `side` pixels: as many pixels as 16 at 256 have."""
    return max(1, BATCH * BATCH_SIDE**2 // side**2)


def check_tokens(source: Source) -> None:
    """Raise DataError if a model's patches are not the cells that training expects."""
    patch, registers = source.config.get("patch_size"), source.config.get("num_register_tokens", 0)
    if patch != FEATURE_CELL:
        raise DataError(
            f"{KIND.option}: {source.folder / CONFIG} has patch_size {patch!r}; needed: {FEATURE_CELL}, the cells that "
            "features are stored for"
        )
    if not isinstance(registers, int) or registers < 0:
        raise DataError(f"{KIND.option}: {source.folder / CONFIG} has num_register_tokens {registers!r}: not a number")


class ImageEncoder:
    """A DINOv3 and the colours that it was trained in."""

    def __init__(self, model: Any, colours: Colours) -> None:
        self._model = model
        self._colours = colours

    @torch.inference_mode()
    def __call__(self, inputs: Sequence[Inputs]) -> list[Made]:
        """The features of each image, in their order; all have one shape, in whole cells of 16 pixels."""
        cap_threads()  # of each thread that calls
        pixels_BCHW = np.stack([one.image_CHW for one in inputs if one.image_CHW is not None])
        assert len(pixels_BCHW) == len(inputs), "this pass needs the image"
        images_BCHW = torch.from_numpy(pixels_BCHW).to(self._model.device)
        image_BD, patches_BND = self._features(images_BCHW)
        return [
            Made(files={"dinov3.npy": image_D.copy(), "dinov3_patches.npy": patches_ND.copy()})
            for image_D, patches_ND in zip(_half(image_BD), _half(patches_BND), strict=True)
        ]

    def _features(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        found = self._model(pixel_values=self._colours.normal(images_BCHW))
        tokens = found.last_hidden_state
        before_patches = 1 + self._model.config.num_register_tokens
        rows, columns = images_BCHW.shape[2] // FEATURE_CELL, images_BCHW.shape[3] // FEATURE_CELL
        if tokens.shape[1] != before_patches + rows * columns:
            raise DataError(
                f"{KIND.option}: the model makes {tokens.shape[1]} tokens of {images_BCHW.shape[3]} x "
                f"{images_BCHW.shape[2]} pixels; needed: {before_patches} and {rows} x {columns} patches"
            )
        pooled = getattr(found, "pooler_output", None)
        return (tokens[:, 0] if pooled is None else pooled), tokens[:, before_patches:]


def _half(features: Tensor) -> np.ndarray:
    """What half precision cannot hold becomes infinite, which the run refuses."""
    return features.to(torch.float16).cpu().numpy()
