"""What lies in a folder while somebody may still write there."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


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
