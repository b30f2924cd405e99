"""Frozen values that the rooms of the runner hand to each other, and the states a run may take.

Nothing here reads a clock, a file, a process, the network or a database.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any


class RunState(StrEnum):
    """Where a run is in its life. `MOVES` lists every legal change."""

    QUEUED = "queued"
    PLACED = "placed"
    STAGING = "staging"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    FINISHED = "finished"
    ABORTED = "aborted"
    FAILED = "failed"
    LOST = "lost"
    PREEMPTED = "preempted"
    CANCELLED = "cancelled"


_S = RunState
_GIVES_UP = {_S.FAILED, _S.LOST, _S.CANCELLED}

MOVES: Mapping[RunState, frozenset[RunState]] = MappingProxyType(
    {
        _S.QUEUED: frozenset({_S.PLACED, _S.CANCELLED, _S.FAILED}),
        _S.PLACED: frozenset({_S.STAGING, _S.QUEUED} | _GIVES_UP),
        _S.STAGING: frozenset({_S.STARTING, _S.QUEUED} | _GIVES_UP),
        _S.STARTING: frozenset({_S.RUNNING, _S.STOPPING, _S.FINISHED, _S.ABORTED, _S.QUEUED, _S.PREEMPTED} | _GIVES_UP),
        _S.RUNNING: frozenset({_S.STOPPING, _S.FINISHED, _S.ABORTED, _S.PREEMPTED} | _GIVES_UP),
        _S.STOPPING: frozenset({_S.FINISHED, _S.ABORTED, _S.PREEMPTED} | _GIVES_UP),
        _S.FINISHED: frozenset({_S.QUEUED}),  # only with a longer budget, which only a person may give
        _S.ABORTED: frozenset({_S.QUEUED}),  # only a person may ask for this one
        _S.FAILED: frozenset({_S.QUEUED}),
        _S.LOST: frozenset({_S.QUEUED, _S.RUNNING}),  # running: it reported again
        _S.PREEMPTED: frozenset({_S.QUEUED}),
        _S.CANCELLED: frozenset({_S.QUEUED}),
    }
)
ENDED = frozenset({_S.FINISHED, _S.ABORTED, _S.FAILED, _S.LOST, _S.PREEMPTED, _S.CANCELLED})
ON_A_SLOT = frozenset({_S.PLACED, _S.STAGING, _S.STARTING, _S.RUNNING, _S.STOPPING})


def is_legal(old: RunState, new: RunState) -> bool:
    """Whether a run may move from `old` to `new`."""
    return new in MOVES[old]


class Health(StrEnum):
    """What the judge and the liveness checks think of a run; a column of its own beside the state."""

    OK = "ok"
    WARNED = "warned"
    DIVERGED = "diverged"
    STALLED = "stalled"
    HUNG = "hung"
    UNKNOWN = "unknown"


class AttemptKind(StrEnum):
    """Why a process was started for a run."""

    TRAIN = "train"
    EVALUATE = "evaluate"
    AUTOPSY = "autopsy"


class Severity(StrEnum):
    """How far a policy lets a detector go: record only, warn a person, stop the run, or stop it and start it again from
    its best checkpoint with declared changes."""

    SHADOW = "shadow"
    WARN = "warn"
    ABORT = "abort"
    RESCUE = "rescue"


STOPS = frozenset({str(Severity.ABORT), str(Severity.RESCUE)})
"""Actions that end a training; what follows a stop is where they differ."""


@dataclass(frozen=True, slots=True)
class Primary:
    """The one metric that ranks the arms of a study, chooses the best checkpoint and may abort.

    `metric` is a full name whose prefix is its protocol; `direction` is min or max; `select` is last or best.
    """

    metric: str
    direction: str = "min"
    select: str = "last"


@dataclass(frozen=True, slots=True)
class Rescue:
    """How a run that was stopped by a detector with policy `rescue` is started again, as a new linked run.

    `start` is the checkpoint it begins with, best or last; `changes` are dotted keys into the arm, as in an arm file;
    at most `max` rescues follow each other.
    """

    start: str = "best"
    changes: Mapping[str, Any] = field(default_factory=dict)
    max: int = 1


@dataclass(frozen=True, slots=True)
class Policy:
    """What each detector may do. `detectors` maps a name to a Severity; not listed means warn.

    `tail` is the last share of the step budget (0 to 1) in which a verdict is recorded and nothing is stopped.
    `autopsy_s` is the time that the final evaluation and the autopsy after an abort may take; 0 = no autopsy.
    """

    detectors: Mapping[str, str] = field(default_factory=dict)
    tail: float = 0.04
    rescue: Rescue = field(default_factory=Rescue)
    autopsy_s: float = 900.0


@dataclass(frozen=True, slots=True)
class Resources:
    """What one run needs: GPUs (0 = a CPU slot), CPU cores, GiB of GPU memory."""

    gpus: int = 1
    min_vram_gib: float = 0.0
    cpus: int = 1
    colocate: str = "prefer"
    gpu_ids: str = "index"


@dataclass(frozen=True, slots=True)
class Series:
    """One metric of one run as the judge sees it: strictly increasing steps, one value each (may be nan or inf)."""

    name: str
    steps: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class DeclaredEvent:
    """Something the trainer announced about itself at a step: repa_off, resolution, resumed, checkpoint …"""

    step: int
    event: str


@dataclass(frozen=True, slots=True)
class Finding:
    """What one detector saw.

    `severity` is the strongest the detector itself would ask for (warn or abort); the policy may lower it.
    `step` is the step whose arrival triggered it. `evidence` holds plain JSON values with units in their names.
    `summary` is one sentence for a person. `wants_probes`: its condition still holds at the newest point, and extra
    validations would show sooner what becomes of it; that is no part of what was found.
    """

    detector: str
    severity: Severity
    step: int
    summary: str
    evidence: Mapping[str, Any] = field(default_factory=dict)
    wants_probes: bool = field(default=False, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Sibling:
    """Another run of the study: its primary metric so far, measured on the same samples in the same way.

    `steps_total` is its budget in steps. Points after the run was stopped do not exist, so they are not here.
    """

    run: str
    series: Series
    steps_total: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the judge concludes about one run from everything it saw up to `as_of`.

    `action` is none, shadow, warn, abort, rescue or verdict_only (an abort inside the tail of the budget, recorded
    only). `rule` is the detector that decided ('' when healthy). `as_of` is the last step seen per series, so that a
    replay of the stored points gives the same verdict, byte for byte. `probe_every_steps` is the cadence of extra
    validations that a standing warning asks for; None once it has cleared.
    """

    health: Health
    action: str
    rule: str = ""
    reason: str = ""
    findings: tuple[Finding, ...] = ()
    as_of: Mapping[str, int] = field(default_factory=dict)
    probe_every_steps: int | None = None
