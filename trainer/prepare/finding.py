"""What `verify` finds, as frozen values. No torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

Kind = Literal[
    "broken record",
    "missing file",
    "changed file",
    "no array",
    "wrong type",
    "wrong shape",
    "wrong grid",
    "not finite",
    "out of range",
    "text mask",
    "empty caption",
    "stale",
    "unknown file",
    "unreadable folder",
    "broken index",
    "missing shard",
    "wrong size",
    "changed shard",
    "incomplete sample",
    "other sample",
    "wrong count",
]
MENDED_BY_PREPARING: tuple[Kind, ...] = (
    "stale",
    "other sample",
    "unknown file",
    "unreadable folder",
    "missing shard",
    "broken index",
)
"""Nothing in it is damaged, or nothing is there that could be removed."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something in a set that is not as it should be: what kind of thing, where (relative to the set, in POSIX form),
    what was found and what was needed. `id` and `artefact` name what it belongs to, '' if nothing."""

    kind: Kind
    path: str
    found: str
    needed: str
    id: str = ""
    artefact: str = ""

    def __str__(self) -> str:
        return f"{self.kind}: {self.path}: {self.found}; needed: {self.needed}"

    @property
    def is_corrupt(self) -> bool:
        """Whether what was found must go before it can be made again."""
        return self.kind not in MENDED_BY_PREPARING

    def as_json(self) -> dict[str, str]:
        """Plain JSON values."""
        return asdict(self)


class Wrong(ValueError):
    """Content that is not as it should be: what kind of thing, in which file, what was found and what was needed."""

    def __init__(self, kind: Kind, file: str, found: str, needed: str) -> None:
        self.kind, self.file, self.found, self.needed = kind, file, found, needed
        super().__init__(f"{file}: {found}; needed: {needed}")
