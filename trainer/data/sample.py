"""One image with its conditions, many of them as a batch, and what a source of images must offer.

Shapes: B samples, C channels, H x W pixels, T text tokens, P image patches, J joints, D features of a stream.
Pixels are uint8 until `to_unit_range`; features are float16 on the host and float32 on the device.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from trainer.data.shapes import StreamShapes

__all__ = ["Batch", "Conditions", "Edit", "Sample", "Source", "StreamShapes", "collate", "to_unit_range"]


@dataclass(frozen=True, slots=True)
class Sample:
    """One image on the host. A stream that is off is None.

    `pixels_HWC` is uint8; `patches_PD` lists the cells of `patch_grid` (rows, columns) in raster order; `pose_J3` holds
    (x, y, confidence) with x right and y down in [-1, 1] over the frame. A joint of confidence 0 lies at (0, 0).
    `parts_HW` (uint8) is the class of every pixel as in parts.py, None unless a loss asks for it.
    """

    id: str
    caption: str
    pixels_HWC: np.ndarray
    text_TD: np.ndarray | None = None
    cls_D: np.ndarray | None = None
    patches_PD: np.ndarray | None = None
    patch_grid: tuple[int, int] = (0, 0)
    pose_J3: np.ndarray | None = None
    parts_HW: np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class Edit:
    """One attribute of an image changed, in words and in pixels.

    `caption` describes the edited image, `paraphrase` the original one in other words. `region_HW` (bool) is exactly
    where `pixels_HWC` (uint8) differs from the original.
    """

    attribute: str
    caption: str
    paraphrase: str
    pixels_HWC: np.ndarray
    region_HW: np.ndarray


@dataclass(frozen=True, slots=True)
class Conditions:
    """The conditions of a batch, one row per sample; a stream that is off is None.

    `text_mask_BT` is true where a caption has a word.
    """

    text_BTD: Tensor | None = None
    text_mask_BT: Tensor | None = None
    cls_BD: Tensor | None = None
    patches_BPD: Tensor | None = None
    patch_grid: tuple[int, int] = (0, 0)
    pose_BJ3: Tensor | None = None

    @property
    def streams(self) -> tuple[str, ...]:
        """Names of the streams that are there."""
        values = {"text": self.text_BTD, "cls": self.cls_BD, "patches": self.patches_BPD, "pose": self.pose_BJ3}
        return tuple(name for name, value in values.items() if value is not None)

    def select(self, index: Tensor) -> Conditions:
        """The conditions of some samples: `index` is int64 positions or a bool mask (B,)."""
        return self.each(lambda tensor: tensor[index.to(tensor.device)])

    def each(self, change: Callable[[Tensor], Tensor]) -> Conditions:
        """The conditions with every tensor as `change` makes it."""

        def of(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else change(tensor)

        return Conditions(
            text_BTD=of(self.text_BTD),
            text_mask_BT=of(self.text_mask_BT),
            cls_BD=of(self.cls_BD),
            patches_BPD=of(self.patches_BPD),
            patch_grid=self.patch_grid,
            pose_BJ3=of(self.pose_BJ3),
        )

    def keep(self, streams: Collection[str]) -> Conditions:
        """Only the named streams (text, cls, patches, pose); the others are absent from every sample."""
        text, patches = "text" in streams, "patches" in streams
        return Conditions(
            text_BTD=self.text_BTD if text else None,
            text_mask_BT=self.text_mask_BT if text else None,
            cls_BD=self.cls_BD if "cls" in streams else None,
            patches_BPD=self.patches_BPD if patches else None,
            patch_grid=self.patch_grid if patches else (0, 0),
            pose_BJ3=self.pose_BJ3 if "pose" in streams else None,
        )

    def to(self, device: torch.device | str) -> Conditions:
        """The conditions on `device`, features as float32, the mask as bool."""
        return Conditions(
            text_BTD=_to_float(self.text_BTD, device),
            text_mask_BT=None if self.text_mask_BT is None else self.text_mask_BT.to(device, non_blocking=True),
            cls_BD=_to_float(self.cls_BD, device),
            patches_BPD=_to_float(self.patches_BPD, device),
            patch_grid=self.patch_grid,
            pose_BJ3=_to_float(self.pose_BJ3, device),
        )

    def pin_memory(self) -> Conditions:
        """The conditions in page-locked memory."""
        return self.each(lambda tensor: tensor.pin_memory())


@dataclass(frozen=True, slots=True)
class Batch:
    """Samples as tensors. `pixels_BCHW` is uint8, and so is `parts_BHW` if a loss asks for it.

    `noise_BCHW` is what the training step adds to them, where it was drawn together with reading them.
    """

    ids: tuple[str, ...]
    captions: tuple[str, ...]
    pixels_BCHW: Tensor
    conditions: Conditions
    parts_BHW: Tensor | None = None
    noise_BCHW: Tensor | None = None

    def to(self, device: torch.device | str) -> Batch:
        """The batch on `device`: uint8 pixels, float32 features."""
        parts_BHW, noise_BCHW = (
            None if part is None else part.to(device, non_blocking=True) for part in (self.parts_BHW, self.noise_BCHW)
        )
        pixels_BCHW = self.pixels_BCHW.to(device, non_blocking=True)
        return Batch(self.ids, self.captions, pixels_BCHW, self.conditions.to(device), parts_BHW, noise_BCHW)

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory."""
        parts_BHW, noise_BCHW = (
            None if part is None else part.pin_memory() for part in (self.parts_BHW, self.noise_BCHW)
        )
        pixels_BCHW, conditions = self.pixels_BCHW.pin_memory(), self.conditions.pin_memory()
        return Batch(self.ids, self.captions, pixels_BCHW, conditions, parts_BHW, noise_BCHW)


class Source(Protocol):
    """Images by id. Training, held-out and probe ids are disjoint; the latter two are in the order of their hashes.

    Held-out images validate, probe images are the judge's own; a set of two images has none of those.

    `notes` tells a reader what was decided about the data, `rejected` names every unused file with a reason.
    """

    train_ids: tuple[str, ...]
    held_out_ids: tuple[str, ...]
    probe_ids: tuple[str, ...]
    streams: StreamShapes
    notes: tuple[str, ...]
    rejected: tuple[tuple[str, str], ...]

    def load(self, id: str) -> Sample:
        """The image `id` with its conditions. Raises DataError if it can no longer be read."""
        ...

    def encode_caption(self, caption: str) -> np.ndarray:
        """Words as features: (T, D) float16 with T >= 1."""
        ...

    def edit(self, id: str) -> Edit | None:
        """The image with one attribute changed; None if this source cannot change attributes."""
        ...


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples. Text is padded to the longest caption among them, and no further."""
    text_BTD, text_mask_BT = _pad_text([sample.text_TD for sample in samples])
    return Batch(
        ids=tuple(sample.id for sample in samples),
        captions=tuple(sample.caption for sample in samples),
        pixels_BCHW=torch.from_numpy(np.stack([sample.pixels_HWC for sample in samples]).transpose(0, 3, 1, 2).copy()),
        conditions=Conditions(
            text_BTD=text_BTD,
            text_mask_BT=text_mask_BT,
            cls_BD=_stack([sample.cls_D for sample in samples]),
            patches_BPD=_stack([sample.patches_PD for sample in samples]),
            patch_grid=samples[0].patch_grid,
            pose_BJ3=_stack([sample.pose_J3 for sample in samples]),
        ),
        parts_BHW=_stack([sample.parts_HW for sample in samples]),
    )


def to_unit_range(pixels_BCHW: Tensor) -> Tensor:
    """uint8 pixels -> float32 in [-1, 1], 0 -> -1 and 255 -> 1 exactly. The only place where pixels change range."""
    assert pixels_BCHW.dtype == torch.uint8, f"pixels must be uint8, not {pixels_BCHW.dtype}"
    return pixels_BCHW.float().div_(127.5).sub_(1.0)


def _to_float(features: Tensor | None, device: torch.device | str) -> Tensor | None:
    return None if features is None else features.to(device, non_blocking=True).float()


def _stack(features: Sequence[np.ndarray | None]) -> Tensor | None:
    given = [array for array in features if array is not None]
    assert len(given) in (0, len(features)), "a stream must be on for all samples or for none"
    return torch.from_numpy(np.stack(given)) if given else None


def _pad_text(texts: Sequence[np.ndarray | None]) -> tuple[Tensor | None, Tensor | None]:
    given = [text for text in texts if text is not None]
    if not given:
        return None, None
    lengths = np.array([len(text) for text in given])
    padded_BTD = np.zeros((len(given), lengths.max(), given[0].shape[1]), dtype=np.float16)
    for row_TD, text_TD in zip(padded_BTD, given, strict=True):
        row_TD[: len(text_TD)] = text_TD
    return torch.from_numpy(padded_BTD), torch.from_numpy(np.arange(lengths.max()) < lengths[:, None])
