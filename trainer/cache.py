"""Where everything that was built or fetched is kept: models, sets of shards. No torch."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Where it is: XDG_CACHE_HOME/armature, else ~/.cache/armature."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "armature"
