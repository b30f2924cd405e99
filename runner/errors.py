"""Every error that a person can cause or meet, and the exit code it ends in.

    ArmatureError
    ├── UsageError            2  the command line asks for something that does not exist
    ├── SpecError             2  an arm file says something that is not allowed (file, line, key)
    │   └── NotInThisVersion  2  a known key or value whose behaviour this version does not have
    ├── UnmetHosts            2  nobody has said yet that the keys which hosts show are theirs
    ├── BudgetError           4  it could cost more than the budget allows
    ├── InfrastructureError   3  a disk, a database, a host or a file stands in the way
    │   ├── HomeError         3  the home cannot be used: unwritable, full, on a network file system
    │   └── StoreTooNew       3  the database was written by a newer version
    └── Fenced                3  another controller took over this home; this one must stop writing

Each message says what was wrong, where, what was allowed, and what was kept. Assertions are for our own mistakes only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

EXIT_OK = 0
EXIT_RUN_FAILED = 1
EXIT_USAGE = 2
EXIT_INFRASTRUCTURE = 3
EXIT_BUDGET = 4
EXIT_INTERRUPTED = 130


class ArmatureError(Exception):
    """Root of every error this project raises on purpose."""

    exit_code = EXIT_INFRASTRUCTURE


class UsageError(ArmatureError):
    """The command line names something that does not exist or is ambiguous."""

    exit_code = EXIT_USAGE


@dataclass(frozen=True, slots=True)
class Where:
    """A place in an arm file: `file:line`, and the dotted key there ('' for the whole file)."""

    file: str
    line: int | None = None
    key: str = ""

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        return f"{place}: {self.key}" if self.key else place


class SpecError(ArmatureError):
    """An arm file cannot be used. Names file, line, key, what was allowed and the nearest allowed word."""

    exit_code = EXIT_USAGE

    def __init__(
        self,
        where: Where,
        problem: str,
        *,
        allowed: Sequence[str] | str = (),
        nearest: str | None = None,
        next_command: str | None = None,
    ) -> None:
        self.where = where
        self.problem = problem
        self.allowed = allowed if isinstance(allowed, str) else ", ".join(allowed)
        self.nearest = nearest
        self.next_command = next_command
        super().__init__(self._one_line())

    def _one_line(self) -> str:
        parts = [f"{self.where}: {self.problem}"]
        if self.allowed:
            parts.append(f"allowed: {self.allowed}")
        if self.nearest:
            parts.append(f"did you mean {self.nearest!r}?")
        if self.next_command:
            parts.append(f"next: {self.next_command}")
        return "; ".join(part.replace("\n", " ") for part in parts)


class NotInThisVersion(SpecError):
    """A key or value that is part of the format but whose behaviour this version does not have."""


class UnmetHosts(ArmatureError):
    """Hosts show keys that nobody has said yes to: (place, fingerprint) of each."""

    exit_code = EXIT_USAGE

    def __init__(self, hosts: Sequence[tuple[str, str]]) -> None:
        self.hosts = tuple(hosts)
        shown = "; ".join(f"{place} shows {fingerprint}" for place, fingerprint in hosts)
        super().__init__(
            f"not known yet: {shown}. Compare with the host's own (ssh-keygen -lf /etc/ssh/ssh_host_*_key.pub) and "
            "launch with --accept-new (nothing was started)"
        )


class BudgetError(ArmatureError):
    """What is asked for could cost more than its budget allows; nothing was started."""

    exit_code = EXIT_BUDGET


class InfrastructureError(ArmatureError):
    """Something outside the arm files stands in the way; the message names the path or the host."""

    exit_code = EXIT_INFRASTRUCTURE


class HomeError(InfrastructureError):
    """The home directory cannot be used."""


class StoreTooNew(InfrastructureError):
    """The database was written by a newer version of this program; it is left untouched."""


class Fenced(InfrastructureError):
    """Another controller holds this home now; the write was rolled back."""
