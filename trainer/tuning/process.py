"""Starts the process that measures a candidate, waits for it, and turns whatever it ends in into an outcome. No torch.

Every candidate has a process of its own: memory starts from nothing, and a crash of one is a result about that one.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.errors import EXIT_CONFIG, EXIT_DATA, ConfigError, DataError, TrainerError
from trainer.tuning.candidate import Candidate
from trainer.tuning.outcome import Outcome, died
from trainer.tuning.request import Request

_ROOT = Path(__file__).parents[2]
_ERRORS = {EXIT_CONFIG: ConfigError, EXIT_DATA: DataError}


@dataclass(frozen=True, slots=True)
class Place:
    """Where trials run: device, its name, the memory that a candidate may take, and how many images train there."""

    device: str
    name: str
    limit_mib: float
    images: int


def measure(candidate: Candidate, request: Request, timeout_s: float) -> tuple[Outcome, Place | None]:
    """Run one trial to its end; the place is None if it died before it knew.

    Raises ConfigError and DataError for what no candidate could do anything about. Interrupted, it ends the trial.
    """
    log = Path(request.answer).with_suffix(".log")
    with log.open("wb") as output:
        trial = subprocess.Popen(
            [sys.executable, "-m", "trainer.tuning.trial"],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            env=_environment(log.parent),
            start_new_session=True,  # Ctrl-C is for us, who then end it
        )
        try:
            _ask(trial, request)
            trial.wait(timeout_s)
        except subprocess.TimeoutExpired:
            pass
        finally:
            ended = trial.poll() is not None
            _end(trial)
    answers = _answers(Path(request.answer))
    if not ended:
        return Outcome(candidate, "failed", f"took longer than {timeout_s:g} s"), _place(answers)
    return _outcome(candidate, answers, trial.returncode, log.read_text(errors="replace")), _place(answers)


def _environment(folder: Path) -> dict[str, str]:
    """Ours, this package, and a place for compiled code that vanishes with the folder unless somebody named one."""
    known = os.environ.get("PYTHONPATH")
    return {
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "compiled"),
        **os.environ,
        "PYTHONPATH": str(_ROOT) if known is None else f"{_ROOT}{os.pathsep}{known}",
    }


def _ask(trial: subprocess.Popen[bytes], request: Request) -> None:
    """Hand over the request; the pipe stays open, because a trial dies with it."""
    assert trial.stdin is not None
    try:
        trial.stdin.write(request.line().encode())
        trial.stdin.flush()
    except BrokenPipeError:
        return  # it died at once; how it ended says why


def _end(trial: subprocess.Popen[bytes]) -> None:
    """No process of the trial is left, its data workers included."""
    assert trial.stdin is not None
    with contextlib.suppress(ProcessLookupError):
        os.killpg(trial.pid, signal.SIGKILL)
    trial.wait()
    with contextlib.suppress(BrokenPipeError):
        trial.stdin.close()


def _answers(path: Path) -> dict[str, dict[str, Any]]:
    """What a trial wrote, by what it is about; a line that it did not finish does not count."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    found = (json.loads(line) for line in lines if line.endswith("\n"))
    return {answer.pop("what"): answer for answer in found}


def _outcome(candidate: Candidate, answers: dict[str, dict[str, Any]], code: int, errors: str) -> Outcome:
    if "refused" in answers:
        refused = answers["refused"]
        raise _ERRORS.get(refused["exit_code"], TrainerError)(refused["message"])
    if "over" in answers:
        taken_mib, limit_mib = answers["over"]["taken_mib"], answers["opened"]["limit_mib"]
        why = f"had taken {taken_mib:,.0f} MiB when it was ended; there are {limit_mib:,.0f}"
        return Outcome(candidate, "out_of_memory", why)
    if "impossible" in answers:
        return Outcome(candidate, "impossible", answers["impossible"]["message"])
    if code or "measured" not in answers:
        return died(candidate, code, errors)
    found = answers["measured"]
    return Outcome(
        candidate,
        "measured",
        step_s=tuple(found["step_s"]),
        losses=tuple(found["losses"]),
        data_share=found["data_share"],
        peak_mib=found["peak_mib"],
    )


def _place(answers: dict[str, dict[str, Any]]) -> Place | None:
    return Place(**answers["opened"]) if "opened" in answers else None
