"""What perceptual losses demand."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePath

from trainer.config import TrainerConfig
from trainer.errors import Issue
from trainer.frozen.sides import DINO_RANDOM_PATCH, LPIPS_MULTIPLE, LPIPS_SMALLEST

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def rules(config: TrainerConfig) -> Iterator[Issue]:
    """Every demand that `config` does not meet."""
    if config.perceptual.lpips.enabled:
        yield from _lpips(config)
    if config.perceptual.dino.enabled:
        yield from _dino(config)


def _lpips(config: TrainerConfig) -> Iterator[Issue]:
    lpips = config.perceptual.lpips
    if lpips.net == "alex":
        yield Issue(
            "perceptual.lpips.net",
            "alex judges the run, and a run that is trained by its judge is not judged at all",
            ("vgg", "squeeze"),
        )
    if lpips.backbone != "random" and not PurePath(lpips.backbone).is_absolute():
        yield Issue(
            "perceptual.lpips.backbone",
            f"{lpips.backbone!r} would mean another file in every working directory",
            "random, or an absolute path",
        )
    if lpips.size is None and config.data.size < LPIPS_SMALLEST:
        yield Issue(
            "perceptual.lpips.size",
            f"images of {config.data.size} pixels are too small for the network",
            f"a multiple of {LPIPS_MULTIPLE} from {LPIPS_SMALLEST} on",
        )
    if lpips.size is not None and (lpips.size < LPIPS_SMALLEST or lpips.size % LPIPS_MULTIPLE):
        yield Issue(
            "perceptual.lpips.size",
            f"{lpips.size} pixels do not make whole cells in all layers of the network",
            f"null, or a multiple of {LPIPS_MULTIPLE} from {LPIPS_SMALLEST} on",
        )


def _dino(config: TrainerConfig) -> Iterator[Issue]:
    dino = config.perceptual.dino
    is_random, is_path = dino.backbone == "random", PurePath(dino.backbone).is_absolute()
    if not (is_random or is_path or _HUB_ID.fullmatch(dino.backbone)):
        yield Issue(
            "perceptual.dino.backbone",
            f"{dino.backbone!r} is neither a place nor a name on the hub",
            "random, the absolute path of a folder, or owner/name",
        )
    if is_random and dino.size % DINO_RANDOM_PATCH:
        yield Issue(
            "perceptual.dino.size",
            f"{dino.size} pixels are not whole patches of {DINO_RANDOM_PATCH}",
            f"a multiple of {DINO_RANDOM_PATCH}",
        )
