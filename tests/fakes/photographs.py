"""Photographs for tests: drawn from a seed, written in whatever format and colours a test needs."""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ORIENTATION = 0x0112
ADOBE_RGB = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))
"""XYZ of red, green and blue at D50: a profile of wider gamut than sRGB."""


def drawn(seed: int, width: int = 320, height: int = 240) -> Image.Image:
    """Waves of colour and one bright disc: no symmetry, all frequencies that a hash looks at."""
    rng = np.random.default_rng(seed)
    y_H1, x_1W = np.arange(height)[:, None] / height, np.arange(width)[None, :] / width
    planes = []
    for _ in range(3):
        across, down, phase = rng.uniform(1, 9, 3)
        planes.append(0.5 + 0.4 * np.sin(across * x_1W + phase) * np.cos(down * y_H1 - phase))
    image_HWC = np.stack(planes, axis=-1)
    centre_y, centre_x = rng.uniform(0.2, 0.8, 2)
    image_HWC[(y_H1 - centre_y) ** 2 + (x_1W - centre_x) ** 2 < 0.03] = rng.uniform(0.7, 1.0, 3)
    return Image.fromarray((image_HWC * 255).round().astype(np.uint8))


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    """The file of an image."""
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def put(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files by their paths below a folder."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def icc_profile(space: str, gamma: float, primaries: tuple[tuple[float, float, float], ...] = ()) -> bytes:
    """A colour profile, version 2 of the format: `space` is RGB with three primaries, or GRAY."""
    white = (0.9642, 1.0, 0.8249)
    text = b"made for a test\0"
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", len(text)) + text + bytes(4 + 4 + 2 + 1 + 67),
        b"cprt": b"text\0\0\0\0" + b"none\0",
        b"wtpt": _xyz(white),
    }
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))
    if space == "GRAY":
        tags[b"kTRC"] = curve
    for name, primary in zip("rgb", primaries, strict=False):
        tags[f"{name}XYZ".encode()], tags[f"{name}TRC".encode()] = _xyz(primary), curve
    directory, body = struct.pack(">I", len(tags)), b""
    begin = 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        directory += name + struct.pack(">II", begin + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    header = bytearray(128)
    struct.pack_into(
        ">I4sI4s4s4s", header, 0, begin + len(body), b"lcms", 0x02100000, b"mntr", space.ljust(4).encode(), b"XYZ "
    )
    struct.pack_into(">6H4s", header, 24, 2020, 1, 1, 0, 0, 0, b"acsp")
    struct.pack_into(">3i", header, 68, *(round(value * 65536) for value in white))
    return bytes(header) + directory + body


def _xyz(values: tuple[float, float, float]) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(value * 65536) for value in values))
