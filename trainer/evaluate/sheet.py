"""Contact sheets: images of a validation side by side, one row a sample, so that one look answers one question.

Rows may hold images of other shapes: a cell has room for the widest and the highest, and each stands in its middle.

Shapes: C channels, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from trainer.evaluate.pictures import to_image
from trainer.lettering import wrapped

CELL = 128  # pixels: smaller images are enlarged by a whole factor up to this side, so that every pixel stays a square
LARGEST_CELL = 256  # larger images are shrunk to this side
_GAP, _MARGIN = 6, 10
_TITLE_SIZE, _HEADING_SIZE, _CAPTION_SIZE = 15, 12, 11
_PAPER, _INK, _FAINT, _EMPTY = (255, 255, 255), (20, 20, 20), (105, 105, 105), (236, 236, 236)


@dataclass(frozen=True, slots=True)
class Row:
    """One sample: an image for every column, and words below them.

    An image is (C, H, W) in [-1, 1], a picture as it shall be shown, or None where there is none.
    """

    images: Sequence[Tensor | Image.Image | None]
    caption: str


def contact_sheet(title: str, columns: Sequence[str], rows: Sequence[Row]) -> Image.Image:
    """Draw the sheet. Images that are not finite are named instead of shown. At least one row with one image."""
    width, height = _cell_of(rows)
    title_font, heading_font, caption_font = (
        ImageFont.load_default(size) for size in (_TITLE_SIZE, _HEADING_SIZE, _CAPTION_SIZE)
    )
    across = len(columns) * (width + _GAP) - _GAP
    title_lines = wrapped(title, title_font, across)
    heads = [wrapped(column, heading_font, width) for column in columns]
    captions = [wrapped(row.caption, caption_font, across) for row in rows]
    top = _MARGIN + len(title_lines) * (_TITLE_SIZE + 4) + max(map(len, heads)) * (_HEADING_SIZE + 3) + _GAP
    below = [height + len(lines) * (_CAPTION_SIZE + 3) + 2 * _GAP for lines in captions]
    sheet = Image.new("RGB", (across + 2 * _MARGIN, top + sum(below) + _MARGIN - _GAP), _PAPER)
    pen = ImageDraw.Draw(sheet)
    _write(pen, (_MARGIN, _MARGIN), title_lines, title_font, _TITLE_SIZE + 4, _INK)
    for index, lines in enumerate(heads):
        x, y = _MARGIN + index * (width + _GAP), top - _GAP - len(lines) * (_HEADING_SIZE + 3)
        _write(pen, (x, y), lines, heading_font, _HEADING_SIZE + 3, _INK)
    for row, lines, tall in zip(rows, captions, below, strict=True):
        for index, image in enumerate(row.images):
            _place(sheet, pen, image, (_MARGIN + index * (width + _GAP), top, width, height), caption_font)
        _write(pen, (_MARGIN, top + height + 2), lines, caption_font, _CAPTION_SIZE + 3, _FAINT)
        top += tall
    return sheet


def save_sheet(path: Path, sheet: Image.Image) -> None:
    """Write a PNG atomically; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".tmp")
    sheet.save(unfinished, format="PNG")
    unfinished.replace(path)


def enlarged(x_CHW: Tensor) -> Image.Image:
    """An image in the size of a cell: enlarged by a whole factor, or shrunk."""
    picture = to_image(x_CHW)
    size = cell_size(picture.height, picture.width)
    smoothly = picture.width > size[0]
    return picture.resize(size, Image.Resampling.LANCZOS if smoothly else Image.Resampling.NEAREST)


def cell_size(height: int, width: int) -> tuple[int, int]:
    """Width and height of a cell for images of height x width pixels."""
    longer = max(height, width)
    if longer > LARGEST_CELL:
        return round(width * LARGEST_CELL / longer), round(height * LARGEST_CELL / longer)
    factor = max(1, CELL // longer)
    return width * factor, height * factor


def _cell_of(rows: Sequence[Row]) -> tuple[int, int]:
    """Width and height of a cell in which every image there is has room."""
    images = [image for row in rows for image in row.images if image is not None]
    sizes = [image.size if isinstance(image, Image.Image) else cell_size(*image.shape[-2:]) for image in images]
    return max(width for width, _ in sizes), max(height for _, height in sizes)


def _place(
    sheet: Image.Image,
    pen: ImageDraw.ImageDraw,
    image: Tensor | Image.Image | None,
    box: tuple[int, int, int, int],
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    """One cell: the image, or the words that say why there is none."""
    x, y, width, height = box
    if image is not None and not isinstance(image, Image.Image) and bool(image.isfinite().all()):
        image = enlarged(image)
    if isinstance(image, Image.Image):
        sheet.paste(image, (x + (width - image.width) // 2, y + (height - image.height) // 2))
        return
    pen.rectangle((x, y, x + width - 1, y + height - 1), fill=_EMPTY)
    words = "not drawn" if image is None else "not finite"
    pen.text((x + width / 2, y + height / 2), words, fill=_FAINT, font=font, anchor="mm")


def _write(
    pen: ImageDraw.ImageDraw,
    place: tuple[int, int],
    lines: Sequence[str],
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    pitch: int,
    colour: tuple[int, int, int],
) -> None:
    for index, line in enumerate(lines):
        pen.text((place[0], place[1] + index * pitch), line, fill=colour, font=font)
