"""Pixels that count more."""

from __future__ import annotations

from trainer.config.base import Block, Positive


class SegmentationConfig(Block):
    """Weights of the squared error per pixel, by what the pixel shows; trainer/data/parts.py says what is what.

    `normalize` divides the weights of each image by their mean, so that every image counts alike.
    """

    enabled: bool = False
    background: Positive = 0.5
    face: Positive = 2.0
    other: Positive = 1.0
    normalize: bool = True
