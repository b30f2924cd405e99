"""What the schedule may decide, one small frozen value for each kind of act; runner.perform carries them out."""

from __future__ import annotations

from dataclasses import dataclass

from provisioning.base import Slot
from runner.records import AttemptKind, RunState


@dataclass(frozen=True, slots=True)
class Start:
    """Begin an attempt on a slot: intent row, staging, spawn. `resume` continues from a checkpoint."""

    run: str
    attempt: int
    kind: AttemptKind
    slot: Slot
    resume: bool


@dataclass(frozen=True, slots=True)
class Spawn:
    """Carry an intended attempt through: its row exists, its process may or may not."""

    run: str
    attempt: int


@dataclass(frozen=True, slots=True)
class MarkRunning:
    """The process was seen alive."""

    run: str


@dataclass(frozen=True, slots=True)
class Stop:
    """Walk the stop ladder. `rule` names the detector of an abort and is empty for a person's wish."""

    run: str
    attempt: int
    reason: str
    rule: str = ""


@dataclass(frozen=True, slots=True)
class Probe:
    """Ask a live training for extra validations every so many steps; None: for no more of them."""

    run: str
    attempt: int
    every_steps: int | None


@dataclass(frozen=True, slots=True)
class Reap:
    """A process whose supervisor was lost has nobody to stop it or to write down its end: a new one does both."""

    run: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Retry:
    """The run failed for a reason that may pass: it is queued again, for a new attempt from its last checkpoint."""

    run: str
    state: RunState
    reason: str
    rule: str


@dataclass(frozen=True, slots=True)
class StartTogether:
    """Begin one wave: everything is staged first, then all processes are spawned in one call."""

    starts: tuple[Start, ...]

    @property
    def run(self) -> str:
        """The first run of the wave."""
        return self.starts[0].run


@dataclass(frozen=True, slots=True)
class Revive:
    """A run that was given up for lost reports again: its process never died."""

    run: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Settle:
    """The run is over, for now. `rescue`: another run goes on from one of its checkpoints."""

    run: str
    state: RunState
    reason: str
    rule: str = ""
    rescue: bool = False


@dataclass(frozen=True, slots=True)
class EndAutopsy:
    """An autopsy that a person asked for is over, or will not be made; the run stays what it is. `ok`: it was made."""

    run: str
    attempt: int
    reason: str
    ok: bool


Action = Start | StartTogether | Spawn | MarkRunning | Stop | Probe | Reap | Retry | Revive | Settle | EndAutopsy
