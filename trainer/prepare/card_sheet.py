"""The picture of a data card: crops chosen by the hash of their id, every bucket represented. No torch.

The joints that count are drawn over them; below stands the beginning of the caption.

Shapes: C channels, H x W pixels, J joints of COCO-WholeBody.
"""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from trainer.data.artefacts import CAPTION_FILE
from trainer.data.buckets import BUCKETS
from trainer.data.split import id_hash
from trainer.lettering import Font, cut, wrapped
from trainer.pose.error import counted
from trainer.prepare.card_facts import JOINT_GROUPS, POSE, read_pose
from trainer.prepare.manifest import ImageEntry, Manifest
from trainer.prepare.records import Samples, replace_file
from trainer.prepare.run import CAPTION, IMAGE, read_image

SAMPLES = 20
ACROSS = 5
CELL = 256
"""Side in pixels of the square that an image is fitted into."""
CAPTION_LINES = 3
_GAP, _MARGIN, _HEAD = 14, 18, 60
_TITLE_SIZE, _NAME_SIZE, _CAPTION_SIZE = 20, 12, 13
_PITCH = _CAPTION_SIZE + 4
_PAPER, _INK, _FAINT, _MAT = (255, 255, 255), (24, 24, 24), (110, 110, 110), (240, 240, 240)
_COLOURS = {
    "body": (255, 196, 0),
    "feet": (255, 96, 0),
    "face": (0, 224, 255),
    "left hand": (90, 255, 90),
    "right hand": (255, 90, 220),
}
_RADII_PX = {"body": 3.0, "feet": 2.5, "face": 1.2, "left hand": 1.6, "right hand": 1.6}
_BONES = ((5, 6), (5, 7), (7, 9), (6, 8), (8, 10), (5, 11), (6, 12), (11, 12), (11, 13), (13, 15), (12, 14), (14, 16))
"""Shoulders, arms, flanks, hips and legs of the 17 joints of the body."""


def write_sheet(path: Path, manifest: Manifest, samples: Samples) -> None:
    """Draw the picture and replace the file. Raises DataError if an image cannot be read."""
    there = [entry for entry in manifest.images if _is_there(samples, entry.id, IMAGE)]
    chosen = choose(there, SAMPLES)
    content = io.BytesIO()
    draw_sheet(chosen, samples, len(there)).save(content, format="PNG", optimize=True)
    replace_file(path, content.getvalue())


def choose(images: Sequence[ImageEntry], count: int) -> list[ImageEntry]:
    """At most `count` images in the order of buckets: of each bucket those of the smallest id hashes, by turns.

    Every bucket that has images is represented as long as `count` allows.
    """
    order = [bucket.name for bucket in BUCKETS]
    by_bucket: dict[str, list[ImageEntry]] = {name: [] for name in order}
    for entry in sorted(images, key=lambda entry: (id_hash(entry.id), entry.id)):
        by_bucket.setdefault(entry.bucket, []).append(entry)
    turns = [(turn, name) for name, entries in by_bucket.items() for turn in range(len(entries))]
    turns.sort(key=lambda turn: turn[0])  # stable: buckets stay in their order within a turn
    taken = {name: sum(other == name for _, other in turns[:count]) for name in by_bucket}
    return [entry for name, entries in by_bucket.items() for entry in entries[: taken[name]]]


def draw_sheet(chosen: Sequence[ImageEntry], samples: Samples, total: int) -> Image.Image:
    """The sheet of these images, `total` being all that there are."""
    across = max(1, min(ACROSS, len(chosen)))
    rows = -(-len(chosen) // across)
    tall = CELL + _NAME_SIZE + 8 + CAPTION_LINES * _PITCH + _GAP
    wide = max(2 * _MARGIN + across * (CELL + _GAP) - _GAP, 640)
    sheet = Image.new("RGB", (wide, _HEAD + rows * tall + _MARGIN), _PAPER)
    pen = ImageDraw.Draw(sheet)
    _head(pen, len(chosen), total)
    for index, entry in enumerate(chosen):
        row, column = divmod(index, across)
        _cell(sheet, pen, entry, samples, (_MARGIN + column * (CELL + _GAP), _HEAD + row * tall))
    return sheet


def _head(pen: ImageDraw.ImageDraw, shown: int, total: int) -> None:
    pen.text((_MARGIN, 12), f"{shown} of {total:,} images, chosen by id hash", fill=_INK, font=_font(_TITLE_SIZE))
    x = float(_MARGIN)
    font = _font(_NAME_SIZE)
    for name, colour in _COLOURS.items():
        pen.ellipse((x, 39, x + 8, 47), fill=colour, outline=_INK)
        pen.text((x + 13, 36), name, fill=_FAINT, font=font)
        x += 13 + font.getlength(name) + 16


def _cell(
    sheet: Image.Image, pen: ImageDraw.ImageDraw, entry: ImageEntry, samples: Samples, place: tuple[int, int]
) -> None:
    x, y = place
    pen.rectangle((x, y, x + CELL - 1, y + CELL - 1), fill=_MAT)
    picture = _picture(entry, samples)
    sheet.paste(picture, (x + (CELL - picture.width) // 2, y + (CELL - picture.height) // 2))
    y += CELL + 5
    font = _font(_NAME_SIZE)
    pen.text((x, y), cut(f"{entry.bucket}  {entry.id}", font, CELL), fill=_FAINT, font=font)
    for number, line in enumerate(_caption(entry, samples, _font(_CAPTION_SIZE))):
        pen.text((x, y + _NAME_SIZE + 5 + number * _PITCH), line, fill=_INK, font=_font(_CAPTION_SIZE))


def _picture(entry: ImageEntry, samples: Samples) -> Image.Image:
    """The crop, fitted into a cell, and the joints that count over it."""
    image_CHW = read_image(samples, entry.id)
    picture = Image.fromarray(np.ascontiguousarray(image_CHW.transpose(1, 2, 0)))
    scale = CELL / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    picture = picture.resize(size, Image.Resampling.LANCZOS)
    if _is_there(samples, entry.id, POSE):
        draw_pose(picture, read_pose(samples, entry.id))
    return picture


def draw_pose(picture: Image.Image, pose_J3: np.ndarray) -> None:
    """Draw bones of the body and all joints that count into a picture; x and y are in [-1, 1] over it."""
    is_seen_J = counted(pose_J3)
    points_J2 = (pose_J3[:, :2] + 1.0) / 2.0 * np.array(picture.size)
    pen = ImageDraw.Draw(picture)
    for one, other in _BONES:
        if is_seen_J[one] and is_seen_J[other]:
            ends = [(float(x), float(y)) for x, y in (points_J2[one], points_J2[other])]
            pen.line(ends, fill=_INK, width=4)
            pen.line(ends, fill=_COLOURS["body"], width=2)
    for name in ("face", "feet", "left hand", "right hand", "body"):
        joints, radius = JOINT_GROUPS[name], _RADII_PX[name]
        for x, y in points_J2[joints][is_seen_J[joints]].tolist():
            outline = _INK if radius > 2 else None
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=_COLOURS[name], outline=outline)


def _caption(entry: ImageEntry, samples: Samples, font: Font) -> list[str]:
    """As many lines of the caption as there is room for."""
    if not _is_there(samples, entry.id, CAPTION):
        return ["(no caption)"]
    text = samples.read(entry.id, CAPTION_FILE).decode(errors="replace")[:1000]
    plain = "".join(" " if unicodedata.category(one)[0] in "CZ" else one for one in text)
    lines = wrapped(plain, font, CELL)
    if len(lines) > CAPTION_LINES:
        lines = [*lines[: CAPTION_LINES - 1], cut(" ".join(lines[CAPTION_LINES - 1 :]), font, CELL)]
    return lines


def _is_there(samples: Samples, id: str, artefact: str) -> bool:
    record = samples.record(id, artefact)
    return record is not None and not record.reason


def _font(size: int) -> Font:
    return ImageFont.load_default(size)
