"""Which images a set has, where they came from, and which files are not in it and why. No torch."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from trainer.errors import DataError
from trainer.prepare.records import FORMAT, write_json

_REMOVE = "remove it and prepare again; nothing is made twice that is there and right"
_PART = re.compile(r"manifest-(\d+)-of-(\d+)\.json")


class Part(NamedTuple):
    """Every `of`-th file from the `number`-th on, 1-based: what one machine of several works on."""

    number: int = 1
    of: int = 1

    @property
    def name(self) -> str:
        """manifest.json, or that of one part."""
        return "manifest.json" if self.of == 1 else f"manifest-{self.number}-of-{self.of}.json"


@dataclass(frozen=True, slots=True)
class ImageEntry:
    """One image of the set: `path` is relative to the folder of photographs, in POSIX form.

    `size` in bytes and `mtime_ns` tell whether the file has changed since; `bucket` is <width>x<height> at 1024.
    `perceptual_hash` is 64 bits as 16 hex digits.
    """

    id: str
    path: str
    size: int
    mtime_ns: int
    bucket: str
    perceptual_hash: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """The images of a set in the order of their paths; `photos` is the folder of photographs.

    `rejected` holds (path, reason), `copies` holds (path, path of the file that it equals byte by byte).
    """

    photos: str
    images: tuple[ImageEntry, ...]
    rejected: tuple[tuple[str, str], ...] = ()
    copies: tuple[tuple[str, str], ...] = ()

    @property
    def source_root(self) -> Path:
        """The folder of photographs."""
        return Path(self.photos)


def write_manifest(data: Path, manifest: Manifest, part: Part) -> None:
    """Replace the manifest of a part. That of the whole set takes the place of those of its parts."""
    write_json(data / part.name, {"format": FORMAT, **asdict(manifest)})
    if part.of == 1:
        for other in _parts(data):
            (data / other.name).unlink(missing_ok=True)


def read_manifest(data: Path, part: Part = Part()) -> Manifest | None:  # noqa: B008 - a frozen value
    """The manifest of a part; None if there is none. Raises DataError if it cannot be understood."""
    path = data / part.name
    try:
        content = json.loads(path.read_bytes())
        if content["format"] != FORMAT:
            raise DataError(f"{path} has the format {content['format']!r}; this version reads {FORMAT}: {_REMOVE}")
        return Manifest(
            photos=content["photos"],
            images=tuple(ImageEntry(**entry) for entry in content["images"]),
            rejected=tuple((name, reason) for name, reason in content["rejected"]),
            copies=tuple((name, other) for name, other in content["copies"]),
        )
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is no manifest: {error}; {_REMOVE}") from error


def whole_manifest(data: Path) -> Manifest:
    """The manifest of the whole set, put together from its parts where several machines made them.

    Parts that are all there are newer than a manifest of the whole set, which would have taken their place; until they
    are, that one counts. Raises DataError if there is none, if a part is missing, or if the set was divided in several
    ways.
    """
    parts = _parts(data)
    counts = sorted({part.of for part in parts})
    missing = {
        count: [str(number) for number in range(1, count + 1) if Part(number, count) not in parts] for count in counts
    }
    whole = [count for count in counts if not missing[count]]
    if len(whole) == 1:
        chosen = [part for part in parts if part.of == whole[0]]
        return _merged([manifest for part in chosen if (manifest := read_manifest(data, part)) is not None])
    if not whole and (single := read_manifest(data)) is not None:
        return single
    if not parts:
        raise DataError(f"{data} holds no manifest: prepare it first (python -m trainer prepare PHOTOS --out {data})")
    if len(counts) > 1:
        raise DataError(
            f"{data} was divided in several ways ({', '.join(part.name for part in parts)}): remove the manifests of "
            f"all but one, or prepare it without --shard"
        )
    raise DataError(f"{data} lacks parts {', '.join(missing[counts[0]])} of {counts[0]}: prepare them, too")


def _parts(data: Path) -> list[Part]:
    """The parts that have a manifest, in order."""
    found = [_PART.fullmatch(path.name) for path in data.glob("manifest-*-of-*.json")]
    return sorted({Part(int(name[1]), int(name[2])) for name in found if name})


def _merged(manifests: list[Manifest]) -> Manifest:
    """All images once, by path; an image that two parts have is a copy in the second."""
    by_id: dict[str, ImageEntry] = {}
    copies = [copy for manifest in manifests for copy in manifest.copies]
    for entry in sorted((entry for manifest in manifests for entry in manifest.images), key=lambda entry: entry.path):
        first = by_id.setdefault(entry.id, entry)
        if first is not entry:
            copies.append((entry.path, first.path))
    rejected = sorted(entry for manifest in manifests for entry in manifest.rejected)
    return Manifest(manifests[0].photos, tuple(by_id.values()), tuple(rejected), tuple(sorted(copies)))
