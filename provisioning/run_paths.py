"""Which names a host may give to what lies in a run folder: paths inside it, and nothing that leads elsewhere."""

from __future__ import annotations

LONGEST_NAME = 200
LONGEST_PART_BYTES = 230
"""A file system takes 255, and what is being written here has a longer name than it will have."""

DEEPEST = 9

OURS = frozenset({"config.yaml", "provenance.json", "control.json"})
"""At the top of a run folder: written here, and on a host at our word. What a host holds under these names never comes
here, for nothing that it could say of them is news."""


def path_problem(name: str) -> str:
    """Why a path of a host cannot be one inside a run folder; '' when it can."""
    parts = name.split("/")
    if len(parts) > DEEPEST or len(name) > LONGEST_NAME or any(_bytes(part) > LONGEST_PART_BYTES for part in parts):
        return "its path is too long"
    if not name.isprintable() or "\\" in name:
        return "its name holds what no name may hold"
    if any(part in ("", ".", "..") or part.startswith(".") for part in parts):
        return "its path could lead out of the folder, or to what is ours"
    return ""


def is_ours(name: str) -> bool:
    """Whether a path in a run folder is one of OURS, or would need a folder in its place."""
    return name.split("/", 1)[0] in OURS


def shown(name: str) -> str:
    """A name of a host as it may stand in a list of ours."""
    cut = name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}…"
    return cut if cut.isprintable() else repr(cut)


def _bytes(part: str) -> int:
    # A host may name what is no text: lone surrogates, which plain UTF-8 refuses.
    return len(part.encode(errors="surrogatepass"))
