"""Images of a validation as PNG files.

Shapes: C channels, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

CAPTION_KEY = "caption"  # text field of the reference images: what the image shows, exactly


def to_image(x_CHW: Tensor) -> Image.Image:
    """An image in [-1, 1], clamped here and only here; values that are not finite become black."""
    shown_CHW = x_CHW.detach().float().nan_to_num(-1.0, posinf=1.0, neginf=-1.0).clamp(-1.0, 1.0)
    bytes_HWC = (shown_CHW + 1.0).mul(127.5).round().byte().permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(bytes_HWC)


def write_images(
    folder: Path, ids: Sequence[str], images: Sequence[Tensor] | Tensor, captions: Sequence[str] | None = None
) -> None:
    """Write `folder`/<id>.png for every id; `captions` are stored inside the files."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, id in enumerate(ids):
        info = PngInfo()
        if captions is not None:
            info.add_itxt(CAPTION_KEY, captions[index])
        to_image(images[index]).save(folder / f"{id}.png", pnginfo=info)
