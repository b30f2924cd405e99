"""Every error that the trainer raises on purpose, and the exit code it ends in.

    TrainerError            70  something inside or around the process went wrong
    ├── UsageError           2  the command line asks for something that does not exist or would overwrite a run
    ├── ConfigError         78  the configuration says something that is not allowed
    ├── DataError           65  the data cannot be read or is not what the configuration promises
    ├── CheckpointError     70  a checkpoint cannot be written or read; the last complete one is intact
    └── TeamError           70  one of several processes failed, ending in its own code, or does not answer

Exit code 0 means that all steps are done, 75 that the process stopped on request with a complete checkpoint. An
exception that is none of these is a bug: traceback on stderr, exit code 70.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

EXIT_DONE = 0
EXIT_USAGE = 2
EXIT_DATA = 65
EXIT_INTERNAL = 70
EXIT_STOPPED = 75
EXIT_CONFIG = 78


class TrainerError(Exception):
    """Root of every error that the trainer raises on purpose; the message alone is enough for a person."""

    exit_code = EXIT_INTERNAL


@dataclass(frozen=True, slots=True)
class Issue:
    """One thing that is wrong with a configuration.

    `path` is the dotted key inside the trainer block ('' for the block itself), `allowed` says what may stand there and
    `nearest` is the allowed word that resembles the given one most, if any does.
    """

    path: str
    message: str
    allowed: str | tuple[str, ...] = ""
    nearest: str | None = None

    def __str__(self) -> str:
        allowed = self.allowed if isinstance(self.allowed, str) else ", ".join(self.allowed)
        parts = [f"{self.path}: {self.message}" if self.path else self.message]
        if allowed:
            parts.append(f"allowed: {allowed}")
        if self.nearest:
            parts.append(f"did you mean {self.nearest!r}?")
        return "; ".join(parts)


class UsageError(TrainerError):
    """The command line asks for something that does not exist, or that would overwrite a run."""

    exit_code = EXIT_USAGE


class ConfigError(TrainerError):
    """The configuration cannot be used; `issues` lists everything that is wrong with it."""

    exit_code = EXIT_CONFIG

    def __init__(self, issues: Sequence[Issue] | str) -> None:
        self.issues = (Issue("", issues),) if isinstance(issues, str) else tuple(issues)
        super().__init__("\n".join(str(issue) for issue in self.issues))


class DataError(TrainerError):
    """The data cannot be read, or too much of it had to be rejected."""

    exit_code = EXIT_DATA


class CheckpointError(TrainerError):
    """A checkpoint cannot be written or read. Checkpoints that were complete before are untouched."""


class TeamError(TrainerError):
    """One of the processes that train together failed, or keeps the others waiting; ends in the code that it left."""

    def __init__(self, message: str, exit_code: int = EXIT_INTERNAL) -> None:
        super().__init__(message)
        self.exit_code = exit_code
