"""Samples that were loaded once, kept until a limit of bytes is reached."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from trainer.data.sample import Sample

LIMIT_MIB = 1024


class SampleCache:
    """Loads through `load` and remembers. Beyond the limit new samples are loaded anew each time: in a random order
    over more images than fit, replacing old ones would only cost time."""

    def __init__(self, load: Callable[[str], Sample]) -> None:
        self._load = load
        self._left_bytes = LIMIT_MIB * 2**20
        self._samples: dict[str, Sample] = {}

    def __call__(self, id: str) -> Sample:
        """The sample `id`."""
        if id in self._samples:
            return self._samples[id]
        sample = self._load(id)
        size = sum(array.nbytes for array in _arrays(sample))
        if size <= self._left_bytes:
            self._left_bytes -= size
            self._samples[id] = sample
        return sample


def _arrays(sample: Sample) -> list[np.ndarray]:
    features = (sample.text_TD, sample.cls_D, sample.patches_PD, sample.pose_J3, sample.parts_HW)
    return [sample.pixels_HWC, *(array for array in features if array is not None)]
