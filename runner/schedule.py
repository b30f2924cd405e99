"""What to do next, from what is known now. Pure: the same facts give the same actions.

    (runs with their attempts and verdicts, slots) -> actions

The judge only returns verdicts; here a verdict and a person's wishes become starts, stops and settled states, in the
order: settle what ended, stop what must stop, then fill every free slot in (launch, seed, arm) order.
"""

from __future__ import annotations

import signal as signals
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from provisioning.base import Slot
from runner.records import ON_A_SLOT, AttemptKind, RunState

Shape = tuple[int, int, float]
"""What a run asks of a slot: GPUs, CPU cores, GiB of GPU memory."""

WRONG_GPU = "wrong_gpu"
"""The failure of an attempt whose process sees other GPUs than its slot holds."""

FAILURE_CLASSES: Mapping[int, str] = {78: "config", 65: "data", 70: "internal"}
"""Exit codes that our trainer gives a meaning to; a foreign script's codes stand for themselves."""


class Phase(StrEnum):
    """Where one attempt's process is: decided on, alive, ended with an exit record, or vanished without one."""

    INTENDED = "intended"
    LIVE = "live"
    ENDED = "ended"
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class Exit:
    """How a process ended, as its supervisor recorded it."""

    code: int | None
    signal: int | None
    cause: str
    error: str = ""


@dataclass(frozen=True, slots=True)
class AttemptFacts:
    """The latest attempt of a run. `reported` is true once its process was seen alive; `wrong_gpus` says which GPUs it
    reported when they are not those of its slot."""

    number: int
    kind: AttemptKind
    phase: Phase
    slot: Slot
    stop_sent: bool = False
    reported: bool = False
    exit: Exit | None = None
    last_words: str = ""
    wrong_gpus: str = ""


@dataclass(frozen=True, slots=True)
class RunFacts:
    """One run as it stands. `abort` is the (rule, reason) of a verdict that the policy lets stop it."""

    run: str
    order: tuple[int, int, int]
    state: RunState
    is_trainer: bool
    shape: Shape
    steps_total: int | None = None
    last_step: int = 0
    attempt: AttemptFacts | None = None
    abort: tuple[str, str] | None = None
    stop_wanted: str | None = None
    stopping_rule: str = ""
    stopping_reason: str = ""
    has_checkpoint: bool = False


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
class Settle:
    """The run is over, for now."""

    run: str
    state: RunState
    reason: str
    rule: str = ""


Action = Start | Spawn | MarkRunning | Stop | Settle


def schedule(runs: Sequence[RunFacts], slots: Mapping[Shape, Sequence[Slot]]) -> tuple[Action, ...]:
    """Every action that the facts call for. `slots` holds the host cut for each shape that a run asks for."""
    actions: list[Action] = []
    busy: list[Slot] = []
    for run in runs:
        action = _next_for(run)
        if action is not None:
            actions.append(action)
        if _occupies(run, action):
            assert run.attempt is not None
            busy.append(run.attempt.slot)
    actions.extend(_placements(runs, slots, busy))
    return tuple(actions)


def conflicts(one: Slot, other: Slot) -> bool:
    """Whether two slots may not be used at once: one name, a common GPU, or common cores nobody agreed to share."""
    if one.name == other.name or set(one.gpu_uuids) & set(other.gpu_uuids):
        return True
    if one.gpu_uuids or other.gpu_uuids or (one.shares_cores and other.shares_cores):
        return False
    return bool(set(one.cores) & set(other.cores))


def _next_for(run: RunFacts) -> Action | None:
    """The one action for a run that is not waiting for a slot."""
    if run.state is RunState.QUEUED:
        return Settle(run.run, RunState.CANCELLED, run.stop_wanted) if run.stop_wanted else None
    attempt = run.attempt
    if run.state not in ON_A_SLOT or attempt is None:
        return None
    if attempt.phase is Phase.INTENDED:
        return Spawn(run.run, attempt.number)
    if attempt.phase is Phase.GONE:
        return _settle_gone(run, attempt)
    if attempt.phase is Phase.ENDED:
        return _after_end(run, attempt)
    if run.state is RunState.STARTING and attempt.reported:
        return MarkRunning(run.run)
    return _stop_if_due(run, attempt)


def _stop_if_due(run: RunFacts, attempt: AttemptFacts) -> Stop | None:
    if attempt.stop_sent or run.state not in (RunState.STARTING, RunState.RUNNING):
        return None
    if attempt.wrong_gpus:
        return Stop(run.run, attempt.number, attempt.wrong_gpus, WRONG_GPU)
    if run.stop_wanted:
        return Stop(run.run, attempt.number, run.stop_wanted)
    if run.abort is not None:
        rule, reason = run.abort
        return Stop(run.run, attempt.number, reason, rule)
    return None


def _after_end(run: RunFacts, attempt: AttemptFacts) -> Action:
    """An attempt ended with an exit record: judge it by what was asked of it."""
    assert attempt.exit is not None
    if attempt.kind is AttemptKind.EVALUATE:
        return _settle_stopped(run, _evaluation_note(attempt.exit))
    if (attempt.exit.code == 0 and attempt.exit.cause == "exited") or _is_complete(run, attempt.exit):
        return _settle_zero(run)
    if attempt.stop_sent:
        return _after_stop(run, attempt)
    return _settle_failed(run, attempt)


def _is_complete(run: RunFacts, ended: Exit) -> bool:
    return ended.code == 0 and run.steps_total is not None and run.last_step >= run.steps_total


def _settle_zero(run: RunFacts) -> Settle:
    if run.is_trainer and run.steps_total is not None and run.last_step < run.steps_total:
        reason = f"exit code 0 at step {run.last_step} of {run.steps_total}"
        return Settle(run.run, RunState.FAILED, reason, "incomplete")
    return Settle(run.run, RunState.FINISHED, f"all {run.steps_total or run.last_step} steps done")


def _after_stop(run: RunFacts, attempt: AttemptFacts) -> Action:
    """A stop that we asked for has happened; an aborted trainer run is scored in full while its slot is still held."""
    if run.is_trainer and run.stopping_rule not in ("", WRONG_GPU) and run.has_checkpoint:
        return Start(run.run, attempt.number + 1, AttemptKind.EVALUATE, attempt.slot, resume=False)
    return _settle_stopped(run, "")


def _settle_stopped(run: RunFacts, note: str) -> Settle:
    if run.stopping_rule == WRONG_GPU:
        return Settle(run.run, RunState.FAILED, run.stopping_reason, WRONG_GPU)
    if run.stopping_rule:
        return Settle(run.run, RunState.ABORTED, run.stopping_reason + note, run.stopping_rule)
    return Settle(run.run, RunState.CANCELLED, (run.stop_wanted or run.stopping_reason) + note)


def _evaluation_note(ended: Exit) -> str:
    return "" if ended.code == 0 else f" (its final evaluation ended with {describe_exit(ended)})"


def _settle_failed(run: RunFacts, attempt: AttemptFacts) -> Settle:
    assert attempt.exit is not None
    words = f": {attempt.last_words}" if attempt.last_words else ""
    reason = f"{describe_exit(attempt.exit)} at step {run.last_step}{words}"
    return Settle(run.run, RunState.FAILED, reason, _failure_class(run, attempt.exit))


def _failure_class(run: RunFacts, ended: Exit) -> str:
    if ended.cause in ("spawn_failed", "deadline"):
        return ended.cause
    if ended.signal is not None:
        return "killed"
    if run.is_trainer and ended.code is not None and ended.code in FAILURE_CLASSES:
        return FAILURE_CLASSES[ended.code]
    return f"exit {ended.code}"


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


def _settle_gone(run: RunFacts, attempt: AttemptFacts) -> Settle:
    reason = f"attempt {attempt.number} and its supervisor are gone and left no exit record (last step {run.last_step})"
    return Settle(run.run, RunState.LOST, reason, "vanished")


def _occupies(run: RunFacts, action: Action | None) -> bool:
    """Whether the run's slot is taken in this round; a run that settles now gives it back at once."""
    return run.state in ON_A_SLOT and run.attempt is not None and not isinstance(action, Settle)


def _placements(runs: Sequence[RunFacts], slots: Mapping[Shape, Sequence[Slot]], busy: Iterable[Slot]) -> list[Start]:
    taken = list(busy)
    starts: list[Start] = []
    waiting = [run for run in runs if run.state is RunState.QUEUED and not run.stop_wanted]
    for run in sorted(waiting, key=lambda run: run.order):
        free = next(
            (slot for slot in slots.get(run.shape, ()) if not any(conflicts(slot, other) for other in taken)), None
        )
        if free is None:
            continue
        taken.append(free)
        number = 1 if run.attempt is None else run.attempt.number + 1
        starts.append(Start(run.run, number, AttemptKind.TRAIN, free, resume=run.has_checkpoint))
    return starts
