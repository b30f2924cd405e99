"""Noise of the shapes that a configuration's data has, for a machine to be tuned before the data is there."""

from __future__ import annotations

import math

import numpy as np

from trainer.config import TrainerConfig
from trainer.data.sample import Sample
from trainer.data.shapes import patch_tokens, stream_shapes

_IMAGES = 64


class NoiseData:
    """Square images and features of noise, all of the largest caption; the same for the same id.

    What loading costs is not in it, nor buckets of other shapes: a result says that it was synthetic.
    """

    notes: tuple[str, ...] = ("synthetic: noise of the shapes of the data; loading costs nothing here",)
    rejected: tuple[tuple[str, str], ...] = ()

    def __init__(self, config: TrainerConfig) -> None:
        self.streams = stream_shapes(config)
        self.train_ids = tuple(f"noise-{index}" for index in range(_IMAGES))
        self.held_out_ids = tuple(f"held-{index}" for index in range(config.validation.samples))
        self.probe_ids: tuple[str, ...] = ()
        self._side, self._has_parts = config.data.size, config.segmentation.enabled
        self._grid = (math.isqrt(patch_tokens(config)),) * 2
        self._samples: dict[str, Sample] = {}

    def load(self, id: str) -> Sample:
        """The image `id`; made once."""
        if id not in self._samples:
            self._samples[id] = self._made(id)
        return self._samples[id]

    def mirrored(self, id: str) -> Sample:
        """The same image: noise is as good as its mirror."""
        return self.load(id)

    def encode_caption(self, caption: str) -> np.ndarray:
        """Noise for any words: (T, D) float16."""
        draw = np.random.default_rng(list(caption.encode()))
        return draw.standard_normal((max(1, self.streams.text_length), self.streams.text_width)).astype(np.float16)

    def edit(self, id: str) -> None:
        """Nothing: noise has no attributes."""

    def _made(self, id: str) -> Sample:
        draw, shapes, side = np.random.default_rng(list(id.encode())), self.streams, self._side

        def half(*shape: int) -> np.ndarray | None:
            return draw.standard_normal(shape).astype(np.float16) if all(shape) else None

        return Sample(
            id=id,
            caption="noise",
            pixels_HWC=draw.integers(0, 256, (side, side, 3), dtype=np.uint8),
            text_TD=half(shapes.text_length, shapes.text_width),
            cls_D=half(shapes.cls_width),
            patches_PD=half(math.prod(self._grid), shapes.patch_width),
            patch_grid=self._grid if shapes.patch_width else (0, 0),
            pose_J3=half(shapes.pose_joints, 3),
            parts_HW=draw.integers(0, 7, (side, side), dtype=np.uint8) if self._has_parts else None,
        )
