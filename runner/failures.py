"""What the end of a process means: a class, whether it may pass by itself, and what to do about it. Pure."""

from __future__ import annotations

import signal as signals
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Exit:
    """How a process ended, as its supervisor recorded it."""

    code: int | None
    signal: int | None
    cause: str
    error: str = ""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an attempt failed. `name` stands in `failed(name)`; a transient one may be tried again; `says` is for a
    person."""

    name: str
    is_transient: bool
    says: str


TRAINER_CODES: Mapping[int, str] = {78: "config", 65: "data", 70: "internal"}
"""Exit codes that our trainer gives a meaning to; a foreign script's codes stand for themselves."""


def classify(ended: Exit, *, is_trainer: bool, tail: str, steps_done: int) -> Failure:
    """The class of a failed attempt, from how it ended and the last lines it wrote.

    `tail` is the end of its error stream (its output where that is empty); `steps_done` counts the optimizer steps of
    this attempt alone.
    """
    words = last_line(tail)
    if ended.cause in ("spawn_failed", "deadline"):
        return Failure(ended.cause, False, words)
    if ended.signal is not None:
        return Failure("killed", True, words)
    if is_trainer and ended.code is not None and ended.code in TRAINER_CODES:
        return Failure(TRAINER_CODES[ended.code], False, words)
    return Failure(f"exit {ended.code}", False, words)


def last_line(tail: str) -> str:
    """The last line that says anything, cut to what fits a table."""
    lines = [line.strip() for line in tail.replace("\r", "\n").split("\n")]
    return next((line[:300] for line in reversed(lines) if line), "")


def describe_exit(ended: Exit) -> str:
    """How a process ended, for a person."""
    if ended.cause == "spawn_failed":
        return f"it could not be started ({ended.error})" if ended.error else "it could not be started"
    if ended.signal is not None:
        try:
            name = signals.Signals(ended.signal).name
        except ValueError:
            name = f"signal {ended.signal}"
        return f"killed by {name}"
    return f"exit code {ended.code}"
