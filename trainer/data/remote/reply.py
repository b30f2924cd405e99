"""An answer with a file of a set, or with a part of one. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer of status 200 or 206. `headers` have lower-case names; `pieces` raises Cut where it breaks off."""

    status: int
    headers: Mapping[str, str]
    pieces: Iterator[bytes]

    @property
    def start(self) -> int:
        """The byte of the file with which this part of it begins; 0 for a whole file, -1 if it is not said."""
        if self.status == 200:
            return 0
        first = self.headers.get("content-range", "").removeprefix("bytes ").partition("-")[0]
        return int(first) if first.isdecimal() else -1
