"""Stand-ins for learned encoders: fixed random projections of what is known exactly. They say nothing about T5 or DINO.

Shapes: T words, P image patches (cells of a grid), H x W pixels, S parts, D features. Everything is float16.
"""

from __future__ import annotations

import hashlib
from functools import cache, lru_cache

import numpy as np

from trainer.data.captions import words
from trainer.data.drawing import PARTS
from trainer.data.portraits import CHOICES, COLOURS, Portrait
from trainer.data.shapes import CLS_WIDTH, PATCH_WIDTH, TEXT_WIDTH

LABEL = "features are procedural and say nothing about DINO"
_POSITION_SCALE = 0.5
_COLOUR_OF_PART = {"background": "background", "hair": "hair_colour", "face": "skin", "neck": "skin", "shirt": "shirt"}


def encode_text(text: str, longest: int) -> np.ndarray:
    """One token per word, at most `longest`: the word's own vector plus half of its position's; (T, 64).

    A word that was never seen still has a vector of its own, because vectors come from a hash of the word. A text
    without words is one token for "no words".
    """
    listed = words(text)[:longest] or [""]
    tokens_TD = [
        _vector("word", word, TEXT_WIDTH) + _POSITION_SCALE * _vector("position", str(place), TEXT_WIDTH)
        for place, word in enumerate(listed)
    ]
    return np.stack(tokens_TD).astype(np.float16)


def encode_cls(portrait: Portrait) -> np.ndarray:
    """All attributes as one vector: the sum of one vector per attribute and word; (64,)."""
    chosen = [_vector(name, getattr(portrait, name), CLS_WIDTH) for name in CHOICES]
    cls_D: np.ndarray = np.sum(chosen, axis=0) / np.sqrt(len(chosen))
    return cls_D.astype(np.float16)


def encode_patches(portrait: Portrait, coverage_HWS: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
    """What each cell of the image shows, projected: (P, 64) in raster order, and the grid (rows, columns).

    Per part: how much of the cell it covers, where the cell lies relative to the part, and the part's colour.
    """
    share_PS, grid = _share_per_cell(coverage_HWS)
    rows, columns = np.divmod(np.arange(len(share_PS)), grid[1])
    place_P2 = np.stack([(columns + 0.5) / grid[1], (rows + 0.5) / grid[0]], axis=1) * 2 - 1
    weight_S = np.maximum(share_PS.sum(axis=0), 1e-6)
    centre_S2 = (share_PS.T @ place_P2) / weight_S[:, None]
    offset_PS2 = share_PS[..., None] * (place_P2[:, None] - centre_S2)
    colour_PS3 = share_PS[..., None] * _part_colours(portrait)
    known_PK = np.concatenate(
        [share_PS, offset_PS2.reshape(len(share_PS), -1), colour_PS3.reshape(len(share_PS), -1)], 1
    )
    return (known_PK @ _projection(known_PK.shape[1], PATCH_WIDTH)).astype(np.float16), grid


def feature_cell(height: int, width: int) -> int:
    """Side of one feature cell in pixels: 8 for images up to 64 pixels, 16 beyond."""
    return 8 if max(height, width) <= 64 else 16


def _share_per_cell(coverage_HWS: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
    """Mean coverage per cell. A frame that is no multiple of the cell is cut into the nearest number of cells."""
    height, width, parts = coverage_HWS.shape
    cell = feature_cell(height, width)
    grid = (max(1, round(height / cell)), max(1, round(width / cell)))
    tops = np.arange(grid[0]) * height // grid[0]
    lefts = np.arange(grid[1]) * width // grid[1]
    sums = np.add.reduceat(np.add.reduceat(coverage_HWS.astype(np.float64), tops, axis=0), lefts, axis=1)
    areas = np.diff(np.append(tops, height))[:, None] * np.diff(np.append(lefts, width))
    return (sums / areas[..., None]).reshape(-1, parts), grid


def _part_colours(portrait: Portrait) -> np.ndarray:
    """Colour of every part in [-1, 1], 0 for parts whose colour is no attribute; (S, 3)."""
    colours_S3 = np.zeros((len(PARTS), 3))
    for part, attribute in _COLOUR_OF_PART.items():
        colours_S3[PARTS.index(part)] = COLOURS[attribute][getattr(portrait, attribute)]
        colours_S3[PARTS.index(part)] = colours_S3[PARTS.index(part)] / 127.5 - 1.0
    return colours_S3


@cache
def _projection(inputs: int, outputs: int) -> np.ndarray:
    rows = [_vector("projection", str(index), outputs) for index in range(inputs)]
    projection_KF: np.ndarray = np.stack(rows) / np.sqrt(inputs)
    return projection_KF


@lru_cache(maxsize=65536)
def _vector(kind: str, word: str, width: int) -> np.ndarray:
    """A standard normal vector that belongs to a word for ever."""
    digest = hashlib.sha256(f"{kind}/{word}".encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "big"))).standard_normal(width)
