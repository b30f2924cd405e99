"""Asks the trainer about the `trainer` blocks of all arms: one short process that imports no torch."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from runner.errors import InfrastructureError, SpecError, Where
from runner.spec.models import TRAINER, ResolvedArm, TrainerCheck

INSTALL = "pip install 'armature[trainer]'"
TIMEOUT_S = 120.0

_NEEDED = ("torch", "safetensors")
_PROBE = f"import importlib.util as u, sys; sys.exit(any(u.find_spec(name) is None for name in {_NEEDED}))"


def check_trainer_arms(arms: Sequence[ResolvedArm]) -> tuple[ResolvedArm, ...]:
    """The same arms in the same order; trainer arms with their complete configuration, their steps and `check`.

    Raises SpecError for the first thing the trainer refuses, with file and line, and when the trainer or what it needs
    is not installed; InfrastructureError when it gives no usable answer. One process per interpreter.
    """
    checked = {id(arm): arm for arm in arms}
    trainer_arms = [arm for arm in arms if arm.kind == TRAINER]
    for python in dict.fromkeys(arm.python for arm in trainer_arms):
        group = [arm for arm in trainer_arms if arm.python == python]
        for (arm, is_rescued), result in _ask(python, group):
            if not result.get("ok"):
                raise _refusal(arm, result, is_rescued=is_rescued)
            if is_rescued:
                known = checked[id(arm)]
                checked[id(arm)] = dataclasses.replace(known, rescue_trainer=result.get("config") or arm.rescue_trainer)
            else:
                checked[id(arm)] = _completed(arm, result)
    return tuple(checked[id(arm)] for arm in arms)


def trainer_package() -> Path:
    """The `trainer` package that belongs to this runner: its sibling."""
    return Path(__file__).resolve().parents[2] / "trainer"


Question = tuple[ResolvedArm, bool]
"""An arm, and whether it is asked about as a rescue would go on with it."""


def _ask(python: str, arms: Sequence[ResolvedArm]) -> list[tuple[Question, Mapping[str, Any]]]:
    """Every arm, and behind each with changes for a rescue what that would train, with what the trainer says."""
    _require_trainer(python, arms[0])
    asked = [(arm, is_rescued) for arm in arms for is_rescued in (False, True) if arm.rescue_trainer or not is_rescued]
    questions = [
        {
            "id": f"{arm.name}#{index}",
            "config": arm.rescue_trainer if is_rescued else arm.trainer,
            "processes": max(1, arm.resources.gpus),
        }
        for index, (arm, is_rescued) in enumerate(asked)
    ]
    answer = _run(python, ["-m", "trainer", "check", "--json"], json.dumps(questions), arms[0])
    if "No module named" in answer.stderr and not answer.stdout.strip():
        raise _not_installed(arms[0], python, answer.stderr.strip().splitlines()[-1])
    try:
        results = json.loads(answer.stdout)
        if [result["id"] for result in results] == [question["id"] for question in questions]:
            return list(zip(asked, results, strict=True))
    except (ValueError, TypeError, KeyError):
        pass
    said = (answer.stderr.strip() or answer.stdout.strip() or "nothing").splitlines()[-1]
    raise InfrastructureError(f"{shlex.quote(python)} -m trainer check gave no usable answer, it said: {said:.300}")


def _require_trainer(python: str, arm: ResolvedArm) -> None:
    if not (trainer_package() / "__main__.py").is_file():
        raise _not_installed(arm, python, f"{trainer_package()} is not there")
    if python == sys.executable:
        missing = any(importlib.util.find_spec(name) is None for name in _NEEDED)
    else:
        missing = _run(python, ["-c", _PROBE], "", arm).returncode != 0
    if missing:
        raise _not_installed(arm, python, f"{python} lacks one of {', '.join(_NEEDED)}")


def _run(python: str, arguments: Sequence[str], text: str, arm: ResolvedArm) -> subprocess.CompletedProcess[str]:
    root = str(trainer_package().parent)
    environment = {**os.environ, "PYTHONPATH": root, "PYTHONSAFEPATH": "1"}
    try:
        return subprocess.run(
            [python, *arguments],
            input=text,
            capture_output=True,
            text=True,
            cwd=root,
            env=environment,
            timeout=TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        raise InfrastructureError(f"{shlex.quote(python)} -m trainer check took over {TIMEOUT_S:.0f} s") from None
    except (OSError, ValueError) as error:
        problem = f"{python!r} cannot be started: {error}"
        raise SpecError(arm.where("environment.python"), problem, allowed="an interpreter, or null") from None


def _not_installed(arm: ResolvedArm, python: str, reason: str) -> SpecError:
    command = INSTALL if python == sys.executable else f"{shlex.quote(python)} -m {INSTALL}"
    return SpecError(arm.where("trainer"), f"the trainer is not installed ({reason})", next_command=command)


def _refusal(arm: ResolvedArm, result: Mapping[str, Any], *, is_rescued: bool) -> SpecError:
    errors = result.get("errors") or [{"path": "", "message": "refused by the trainer"}]
    first = errors[0]
    key = ".".join(part for part in ("trainer", first.get("path") or "") if part)
    where = arm.where(_change_behind(arm, key) if is_rescued else key)
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return SpecError(
        Where(where.file, where.line, where.key),
        f"{first['message']}{more}",
        allowed=first.get("allowed") or (),
        nearest=first.get("nearest"),
        next_command=f"runner check {shlex.quote(arm.file)}",
    )


def _change_behind(arm: ResolvedArm, key: str) -> str:
    """The key of `policy.rescue.changes` that a complaint about a rescued run is about, as far as one can tell."""
    block = "policy.rescue.changes"
    for change in arm.policy.rescue.changes:
        if f"{key}.".startswith(f"{change}.") or f"{change}.".startswith(f"{key}."):
            return f"{block}.{change}"
    return block


def _completed(arm: ResolvedArm, result: Mapping[str, Any]) -> ResolvedArm:
    check = TrainerCheck(
        steps_total=int(result["steps_total"]),
        parameters=result.get("parameters"),
        flops_per_sample=result.get("flops_per_sample"),
        memory_mib=result.get("memory_mib"),
        checkpoint_mib=result.get("checkpoint_mib"),
        samples_per_step=result.get("samples_per_step"),
        notes=tuple(result.get("notes") or ()),
    )
    return dataclasses.replace(arm, trainer=result.get("config") or arm.trainer, steps=check.steps_total, check=check)
