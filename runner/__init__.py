"""Launches arms, watches their curves, stops what has gone bad, remembers everything, writes the report."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import os
    from collections.abc import Collection

    from runner.door import Study

__all__ = ["load_study"]


def load_study(path: str | os.PathLike[str], *, names: Collection[str] | None = None) -> Study:
    """A study as tables for a notebook: `runner.load_study("runs/portrait-quickstart")`; see runner.door."""
    from runner import door  # loading the database layer must not slow down `import runner`

    return door.load_study(path, names=names)
