"""Where a run came from: commit, packages, hardware and a few variables. Kept beside a run, no part of its identity.

Packages, hardware and variables are those of the process that launches, on the machine that it runs on: where a run
trains is not known yet. What the training process says of itself comes with its first event.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import posixpath
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from runner.code_files import LeftOut
from runner.snapshot import Snapshot
from runner.spec.models import TRAINER, ResolvedArm
from runner.spec.trainer_check import trainer_package

ALLOWED_VARIABLES = ("CUDA_", "OMP_", "NCCL_", "PYTHON", "RUNNER_")
MOST_ALIKE = 20
_TIMEOUT_S = 60.0


def collect(
    arm: ResolvedArm, snapshot: Snapshot, variables: Mapping[str, str], gpus: Sequence[str] = ()
) -> dict[str, Any]:
    """The provenance document of one arm's runs; see `Provenance`."""
    return Provenance(variables, gpus)(arm, snapshot)


class Provenance:
    """Documents for the arms of one launch, as JSON values; what all of them share is asked once.

    `variables` is the environment of the launch, of which only allow-listed names are kept; `gpus` are the names of the
    GPUs that the host has.
    """

    def __init__(self, variables: Mapping[str, str], gpus: Sequence[str] = ()) -> None:
        self._variables = variables
        self._packages = dict(sorted(_packages().items()))
        self._hardware = _hardware(gpus)
        self._repositories: dict[Path, dict[str, Any]] = {}

    def __call__(self, arm: ResolvedArm, snapshot: Snapshot) -> dict[str, Any]:
        """The document of the arm's runs."""
        code = trainer_package() if arm.kind == TRAINER else Path(arm.folder, arm.code["root"] or ".")
        if code not in self._repositories:
            self._repositories[code] = _repository(code)
        return _document(arm, snapshot, self._repositories[code], self._packages, self._hardware, self._variables)


def _document(
    arm: ResolvedArm,
    snapshot: Snapshot,
    repository: Mapping[str, Any],
    packages: Mapping[str, str],
    hardware: Mapping[str, Any],
    variables: Mapping[str, str],
) -> dict[str, Any]:
    return {
        **repository,
        "code": {
            "hash": snapshot.hash,
            "files": len(snapshot.files),
            "size_bytes": snapshot.size_bytes,
            "left_out": _left_out(snapshot.left_out),
        },
        "arm_files": list(arm.sources),
        "python": _python(arm),
        "launcher": {"executable": sys.executable, "version": platform.python_version()},
        "packages": packages,
        "hardware": hardware,
        "variables": _variables(arm, variables),
    }


def _python(arm: ResolvedArm) -> dict[str, str | None]:
    """The interpreter that the arm asks for; the version of one that is not ours, or is made on its host, is not known
    here."""
    executable = arm.environment["python"] or sys.executable
    is_ours = arm.environment["setup"] is None and executable == sys.executable
    return {"executable": executable, "version": platform.python_version() if is_ours else None}


def _left_out(left_out: Sequence[LeftOut]) -> list[dict[str, str]]:
    """What was not frozen and why. Many neighbours with one reason are counted: every run of a study has this list."""
    alike: dict[tuple[str, str], list[str]] = {}
    for left in left_out:
        alike.setdefault((posixpath.dirname(left.path), left.reason), []).append(left.path)
    found = []
    for (folder, reason), paths in alike.items():
        if len(paths) > MOST_ALIKE:
            paths = [f"{folder or '.'}/ ({len(paths)} files and folders, {paths[0]} to {paths[-1]})"]
        found += [{"path": path, "reason": reason} for path in paths]
    return found


def _repository(folder: Path) -> dict[str, Any]:
    """Commit, whether anything differs from it, and a hash of the difference; all None outside a repository."""
    commit = _git(folder, "rev-parse", "HEAD")
    status = _git(folder, "status", "--porcelain", "--untracked-files=normal")
    if commit is None or status is None:
        return {"commit": None, "dirty": None, "diff_hash": None}
    difference = _git(folder, "diff", "HEAD", "--binary") or b""
    return {
        "commit": commit.decode().strip(),
        "dirty": bool(status.strip()),
        "diff_hash": hashlib.sha256(difference).hexdigest() if difference else None,
    }


def _packages() -> dict[str, str]:
    """Installed distributions of the runner's own interpreter."""
    names = {}
    for distribution in importlib.metadata.distributions():
        name = distribution.metadata["Name"]
        if name:
            names[name.lower()] = distribution.version
    return names


def _hardware(gpus: Sequence[str]) -> dict[str, Any]:
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "ram_mib": psutil.virtual_memory().total // 1024**2,
        "gpus": list(gpus),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    found = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(found, platform.processor() or "unknown")


def _variables(arm: ResolvedArm, variables: Mapping[str, str]) -> dict[str, str]:
    """Allow-listed variables; one that the arm names as a secret is never written down."""
    secret = {value["from"] for value in arm.env.values() if isinstance(value, Mapping)}
    return {
        name: value
        for name, value in sorted(variables.items())
        if name.startswith(ALLOWED_VARIABLES) and name not in secret
    }


def _git(folder: Path, *arguments: str) -> bytes | None:
    """What git says, None when it is not installed, too slow, or the folder is in no repository with a commit."""
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, env=environment, timeout=_TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
