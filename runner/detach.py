"""Starting our own processes so that they outlive the command that starts them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from runner.errors import HomeError
from runner.home import Home

SUPERVISOR = Path(__file__).resolve().with_name("supervisor.py")
"""The one file that a host runs; it needs nothing of ours beside it."""

_BORROWED = ("PYTHONPATH", "PYTHONSAFEPATH")
_KEPT = "RUNNER_BORROWED_VARIABLES"


def own_environment() -> dict[str, str]:
    """The environment in which `python -m runner.…` means this very copy, whatever the working directory holds.

    The values that this replaces travel along, for `shell_environment` to put them back.
    """
    shell = shell_environment(os.environ)
    root = str(Path(__file__).resolve().parent.parent)
    others = [part for part in shell.get("PYTHONPATH", "").split(os.pathsep) if part and part != root]
    kept = json.dumps({name: shell.get(name) for name in _BORROWED})
    return {**shell, "PYTHONPATH": os.pathsep.join([root, *others]), "PYTHONSAFEPATH": "1", _KEPT: kept}


def shell_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of the person's shell, as it was before `own_environment` changed it for our own processes."""
    found = dict(environment)
    kept = found.pop(_KEPT, None)
    for name, value in (json.loads(kept) if kept else {}).items():
        if value is None:
            found.pop(name, None)
        else:
            found[name] = value
    return found


def start_controller(home: Home) -> int:
    """Start the home's controller in a session of its own and return its pid. A second one ends itself at once."""
    try:
        log = os.open(home.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise HomeError(f"{home.log}: the controller's log cannot be opened: {error.strerror}") from error
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "runner.controller", "--home", str(home.root)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd=home.root,
            env=own_environment(),
        )
    finally:
        os.close(log)
    return process.pid


def start_report(home: Home, study: str) -> subprocess.Popen[bytes]:
    """Start the child that writes a study's report; what it prints goes to the controller's log."""
    return subprocess.Popen(
        [sys.executable, "-m", "runner.cli", "report", study, "--home", str(home.root)],
        stdin=subprocess.DEVNULL,
        cwd=home.root,
        env=own_environment(),
    )
