"""Which runs a person means: an id, a unique prefix of one, `study/arm-s0`, or a study. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from runner.errors import UsageError


@dataclass(frozen=True, slots=True)
class NamedRun:
    """What a run can be called by. `run` is its folder below the home."""

    run: str
    id: str
    study: str
    arm: str
    seed: int
    superseded: bool
    state: str
    has_autopsy: bool = False  # one that a person asked for waits or is under way

    @property
    def path(self) -> str:
        """study/arm-s0."""
        return f"{self.study}/{self.arm}-s{self.seed}"


def find_run(name: str, runs: Sequence[NamedRun]) -> NamedRun:
    """The one run of that name. Raises UsageError with the candidates when there are several, or none."""
    current = [run for run in runs if not run.superseded]
    exact = [run for run in current if name in (run.path, run.run)] or [run for run in runs if run.id == name]
    found = exact or [run for run in runs if name and run.id.startswith(name)]
    if len(found) == 1:
        return found[0]
    if not found:
        known = ", ".join(sorted(run.path for run in current)[:12]) or "none yet"
        raise UsageError(f"there is no run {name!r}; runs: {known}; next: runner status")
    candidates = ", ".join(f"{run.id} ({run.path})" for run in found[:12])
    raise UsageError(f"{name!r} is ambiguous: {candidates}")


def find_study(name: str, runs: Sequence[NamedRun]) -> str:
    """The study of that name, whatever its case. Raises UsageError with the known ones."""
    known = sorted({run.study for run in runs})
    for study in known:
        if study.lower() == name.lower():
            return study
    raise UsageError(f"there is no study {name!r}; studies: {', '.join(known) or 'none yet'}; next: runner status")


def find_runs(name: str, runs: Sequence[NamedRun]) -> tuple[NamedRun, ...]:
    """All current runs of a study when `name` is one, else the one run of that name."""
    of_study = tuple(run for run in runs if run.study.lower() == name.lower() and not run.superseded)
    return of_study or (find_run(name, runs),)
