"""Losses in the eyes of networks that see images: LPIPS and features of a vision transformer."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from trainer.config.base import Block, Count, Positive

UpToTime = Annotated[float, Field(gt=0.0, le=1.0, allow_inf_nan=False)]


class LpipsLossConfig(Block):
    """LPIPS between the predicted clean image and the true one.

    `backbone` is random or the absolute path of published weights. Images are brought to `size` x `size` pixels first,
    others to the same area; null leaves them as they are. Only times up to `max_t` are covered; null = all.
    """

    enabled: bool = False
    weight: Positive = 0.1
    net: Literal["vgg", "squeeze", "alex"] = "vgg"
    backbone: str = "random"
    size: Count | None = None
    max_t: UpToTime | None = None


class DinoLossConfig(Block):
    """1 - cosine between the patch features of the predicted clean image and those of the true one.

    `backbone` is random, the absolute path of a folder with a DINOv2 or DINOv3, or its id on the hub. `size` and
    `max_t` are as for LPIPS.
    """

    enabled: bool = False
    weight: Positive = 0.01
    backbone: str = "random"
    size: Count = 224
    max_t: UpToTime | None = None


class PerceptualConfig(Block):
    """Perceptual losses, on whole images and whatever else is trained."""

    lpips: LpipsLossConfig = LpipsLossConfig()
    dino: DinoLossConfig = DinoLossConfig()
