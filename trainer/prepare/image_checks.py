"""Everything that can be wrong with the artefacts of one image: records, files, hashes, content. No torch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from trainer.data.artefacts import FILES, MAKERS
from trainer.data.buckets import BUCKETS
from trainer.errors import DataError
from trainer.prepare.artefact_checks import CHECKS
from trainer.prepare.finding import Finding, Wrong
from trainer.prepare.manifest import ImageEntry
from trainer.prepare.recipe import Recipe
from trainer.prepare.recipes import side_of
from trainer.prepare.records import UNFINISHED, Record, Samples
from trainer.prepare.states import ImageState, state_of

READABLE = "a folder that can be read"
_RECORD = ".record.json"


def check_artefacts(samples: Samples, state: ImageState, recipes: Mapping[str, Recipe]) -> Iterator[Finding]:
    """Read every file of an image. What is stale is said to be so; its content is not judged, its bytes are."""
    folder = _relative(samples, state.entry)
    for artefact, problem in state.broken.items():
        yield Finding("broken record", f"{folder}/{artefact}{_RECORD}", problem, "a record", state.entry.id, artefact)
    for artefact, record in state.records.items():
        contents: dict[str, bytes] = {}
        yield from _check_bytes(samples, state, artefact, record, contents)
        if _is_stale(artefact, record, recipes, state):
            path, found = f"{folder}/{artefact}{_RECORD}", "made with or from something else"
            needed = "the recipe in recipes.json, and the files that are there"
            yield Finding("stale", path, found, needed, state.entry.id, artefact)
        elif len(contents) == len(FILES[artefact]):
            yield from _check_content(folder, state, artefact, contents, recipes)


def unknown_files(samples: Samples, entry: ImageEntry) -> Iterator[Finding]:
    """What lies in the folder of an image and is no file of any artefact; unfinished files are nobody's business."""
    known = {*MAKERS, *(f"{artefact}{_RECORD}" for artefact in FILES)}
    folder = samples.folder(entry.id)
    try:
        paths = sorted(folder.iterdir())
    except FileNotFoundError:
        return
    except OSError as error:
        yield Finding("unreadable folder", _relative(samples, entry), str(error.strerror), READABLE, entry.id)
        return
    for path in paths:
        if path.name not in known and not is_unfinished(path):
            yield Finding("unknown file", f"{_relative(samples, entry)}/{path.name}", "a file", "nothing", entry.id)


def is_unfinished(path: Path) -> bool:
    """Whether a process left it half-written, or is about to finish it."""
    return path.name.startswith(".") and path.name.endswith(UNFINISHED)


def _check_bytes(
    samples: Samples, state: ImageState, artefact: str, record: Record, contents: dict[str, bytes]
) -> Iterator[Finding]:
    """Whether the files of a record are what it says; `contents` gets those that are."""
    folder, id = _relative(samples, state.entry), state.entry.id
    for name in FILES[artefact] if not record.reason else ():
        path, digest = f"{folder}/{name}", record.files.get(name)
        if digest is None:
            yield Finding("broken record", f"{folder}/{artefact}{_RECORD}", f"no {name}", "its SHA-256", id, artefact)
            continue
        try:
            content = samples.read(id, name)
        except DataError as error:
            why = getattr(error.__cause__, "strerror", None) or str(error)
            yield Finding("missing file", path, why, "a file", id, artefact)
            continue
        found = hashlib.sha256(content).hexdigest()
        if found == digest:
            contents[name] = content
        else:
            yield Finding("changed file", path, f"SHA-256 {found}", digest, id, artefact)


def _check_content(
    folder: str, state: ImageState, artefact: str, contents: Mapping[str, bytes], recipes: Mapping[str, Recipe]
) -> Iterator[Finding]:
    try:
        CHECKS[artefact](contents, _size(state, recipes))
    except Wrong as wrong:
        yield Finding(wrong.kind, f"{folder}/{wrong.file}", wrong.found, wrong.needed, state.entry.id, artefact)


def _is_stale(artefact: str, record: Record, recipes: Mapping[str, Recipe], state: ImageState) -> bool:
    recipe = recipes.get(artefact, record.recipe)  # what nobody wants any more cannot be out of date with it
    return state_of(record, recipe, state.files) == "stale"


def _size(state: ImageState, recipes: Mapping[str, Recipe]) -> tuple[int, int]:
    """(height, width) of the image that is there, which may be another one than is wanted now."""
    image = state.records.get("image")
    side = side_of(image.recipe if image is not None else recipes["image"])
    sizes = {bucket.name: bucket.scaled(side) for bucket in BUCKETS}
    size = sizes.get(state.entry.bucket)
    if size is None:
        raise DataError(f"{state.entry.path} is in bucket {state.entry.bucket} at {side}: there is none; prepare again")
    return size


def _relative(samples: Samples, entry: ImageEntry) -> str:
    return samples.folder(entry.id).relative_to(samples.root.parent).as_posix()
