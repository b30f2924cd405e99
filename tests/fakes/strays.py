"""Processes that do their best not to be found, and whoever looks for them all the same."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def running(path: Path) -> list[int]:
    """The processes of this machine, in any container, with this path in their command line; zombies have none."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdecimal() and int(process.name) != os.getpid():
            try:
                words = (process / "cmdline").read_bytes()
            except OSError:
                continue
            if os.fsencode(path) in words:
                found.append(int(process.name))
    return found


def strays(program: Path) -> str:
    """A command that leaves three processes behind: in sessions, a group and an environment of their own."""
    program.write_text("import signal\nsignal.pause()\n")
    waits = f"{sys.executable} -I -S {program} >/dev/null 2>&1 </dev/null"
    return f"env -i setsid {waits} & (setsid sh -c 'setsid {waits} &' &) ; {waits} & "
