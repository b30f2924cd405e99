"""Which files of a folder are photographs: by suffix, at any depth, each real folder once."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from trainer.errors import DataError
from trainer.prepare.manifest import Part

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
"""In any case. Of a GIF, the first frame is used."""


class Found(NamedTuple):
    """A file that may be a photograph, or a folder that cannot be looked into: `path` is relative, in POSIX form.

    `problem` says why it is rejected already, '' for every file that is worth reading.
    """

    path: str
    problem: str = ""


def discover(photos: Path) -> list[Found]:
    """All photographs below a folder by path. Dot files and dot folders are left alone.

    A link to a folder is followed after the real folders, and a folder that was seen is not looked into again: links in
    circles end, and what is reachable twice has its real path. Raises DataError if there is nothing to prepare.
    """
    found = sorted(_walk(photos))
    if not found:
        raise DataError(
            f"{photos} holds no photograph: looked, at any depth, for files that end in {', '.join(SUFFIXES)}, in "
            "capitals or not; names that begin with a dot are left alone"
        )
    return found


def part_of(found: Sequence[Found], part: Part) -> list[Found]:
    """Every `part.of`-th of them: all parts together have each of them once."""
    return list(found[part.number - 1 :: part.of])


def _walk(photos: Path) -> Iterator[Found]:
    seen: set[tuple[int, int]] = set()
    unreadable: list[OSError] = []
    to_visit = [str(photos)]
    for start in to_visit:  # grows meanwhile
        for folder, folders, files in os.walk(start, onerror=unreadable.append):
            if _is_known(folder, seen):
                folders.clear()
                continue
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            to_visit += [path for name in folders if os.path.islink(path := os.path.join(folder, name))]
            for name in files:
                if not name.startswith(".") and name.lower().endswith(SUFFIXES):
                    yield _found(os.path.join(folder, name), photos)
    for error in unreadable:
        reason = error.strerror or str(error)
        if os.fspath(error.filename) == str(photos):
            raise DataError(f"{photos} cannot be read: {reason}")
        yield _found(os.fspath(error.filename), photos, f"the folder cannot be read: {reason}")


def _is_known(folder: str, seen: set[tuple[int, int]]) -> bool:
    try:
        status = os.stat(folder)
    except FileNotFoundError:  # it went away while we looked, with all that it held
        return True
    identity = (status.st_dev, status.st_ino)
    if identity in seen:
        return True
    seen.add(identity)
    return False


def _found(path: str, photos: Path, problem: str = "") -> Found:
    """A name that is no UTF-8 can stand in no manifest: it is rejected under a name that can."""
    name = Path(path).relative_to(photos).as_posix()
    try:
        name.encode()
    except UnicodeEncodeError:
        return Found(os.fsencode(name).decode("utf-8", "backslashreplace"), problem or "its name is no UTF-8")
    return Found(name, problem)
