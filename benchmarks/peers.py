"""Other tools to measure beside ours, each in a virtual environment of its own outside the repository.

They are made on first use below ARMATURE_BENCH_PEERS (default ~/.cache/armature-bench), with the pinned versions here.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

REQUIREMENTS = {"submitit": "submitit==1.5.4", "ray": "ray[tune]==2.60.0"}


def folder() -> Path:
    """Where the environments lie."""
    return Path(os.environ.get("ARMATURE_BENCH_PEERS") or Path.home() / ".cache" / "armature-bench")


def version(requirement: str) -> str:
    """The pinned version of a requirement."""
    return requirement.split("==")[1]


def python_of(name: str, requirement: str, *besides: str) -> str:
    """The interpreter of a peer's environment, made now if need be. Raises CalledProcessError when pip fails.

    `besides` are further requirements of the same install, to bound what the peer itself leaves open.
    """
    place = folder() / f"{name}-{version(requirement)}"
    python = place / "bin" / "python"
    if not (place / "ready").exists():
        print(f"making {place} with {requirement} …", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(place)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", requirement, *besides], check=True)
        (place / "ready").touch()
    return str(python)
