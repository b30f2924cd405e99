"""Finding people with YOLOX (arXiv 2107.08430): what goes into the network, and what its numbers mean. No torch.

Shapes: N anchors, C channels, H x W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trainer.prepare.placement import Placement

SIDE = 640
STRIDES = (8, 16, 32)
ANCHORS = sum((SIDE // stride) ** 2 for stride in STRIDES)
FEATURES = 85  # x, y, width, height, objectness and 80 classes
PERSON = 0
_FILL = (114, 114, 114)
_LEAST_SCORE = 0.3
_MOST_OVERLAP = 0.45


@dataclass(frozen=True, slots=True)
class People:
    """Boxes (x0, y0, x1, y1) in pixels of the image and their scores in [0, 1], best first: (N, 4) and (N,)."""

    box_N4: np.ndarray
    score_N: np.ndarray

    def largest(self) -> int | None:
        """Which box has the largest area; of equals the first. None if there is none."""
        if not len(self.box_N4):
            return None
        sides_N2 = self.box_N4[:, 2:] - self.box_N4[:, :2]
        return int(np.argmax(sides_N2[:, 0] * sides_N2[:, 1]))


def detector_input(image_CHW: np.ndarray, place: Placement) -> np.ndarray:
    """A uint8 RGB image as the network wants it: letterboxed, **BGR**, 0 to 255, (3, 640, 640) float32."""
    canvas_HWC = place.draw(image_CHW, (SIDE, SIDE), _FILL)
    return np.ascontiguousarray(canvas_HWC[:, :, ::-1].transpose(2, 0, 1), dtype=np.float32)


def people(raw_NF: np.ndarray, place: Placement) -> People:
    """The people in what the network said of one image: (8400, 85).

    The centre of a box is (raw + cell) * stride, its side exp(raw) * stride, its score that of an object times that of
    a person. Other classes suppress no person, so they are not looked at. Raises ValueError for numbers that are no
    boxes.
    """
    with np.errstate(invalid="ignore"):
        score_N = raw_NF[:, 4].astype(np.float64) * raw_NF[:, 5 + PERSON]
    if not np.isfinite(score_N).all():
        raise ValueError(f"the detector gave {np.count_nonzero(~np.isfinite(score_N))} scores that are not finite")
    chosen = np.flatnonzero(score_N > _LEAST_SCORE)
    cell_N2, stride_N1 = _anchors()
    with np.errstate(over="ignore", invalid="ignore"):
        centre_N2 = (raw_NF[chosen, :2] + cell_N2[chosen]) * stride_N1[chosen]
        half_N2 = np.exp(raw_NF[chosen, 2:4].astype(np.float64)) * stride_N1[chosen] / 2
        corner_N2, opposite_N2 = place.to_image(centre_N2 - half_N2), place.to_image(centre_N2 + half_N2)
    box_N4 = np.concatenate([corner_N2, opposite_N2], axis=1)
    if not np.isfinite(box_N4).all():
        raise ValueError("the detector gave boxes that are not finite")
    kept = suppressed(box_N4, score_N[chosen])
    return People(box_N4[kept], score_N[chosen][kept])


def suppressed(box_N4: np.ndarray, score_N: np.ndarray, most_overlap: float = _MOST_OVERLAP) -> np.ndarray:
    """Non-maximum suppression: indices of the boxes to keep, best first; of equal scores the first counts as better.

    Going from best to worst, a box goes if it overlaps one that stays by more than `most_overlap` (intersection over
    union).
    """
    order = np.argsort(-score_N, kind="stable")
    kept: list[int] = []
    while len(order):
        best, order = order[0], order[1:]
        kept.append(int(best))
        order = order[_overlap(box_N4[best], box_N4[order]) <= most_overlap]
    return np.asarray(kept, dtype=np.intp)


def _overlap(box_4: np.ndarray, box_N4: np.ndarray) -> np.ndarray:
    """Intersection over union of one box with each of several; 0 where neither has an area."""
    common_N2 = np.minimum(box_4[2:], box_N4[:, 2:]) - np.maximum(box_4[:2], box_N4[:, :2])
    common_N = common_N2.clip(min=0).prod(axis=1)
    union_N = (box_4[2:] - box_4[:2]).prod() + (box_N4[:, 2:] - box_N4[:, :2]).prod(axis=1) - common_N
    return np.asarray(common_N / np.where(union_N > 0, union_N, 1.0))


def _anchors() -> tuple[np.ndarray, np.ndarray]:
    """Column and row of the cell of every anchor, and its stride: (N, 2) and (N, 1); rows of cells, finest first."""
    cells, strides = [], []
    for stride in STRIDES:
        row_HW, column_HW = np.indices((SIDE // stride, SIDE // stride))
        cells.append(np.stack([column_HW.ravel(), row_HW.ravel()], axis=1))
        strides.append(np.full((row_HW.size, 1), stride))
    return np.concatenate(cells).astype(np.float64), np.concatenate(strides).astype(np.float64)
