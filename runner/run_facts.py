"""What the schedule is told of each open run: frozen facts, gathered by runner.situation.

Nothing here decides anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from provisioning import RENTED
from provisioning.base import Slot
from runner.failure import Exit, Failure
from runner.records import AttemptKind, Resources, RunState


class Shape(NamedTuple):
    """What a run asks of a slot: GPUs, CPU cores, GiB of GPU memory, whose slots they are, and on which host ('' =
    any)."""

    gpus: int
    cpus: int
    min_vram_gib: float = 0.0
    provider: str = "local"
    host: str = ""


def shape_of(resources: Resources, provider: str, host: str = "") -> Shape:
    """What a run with these resources asks of a slot."""
    gpus = max(1, resources.gpus) if provider in RENTED else resources.gpus  # what is rented is there to be used
    return Shape(gpus, resources.cpus, resources.min_vram_gib, provider, host)


WRONG_GPU = "wrong_gpu"
"""The failure of an attempt whose process sees other GPUs than its slot holds."""

BUDGET = "budget"
"""The rule of a stop, or of a run that was never started, because its hours or its money are used up."""

Order = tuple[int, int, int, int]
"""(minus priority, launch, seed, place of the arm in its launch): the queue."""


class Phase(StrEnum):
    """Where one attempt's process is: decided on, alive, ended with an exit record, or without one: proven gone, or
    silent where its process cannot be seen and no sign of life comes."""

    INTENDED = "intended"
    LIVE = "live"
    ENDED = "ended"
    GONE = "gone"
    SILENT = "silent"


@dataclass(frozen=True, slots=True)
class AttemptFacts:
    """The latest attempt of a run.

    `reported` is true once its process was seen alive; `orphaned`: it lives, its supervisor does not. `wrong_gpus` says
    which GPUs it reported when they are not those of its slot; `failure` is what its end means unless it ended well;
    `release` says of its slot, once it ended, whether that is free, waiting for the proof of it, or quarantined.
    `probe_every_steps` is the cadence of the extra validations that it was asked for so far, None for none.
    """

    number: int
    kind: AttemptKind
    phase: Phase
    slot: Slot
    stop_sent: bool = False
    reported: bool = False
    exit: Exit | None = None
    failure: Failure | None = None
    wrong_gpus: str = ""
    orphaned: bool = False
    release: str = "free"
    probe_every_steps: int | None = None


@dataclass(frozen=True, slots=True)
class RunFacts:
    """One run as it stands.

    `abort` is the (rule, reason) of a verdict that the policy lets stop it; `budget` says which limit is used up.
    `wave` is the barrier that it starts behind, None once it may start alone; `needs_whole_wave`: never with a part of
    it. `reports_again` is true for a lost run whose process gave a sign of life. `probe_every_steps` is the cadence of
    extra validations that its verdict asks for, None for none. `wants_autopsy`: the policy wants one after an abort;
    `autopsy_lacks` says why none can be made now ('' when it can); `evaluation` is the end of its final evaluation once
    an autopsy followed that; `autopsy_attempt` is the number of an autopsy that a person asked for, until it is over.
    `may_rescue`: the policy lets it be started again after the stop that it is in.
    """

    run: str
    order: Order
    state: RunState
    is_trainer: bool
    shape: Shape
    steps_total: int | None = None
    last_step: int = 0
    attempt: AttemptFacts | None = None
    abort: tuple[str, str] | None = None
    stop_wanted: str | None = None
    budget: str | None = None
    wave: int | None = None
    needs_whole_wave: bool = False
    retries_left: int = 0
    reports_again: bool = False
    stopping_rule: str = ""
    stopping_reason: str = ""
    has_checkpoint: bool = False
    probe_every_steps: int | None = None
    wants_autopsy: bool = False
    autopsy_lacks: str = ""
    evaluation: Exit | None = None
    autopsy_attempt: int | None = None
    may_rescue: bool = False
