"""Which names a host may give to what lies in a run folder: paths inside it, and nothing that leads elsewhere."""

from __future__ import annotations

LONGEST_NAME = 200
DEEPEST = 9


def path_problem(name: str) -> str:
    """Why a path of a host cannot be one inside a run folder; '' when it can."""
    parts = name.split("/")
    if len(parts) > DEEPEST or len(name) > LONGEST_NAME:
        return "its path is too long"
    if not name.isprintable() or "\\" in name:
        return "its name holds what no name may hold"
    if any(part in ("", ".", "..") or part.startswith(".") for part in parts):
        return "its path could lead out of the folder, or to what is ours"
    return ""


def shown(name: str) -> str:
    """A name of a host as it may stand in a list of ours."""
    return name if name.isprintable() else repr(name)
