"""A folder of images, each with its caption in a .txt file of the same name.

Every file is decoded once when the source is opened, so a broken one is known before training starts. Images are turned
upright, made RGB (transparent parts become white), resized to cover the square and cropped at the centre.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from trainer.config import TrainerConfig
from trainer.data.cache import SampleCache
from trainer.data.captions import words
from trainer.data.features import encode_text
from trainer.data.mirror import mirror, mirror_words
from trainer.data.naming import placed_folder, safe_id
from trainer.data.rejection import first_few, refuse_too_many
from trainer.data.sample import Sample
from trainer.data.shapes import FOLDER_WORDS, stream_shapes
from trainer.data.split import split
from trainer.errors import DataError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


class FolderSource:
    """Images below `data.path`, at any depth; names that begin with a dot are left alone.

    An image without a caption file is used with an empty caption and counted in `notes`. Raises DataError when the
    folder cannot be read, when more than `data.max_rejected_share` had to be rejected, or when too few images are left.
    """

    def __init__(self, config: TrainerConfig) -> None:
        self._root = placed_folder(config.data.path, "images")
        self._side = config.data.size
        self.streams = stream_shapes(config)
        self._files: dict[str, Path] = {}
        self._captions: dict[str, str] = {}
        self._small = 0
        self._cached = SampleCache(self._read)
        self.rejected = tuple(self._scan())
        total = len(self._files) + len(self.rejected)
        refuse_too_many(str(self._root), total, self.rejected, config.data.max_rejected_share)
        _refuse_too_few(self._root, len(self._files), self.rejected)
        self.train_ids, self.held_out_ids, self.probe_ids = split(tuple(self._files))
        self.notes = self._describe(config)

    def load(self, id: str) -> Sample:
        """The image `id`. Raises DataError if its file has become unreadable since the source was opened."""
        try:
            return self._cached(id)
        except _UNREADABLE as error:
            raise DataError(f"{self._files[id]} can no longer be read: {error}") from error

    def at_size(self, size: int) -> FolderSource:
        """The same images at `size` x `size` pixels, decoded when they are first asked for."""
        other = copy(self)
        other._side = size
        other._cached = SampleCache(other._read)
        return other

    def mirrored(self, id: str) -> Sample:
        """The image `id` mirrored, left and right exchanged in its caption."""
        sample = self.load(id)
        words_swapped = mirror_words(sample.caption)
        text_TD = self.encode_caption(words_swapped) if sample.text_TD is not None else None
        return replace(mirror(sample), caption=words_swapped, text_TD=text_TD)

    def encode_caption(self, caption: str) -> np.ndarray:
        """Words as features, at most 64 of them: (T, 64) float16."""
        return encode_text(caption, FOLDER_WORDS)

    def edit(self, id: str) -> None:
        """Nothing: nobody knows what a photograph would look like with one attribute changed."""

    def _scan(self) -> list[tuple[str, str]]:
        """Take in every image that can be decoded; names and reasons of the rest."""
        rejected = []
        files = _visible_files(self._root)
        captioned = {path.with_suffix("") for path in files if path.suffix.lower() in IMAGE_SUFFIXES}
        for path in files:
            if path.suffix.lower() in IMAGE_SUFFIXES:
                reason = self._take(path)
            elif path.suffix.lower() == ".txt" and path.with_suffix("") not in captioned:
                reason = "a caption without an image"
            else:
                continue
            if reason:
                rejected.append((path.relative_to(self._root).as_posix(), reason))
        return rejected

    def _take(self, path: Path) -> str:
        """Decode one image and keep it; the reason if it cannot be used."""
        id = safe_id(path.relative_to(self._root).with_suffix("").as_posix())
        if id in self._files:
            return f"the same name as {self._files[id].relative_to(self._root).as_posix()}"
        self._files[id] = path
        try:
            self._captions[id] = _read_caption(path)
            self._small += min(self._size(path)) < self._side
            self._cached(id)
        except _UNREADABLE as error:
            del self._files[id]
            self._captions.pop(id, None)
            return _in_words(error)
        return ""

    @staticmethod
    def _size(path: Path) -> tuple[int, int]:
        with Image.open(path) as image:
            return image.size

    def _read(self, id: str) -> Sample:
        caption = self._captions[id]
        return Sample(
            id=id,
            caption=caption,
            pixels_HWC=read_image(self._files[id], self._side),
            text_TD=self.encode_caption(caption) if self.streams.text_width else None,
        )

    def _describe(self, config: TrainerConfig) -> tuple[str, ...]:
        counted = {
            "without a caption file, used with an empty caption": sum(not text for text in self._captions.values()),
            f"with a caption of more than {FOLDER_WORDS} words, the rest of it unused": sum(
                len(words(text)) > FOLDER_WORDS for text in self._captions.values()
            ),
            f"smaller than {self._side} pixels, enlarged": self._small,
        }
        streams = config.streams
        dead = [name for name in ("cls", "patches", "pose") if getattr(streams, name) != "off"]
        notes = [f"{number} of {len(self._files)} images {what}" for what, number in counted.items() if number]
        notes += [f"a folder of images has no features: {', '.join(dead)} off"] if dead else []
        notes += [] if self.probe_ids else [f"{len(self._files)} images are too few to keep one for probes: no probes"]
        return (*notes, *([f"{len(self.rejected)} files rejected"] if self.rejected else []))


def read_image(path: Path, side: int) -> np.ndarray:
    """Decode an image file as side x side x 3 uint8. Raises OSError, SyntaxError or ValueError for a broken file."""
    with Image.open(path) as image:
        upright = ImageOps.exif_transpose(image)
        return np.asarray(ImageOps.fit(_rgb(upright), (side, side), method=Image.Resampling.LANCZOS)).copy()


_UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # 16-bit gray: the plain conversion would clip everything above 255.
        return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    layered = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layered.size, "white"), layered).convert("RGB")


def _visible_files(root: Path) -> list[Path]:
    found = (path for path in root.rglob("*") if path.is_file())
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(root).parts))


def _read_caption(path: Path) -> str:
    """The caption of an image, white space collapsed; empty without a file."""
    try:
        return " ".join(path.with_suffix(".txt").read_text(encoding="utf-8-sig").split())
    except FileNotFoundError:
        return ""
    except UnicodeDecodeError as error:
        raise ValueError("its caption is not UTF-8 text") from error


def _in_words(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return "not an image" if "cannot identify image file" in str(error) else f"broken image: {error}"


def _refuse_too_few(root: Path, usable: int, rejected: Sequence[tuple[str, str]]) -> None:
    if usable < 2:
        kinds = ", ".join(IMAGE_SUFFIXES)
        few = f": {first_few(rejected)}" if rejected else ""
        raise DataError(f"{root} holds {usable} usable images ({kinds}); at least 2 are needed{few}")
