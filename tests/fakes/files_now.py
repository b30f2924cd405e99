"""What lies in a folder while somebody may still write there."""

from __future__ import annotations

import os
import shutil
import time
from contextlib import suppress
from pathlib import Path

REMOVED_WITHIN_S = 60.0


def files_now(folder: Path) -> dict[Path, bytes]:
    """The bytes of every plain file below a folder, in the order of their paths.

    A file that is gone between the listing and the reading (a part file that was put in its place, the write-ahead log
    of a database that was closed) is not there.
    """
    found: dict[Path, bytes] = {}
    for where, _, names in os.walk(folder):
        for path in (Path(where, name) for name in names):
            with suppress(FileNotFoundError):
                if path.is_file() and not path.is_symlink():
                    found[path] = path.read_bytes()
    return dict(sorted(found.items()))


def names_now(folder: Path, but: Path | None = None) -> set[str]:
    """The names of all files and folders below a folder, without those below `but`."""
    found: set[str] = set()
    for where, folders, files in os.walk(folder):
        if but is not None and Path(where) == but:
            folders.clear()
            continue
        found.update(folders, files)
    return found


def remove(folder: Path) -> None:
    """Delete a folder in which others still write: what they put there meanwhile goes too."""
    end = time.monotonic() + REMOVED_WITHIN_S
    while folder.exists():
        try:
            shutil.rmtree(folder)
        except OSError:
            assert time.monotonic() < end, f"{folder} is written to again and again"
