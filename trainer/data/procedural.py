"""The source of procedural portraits: endless, exact, and the same on every machine."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from itertools import count, islice

import numpy as np

from trainer.config import TrainerConfig
from trainer.data.anatomy import joints_of
from trainer.data.cache import SampleCache
from trainer.data.captions import TEMPLATES, caption, phrasing_of
from trainer.data.drawing import Drawing, draw
from trainer.data.features import LABEL, encode_cls, encode_patches, encode_text
from trainer.data.portraits import Portrait, colour_edit, edited, mirrored, portrait_of
from trainer.data.sample import Edit, Sample
from trainer.data.shapes import PORTRAIT_WORDS, stream_shapes
from trainer.data.split import PROBE_IMAGES, id_hash, is_held_out, is_probe


class ProceduralSource:
    """Portraits p000000, p000001, …, drawn when first asked for.

    Training ids are the first `data.samples` that the split rule leaves to training, held-out ids the first
    `data.held_out` of its validation side, probe ids the first `PROBE_IMAGES` of its probe side: more portraits on one
    side never change another side.
    """

    def __init__(self, config: TrainerConfig) -> None:
        self._height = self._width = config.data.size
        self.streams = stream_shapes(config)
        self._has_parts = config.segmentation.enabled
        trained = (id for id in _all_ids() if not (is_held_out(id) or is_probe(id)))
        held_out = (id for id in _all_ids() if is_held_out(id))
        probe = (id for id in _all_ids() if is_probe(id))
        self.train_ids = tuple(islice(trained, config.data.samples))
        self.held_out_ids = tuple(sorted(islice(held_out, config.data.held_out), key=id_hash))
        self.probe_ids = tuple(sorted(islice(probe, PROBE_IMAGES), key=id_hash))
        self.notes: tuple[str, ...] = (LABEL,)
        self.rejected: tuple[tuple[str, str], ...] = ()
        self._forget()

    def at_size(self, size: int) -> ProceduralSource:
        """The same portraits at `size` x `size` pixels."""
        other = copy(self)
        other._height = other._width = size
        other._forget()
        return other

    def load(self, id: str) -> Sample:
        """The portrait `id` with the streams that are on."""
        return self._cached(id)

    def mirrored(self, id: str) -> Sample:
        """The portrait `id` mirrored: the same pixels the other way round, words and features of what they show now."""
        return self._cached_mirrored(id)

    def encode_caption(self, caption: str) -> np.ndarray:
        """Words as features: (T, 64) float16."""
        return encode_text(caption, PORTRAIT_WORDS)

    def edit(self, id: str) -> Edit:
        """The portrait `id` with one of its colours changed to the most different one."""
        portrait, phrasing = portrait_of(id), phrasing_of(id)
        attribute, word = colour_edit(portrait, id)
        changed = edited(portrait, attribute, word)
        pixels_HWC = draw(changed, self._height, self._width).pixels_HWC
        return Edit(
            attribute=attribute,
            caption=caption(changed, phrasing),
            paraphrase=caption(portrait, (phrasing + 1) % len(TEMPLATES)),
            pixels_HWC=pixels_HWC,
            region_HW=(pixels_HWC != self.load(id).pixels_HWC).any(axis=2),
        )

    def _forget(self) -> None:
        self._cached = SampleCache(self._draw)
        self._cached_mirrored = SampleCache(self._draw_mirrored)

    def _draw(self, id: str) -> Sample:
        portrait = portrait_of(id)
        return self._sample(id, portrait, draw(portrait, self._height, self._width))

    def _draw_mirrored(self, id: str) -> Sample:
        """Mirrored pixels rather than a drawing of the mirrored portrait, which differs at the edges of shapes."""
        drawing = draw(portrait_of(id), self._height, self._width)
        turned = Drawing(*(np.ascontiguousarray(array[:, ::-1]) for array in drawing))
        return self._sample(id, mirrored(portrait_of(id)), turned)

    def _sample(self, id: str, portrait: Portrait, drawing: Drawing) -> Sample:
        text, on = caption(portrait, phrasing_of(id)), self.streams
        patches_PD, grid = encode_patches(portrait, drawing.coverage_HWP) if on.patch_width else (None, (0, 0))
        joints_J3 = joints_of(portrait, self._height, self._width).astype(np.float16) if on.pose_joints else None
        return Sample(
            id=id,
            caption=text,
            pixels_HWC=drawing.pixels_HWC,
            text_TD=self.encode_caption(text) if on.text_width else None,
            cls_D=encode_cls(portrait) if on.cls_width else None,
            patches_PD=patches_PD,
            patch_grid=grid,
            pose_J3=joints_J3,
            parts_HW=drawing.parts_HW if self._has_parts else None,
        )


def _all_ids() -> Iterator[str]:
    return (f"p{index:06d}" for index in count())
