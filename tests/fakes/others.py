"""Another user of this machine: root may read and write everything, so a test of permissions must be somebody else."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

NOBODY = 65534


def open_to_others(path: Path) -> None:
    """Let other users walk down to `path`."""
    for folder in path.parents:
        if folder.stat().st_uid == os.geteuid():
            folder.chmod(folder.stat().st_mode | 0o055)


def as_nobody(act: Callable[[], object]) -> bool:
    """Run `act` in a child without rights; whether it returned something true. Modules it needs must be loaded."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            code = 0 if act() else 1
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
