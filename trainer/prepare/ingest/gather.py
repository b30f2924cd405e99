"""Finds the images of a set, stores their crops and writes the manifest. What is there already is not made again.

A file that is as the last manifest has it is not read; an image that has its crop is not decoded, whichever file it
came from. What threads finish first changes nothing: the manifest follows from the order of the paths.
"""

from __future__ import annotations

import os
import sys
import threading
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from trainer.data.rejection import refuse_too_many
from trainer.errors import DataError
from trainer.prepare.captions.sidecar import sidecar_of
from trainer.prepare.ingest.crop import image_recipe, make_crop
from trainer.prepare.ingest.discover import Found, discover, part_of
from trainer.prepare.ingest.duplicates import near_duplicates
from trainer.prepare.ingest.source import Stamp, id_of, read_content, stamp_of
from trainer.prepare.ingest.unusable import Unusable
from trainer.prepare.manifest import ImageEntry, Manifest, Part, read_manifest, write_manifest
from trainer.prepare.passes import JsonValue
from trainer.prepare.pipeline import in_order
from trainer.prepare.progress import bar
from trainer.prepare.records import Record, Samples

IMAGE = "image"
THREADS = min(4, os.cpu_count() or 1)
"""Each holds one file and its pixels."""
AHEAD = 4 * THREADS
_UNREAD = Stamp(0, 0)


@dataclass(frozen=True, slots=True)
class _Taken:
    """What became of one file: `reason` if it cannot be used.

    `facts` are there if this file answers for the content `id`; beside it, others may have the same content.
    """

    path: str
    reason: str = ""
    id: str = ""
    stamp: Stamp = _UNREAD
    facts: Mapping[str, JsonValue] | None = None
    is_new: bool = False


def ingest(photos: Path, data: Path, part: Part, side: int, allowed_share: float) -> Manifest:
    """Crops of all images below `photos` that belong to the part, and the manifest of them.

    `side` is that of the square bucket in pixels. Every file that cannot be used is named on stderr. Raises DataError
    if there is no photograph or more than `allowed_share` of the files cannot be used: the manifest then stays what it
    was, and crops that were made are kept.
    """
    chosen, former = part_of(discover(photos), part), read_manifest(data, part)
    crops = _Crops(photos, data, side, former)
    with warnings.catch_warnings(), bar(IMAGE, len(chosen)) as advance:
        # Pillow warns of odd metadata without a name, and of large images: those that are too large are errors.
        warnings.simplefilter("ignore", UserWarning)
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        taken = []
        with (
            ThreadPoolExecutor(THREADS, IMAGE) as threads,
            closing(in_order(chosen, lambda file: threads.submit(crops.take, file), AHEAD)) as answers,
        ):  # whoever interrupts us waits for the threads
            for _, one in answers:
                taken.append(one)
                advance(1)
    manifest = _manifest(photos, taken)
    for path, reason in manifest.rejected:
        print(f"rejected: {path}: {reason}", file=sys.stderr)
    refuse_too_many(str(photos), len(chosen), manifest.rejected, allowed_share, setting="--max-rejected-share")
    if chosen and not manifest.images:
        raise DataError(f"{photos}: not one of {len(chosen)} files can be used")
    write_manifest(data, manifest, part)
    print(_summary(manifest, taken, former), flush=True)
    return manifest


class _Crops:
    """Takes one file after the other, from several threads."""

    def __init__(self, photos: Path, data: Path, side: int, former: Manifest | None) -> None:
        self._photos, self._side = photos, side
        self._samples, self._recipe = Samples(data), image_recipe(side)
        is_same_folder = former is not None and former.photos == str(photos.resolve())
        self._known = {entry.path: entry for entry in former.images} if former and is_same_folder else {}
        self._claimed: set[str] = set()
        self._claiming = threading.Lock()

    def take(self, found: Found) -> _Taken:
        """Look at a file, read it if it may have changed, decode it if its crop is not there."""
        if found.problem:
            return _Taken(found.path, found.problem)
        try:
            return self._unchanged(found.path) or self._read(found.path)
        except Unusable as error:
            return _Taken(found.path, str(error))

    def _unchanged(self, path: str) -> _Taken | None:
        entry = self._known.get(path)
        stamp = stamp_of(self._photos / path)
        if entry is None or stamp != (entry.size, entry.mtime_ns):
            return None
        record = self._done(entry.id)
        return None if record is None else _Taken(path, "", entry.id, stamp, record.facts)

    def _read(self, path: str) -> _Taken:
        content, stamp = read_content(self._photos / path)
        id = id_of(content)
        with self._claiming:
            is_mine = id not in self._claimed
            self._claimed.add(id)
        if not is_mine:
            return _Taken(path, "", id, stamp)
        record = self._done(id)
        if record is not None:
            return _Taken(path, "", id, stamp, record.facts)
        try:
            made = make_crop(content, self._side)
        except Unusable as error:
            return _Taken(path, str(error), id, stamp)
        record = self._samples.keep(id, IMAGE, self._recipe, {}, made)
        return _Taken(path, "", id, stamp, record.facts, is_new=True)

    def _done(self, id: str) -> Record | None:
        is_done = self._samples.state(id, IMAGE, self._recipe, {}) == "done"
        return self._samples.record(id, IMAGE) if is_done else None


def _manifest(photos: Path, taken: Sequence[_Taken]) -> Manifest:
    """The first path of each content is its image, later ones are copies; a copy of what cannot be used cannot be.

    Of several, the first that has a caption beside it: a copy elsewhere takes away nothing that somebody wrote.
    """
    facts = {one.id: one.facts for one in taken if one.facts is not None}
    reasons = {one.id: one.reason for one in taken if one.id and one.reason}
    usable, rejected = [], []
    for one in taken:
        reason = one.reason or reasons.get(one.id)
        if reason:
            rejected.append((one.path, reason))
        else:
            usable.append(one)
    chosen: dict[str, str] = {}
    for one in usable:
        former = chosen.setdefault(one.id, one.path)
        if former != one.path and not _has_caption(photos / former) and _has_caption(photos / one.path):
            chosen[one.id] = one.path
    images, copies = [], []
    for one in usable:
        if chosen[one.id] != one.path:
            copies.append((one.path, chosen[one.id]))
            continue
        bucket, hash = str(facts[one.id]["bucket"]), str(facts[one.id]["perceptual_hash"])
        images.append(ImageEntry(one.id, one.path, *one.stamp, bucket, hash))
    return Manifest(str(photos.resolve()), tuple(images), tuple(rejected), tuple(copies))


def _has_caption(source: Path) -> bool:
    return os.path.exists(sidecar_of(source))


def _summary(manifest: Manifest, taken: Sequence[_Taken], former: Manifest | None) -> str:
    left = {entry.id for entry in former.images} - {entry.id for entry in manifest.images} if former else ()
    made = sum(one.is_new for one in taken)
    flawed = sum(bool(one.facts and one.facts.get("flaws")) for one in taken)
    groups = near_duplicates(manifest.images)
    notes = [
        (len(manifest.rejected), "rejected"),
        (len(manifest.copies), "copies of another file, left out"),
        (len(left), "of the last run are no longer in the set"),
        (flawed, "with a broken colour profile or EXIF, used as they are stored"),
    ]
    text = f"{IMAGE}: {made:,} made, {len(manifest.images) - made:,} were there"
    text += "".join(f", {count:,} {what}" for count, what in notes if count)
    if groups:
        text += f"; {sum(map(len, groups)):,} look like another one ({len(groups):,} groups of near-duplicates, kept)"
    return text
