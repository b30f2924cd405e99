"""Names that cross a border: data that stands elsewhere on every machine, and ids that become file names. No torch."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from trainer.errors import DataError

_DATA = re.compile(r"\{data:([^{}]+)\}")
"""Data by the name that the arm gives it; it stands in another place on every machine."""


def placed(path: str) -> Path:
    """The path with every {data:NAME} replaced by where that data stands on this machine.

    Raises DataError if whoever started this process has not said where.
    """
    return Path(_DATA.sub(_place, path))


def placed_folder(path: str | None, content: str) -> Path:
    """The folder that `data.path` names, `placed`; `content` says what it holds, for a person.

    Raises DataError if none is named, if nobody has said where it stands, or if no folder is there.
    """
    if path is None:
        raise DataError(f"data.path must name the folder of {content}")
    root = placed(path)
    if not root.is_dir():
        raise DataError(f"data.path {root} is not a folder")
    return root


def safe_id(name: str) -> str:
    """A file-name-safe id: a name with other characters gets a hash, so ids stay distinct."""
    safe = re.sub(r"[^A-Za-z0-9._-]+", "_", name)
    return safe if safe == name else f"{safe}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _place(name: re.Match[str]) -> str:
    variable = "RUNNER_DATA_" + re.sub("[.-]", "_", name[1]).upper()
    try:
        return os.environ[variable]
    except KeyError:
        raise DataError(f"data.path names {name[0]}, and {variable} is not set: name a folder, or set it") from None
