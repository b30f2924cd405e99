"""Looks at one attempt through its host's shell: is it alive, how did it end, what did it say last.

Reads only; what it sees is stored by the controller.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from provisioning.base import ProcessIdentity, Shell
from runner.schedule import Phase

TAIL_BYTES = 8192
_CHECKPOINT = re.compile(r"step_\d+")


@dataclass(frozen=True, slots=True)
class Seen:
    """What the files and processes of an attempt say now. `exit` is exit.json with `tail` added.

    `is_visible` is false where the process may live on out of our sight: then only its heartbeat tells.
    """

    phase: Phase
    identity: ProcessIdentity | None
    reported: bool
    exit: Mapping[str, Any] | None = None
    orphaned: bool = False
    is_visible: bool = True


def look(shell: Shell, attempt_dir: Path, phase: Phase, identity: ProcessIdentity | None) -> Seen:
    """The present state of an attempt that was `phase` when last seen.

    An attempt is gone only when supervisor and training process are both gone and no exit record is there, even when
    asked again after the processes were found missing, and only where a missing process is proof.
    """
    ended = _exit_record(shell, attempt_dir)
    if ended is None and phase is Phase.LIVE and identity is not None and shell.is_alive(identity):
        return Seen(Phase.LIVE, identity, True)  # the usual case, many times a second: nothing more is to be read
    written = read_json(shell, f"{attempt_dir}/supervisor.json")
    identity = identity or _identity(written.get("supervisor"))
    child = _identity(written.get("child"))
    if ended is not None:
        return Seen(Phase.ENDED, identity, True, ended)
    if phase is Phase.INTENDED and identity is None:
        return Seen(Phase.INTENDED, None, False)
    if identity is not None and shell.is_alive(identity):
        return Seen(Phase.LIVE, identity, child is not None)
    if child is not None and shell.is_alive(child):
        return Seen(Phase.LIVE, identity, True, orphaned=True)
    ended = _exit_record(shell, attempt_dir)
    if ended is None and identity is not None and not shell.can_see(identity):
        return Seen(Phase.LIVE, identity, True, is_visible=False)
    return Seen(Phase.GONE if ended is None else Phase.ENDED, identity, True, ended)


def metric_files(shell: Shell, run_dir: Path, folder: Path, metrics: Mapping[str, Any] | None) -> tuple[str, ...]:
    """The files that an attempt's metrics are read from; `folder` is the attempt's own."""
    if metrics is None:
        return (f"{folder}/metrics.jsonl",)
    if metrics["source"] == "regex":
        return (f"{folder}/stdout.log", f"{folder}/stderr.log")
    path = str(run_dir / metrics["path"])
    if metrics["source"] == "tensorboard":
        return tuple(f"{path}/{name}" for name in shell.names(path) if "tfevents" in name)
    return (path,)


def checkpoints(shell: Shell, run_dir: Path) -> tuple[int, ...]:
    """Steps of the complete checkpoints of a run (a folder gets its name only when it is complete)."""
    return _steps(shell.names(str(run_dir / "checkpoints")))


def checkpoints_there(shell: Shell, run_dir: Path) -> tuple[int, ...]:
    """The same as the host has it now: what was pruned there may still have its name here."""
    return _steps(shell.names_there(str(run_dir / "checkpoints")))


def step_name(step: int) -> str:
    """The name of the folder of a checkpoint."""
    return f"step_{step:06d}"


def _steps(names: Iterable[str]) -> tuple[int, ...]:
    return tuple(sorted(int(name[5:]) for name in names if _CHECKPOINT.fullmatch(name)))


def _exit_record(shell: Shell, attempt_dir: Path) -> Mapping[str, Any] | None:
    record = read_json(shell, f"{attempt_dir}/exit.json")
    return {**record, "tail": log_tail(shell, attempt_dir)} if record else None


def log_tail(shell: Shell, attempt_dir: Path) -> str:
    """The end of what a process wrote to its error stream, or to its output when it wrote no errors."""
    for name in ("stderr.log", "stdout.log"):
        path = str(attempt_dir / name)
        stamp = shell.stamp(path)
        if stamp is not None and stamp[1] > 0:
            data = shell.read(path, max(0, stamp[1] - TAIL_BYTES), TAIL_BYTES) or b""
            return data.decode("utf-8", errors="replace")
    return ""


def read_json(shell: Shell, path: str) -> dict[str, Any]:
    """A JSON object that its writer replaces atomically; {} when it is not there."""
    data = shell.read(path)
    if not data:
        return {}
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):  # a host may nest as deep as it likes
        return {}
    return found if isinstance(found, dict) else {}


def _identity(document: Any) -> ProcessIdentity | None:
    if not isinstance(document, dict):
        return None
    names = ("boot_id", "init_start_ticks", "pid", "start_ticks")
    return ProcessIdentity(**{name: document[name] for name in names}) if all(n in document for n in names) else None
