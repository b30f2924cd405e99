"""Where models that were built or fetched are kept. No torch."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Where stand-ins and downloads are kept: XDG_CACHE_HOME/armature, else ~/.cache/armature."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "armature"
