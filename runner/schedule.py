"""What to do next, from what is known now. Pure: the same facts give the same actions.

    (runs with their attempts and verdicts, slots) -> actions

The judge only returns verdicts; here a verdict and a person's wishes become starts, stops and settled states, in the
order: settle what ended, stop what must stop, then fill every free slot in (priority, launch, seed, arm) order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from provisioning.base import Slot
from runner.failure import Exit, Failure, describe_exit
from runner.records import ON_A_SLOT, AttemptKind, RunState

Shape = tuple[int, int, float]
"""What a run asks of a slot: GPUs, CPU cores, GiB of GPU memory."""

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


@dataclass(frozen=True, slots=True)
class RunFacts:
    """One run as it stands.

    `abort` is the (rule, reason) of a verdict that the policy lets stop it; `budget` says which limit is used up.
    `wave` is the barrier that it starts behind, None once it may start alone; `needs_whole_wave`: never with a part of
    it. `reports_again` is true for a lost run
    whose process gave a sign of life. `left_s` is what its budget leaves for a final evaluation, None without a limit.
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
    """The run is over, for now."""

    run: str
    state: RunState
    reason: str
    rule: str = ""


Action = Start | StartTogether | Spawn | MarkRunning | Stop | Reap | Retry | Revive | Settle


def schedule(
    runs: Sequence[RunFacts], slots: Mapping[Shape, Sequence[Slot]], held: Sequence[Slot] = ()
) -> tuple[Action, ...]:
    """Every action that the facts call for. `slots` holds the host cut for each shape that a run asks for; `held` are
    those whose attempts ended and that are not proven free: they count as busy."""
    actions: list[Action] = []
    busy: list[Slot] = list(held)
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
        return _settle_waiting(run)
    attempt = run.attempt
    if run.state is RunState.LOST and run.reports_again and attempt is not None:
        return Revive(run.run, attempt.number)
    if run.state not in ON_A_SLOT or attempt is None:
        return None
    if attempt.phase is Phase.INTENDED:
        if run.stop_wanted and run.state in (RunState.PLACED, RunState.STAGING):
            return Settle(run.run, RunState.CANCELLED, run.stop_wanted)  # before `starting` nothing was ever spawned
        return Spawn(run.run, attempt.number)
    if attempt.phase in (Phase.GONE, Phase.SILENT):
        return _settle_gone(run, attempt)
    if attempt.phase is Phase.ENDED:
        return _after_end(run, attempt)
    if attempt.orphaned:
        return Reap(run.run, attempt.number)
    if run.state is RunState.STARTING and attempt.reported:
        return MarkRunning(run.run)
    return _stop_if_due(run, attempt)


def _settle_waiting(run: RunFacts) -> Settle | None:
    if run.stop_wanted:
        return Settle(run.run, RunState.CANCELLED, run.stop_wanted)
    if run.budget:
        return Settle(run.run, RunState.CANCELLED, run.budget, BUDGET)
    return None


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
    if run.budget:
        return Stop(run.run, attempt.number, run.budget, BUDGET)
    return None


def _after_end(run: RunFacts, attempt: AttemptFacts) -> Action | None:
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


def _after_stop(run: RunFacts, attempt: AttemptFacts) -> Action | None:
    """A stop that we asked for has happened; an aborted trainer run is scored in full while its slot is still held."""
    if run.is_trainer and run.stopping_rule not in ("", WRONG_GPU) and run.has_checkpoint:
        if attempt.release == "waiting":
            return None
        if attempt.release == "quarantined":
            return _settle_stopped(run, " (no final evaluation: its slot was not given back in time)")
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


def _settle_failed(run: RunFacts, attempt: AttemptFacts) -> Settle | Retry:
    assert attempt.exit is not None
    assert attempt.failure is not None
    failure = attempt.failure
    reason = f"{describe_exit(attempt.exit)} at step {run.last_step}: {failure.says}"
    if failure.is_transient and run.retries_left > 0 and not run.stop_wanted:
        return Retry(run.run, RunState.FAILED, reason, failure.name)
    if failure.is_transient and not run.stop_wanted:
        reason += "; no retries are left"
    return Settle(run.run, RunState.FAILED, reason, failure.name)


def _settle_gone(run: RunFacts, attempt: AttemptFacts) -> Settle | Retry:
    """No exit record. Only what is proven gone is started again: two processes must never share a run."""
    if attempt.phase is Phase.SILENT:
        reason = f"attempt {attempt.number} gives no sign of life and cannot be seen from here"
        return Settle(run.run, RunState.LOST, f"{reason} (last step {run.last_step})", "silent")
    if run.state is RunState.STOPPING and run.stopping_rule:
        return _settle_stopped(run, " (its process vanished before its end was written down)")
    reason = f"attempt {attempt.number} and its supervisor are gone and left no exit record (last step {run.last_step})"
    if run.stop_wanted or run.retries_left <= 0:
        return Settle(run.run, RunState.LOST, reason, "vanished")
    return Retry(run.run, RunState.LOST, reason, "vanished")


def _occupies(run: RunFacts, action: Action | None) -> bool:
    """Whether the run's slot is taken in this round; a run that settles now gives it back at once."""
    if run.attempt is None or isinstance(action, Settle | Retry):
        return False
    return run.state in ON_A_SLOT or isinstance(action, Revive)


def _placements(runs: Sequence[RunFacts], slots: Mapping[Shape, Sequence[Slot]], busy: Iterable[Slot]) -> list[Action]:
    """Fill the slots in the order of the queue.

    A wave starts when all of it has a slot, and until then keeps what is free for itself: a wave that anybody could
    overtake would wait for ever. One that is larger than the host (a slot was lost since) starts as far as it fits,
    unless the study requires all of it to run side by side: that one waits for the slot to come back.
    """
    taken = list(busy)
    actions: list[Action] = []
    for group in _groups(runs):
        placed = _fit(group, slots, taken)
        possible = len(_fit(group, slots, ()))
        largest = len(group) if group[0].needs_whole_wave else possible
        if possible < largest:
            continue  # as it is now the host cannot hold it, so it keeps nothing back from others
        taken += placed.values()
        starts = tuple(_start(run, placed[run.run]) for run in group if run.run in placed)
        if len(placed) < largest or not starts:
            continue
        actions.append(StartTogether(starts) if len(starts) > 1 else starts[0])
    return actions


def _groups(runs: Sequence[RunFacts]) -> Iterator[tuple[RunFacts, ...]]:
    """The waiting runs in the order of the queue: those of a wave together, any other alone."""
    waiting = [run for run in runs if run.state is RunState.QUEUED and not run.stop_wanted and not run.budget]
    waiting.sort(key=lambda run: run.order)
    waves: dict[tuple[int, int, int | None], list[RunFacts]] = {}
    for run in waiting:
        if run.wave is not None:
            waves.setdefault((run.order[0], run.order[1], run.wave), []).append(run)
    for run in waiting:
        if run.wave is None:
            yield (run,)
            continue
        wave = waves[run.order[0], run.order[1], run.wave]
        if wave[0] is run:
            yield tuple(wave)


def _fit(group: Sequence[RunFacts], slots: Mapping[Shape, Sequence[Slot]], taken: Iterable[Slot]) -> dict[str, Slot]:
    """A slot for every run of a group that finds one beside what is taken."""
    used = list(taken)
    found: dict[str, Slot] = {}
    for run in group:
        free = next((slot for slot in slots.get(run.shape, ()) if not any(conflicts(slot, one) for one in used)), None)
        if free is not None:
            used.append(free)
            found[run.run] = free
    return found


def _start(run: RunFacts, slot: Slot) -> Start:
    number = 1 if run.attempt is None else run.attempt.number + 1
    return Start(run.run, number, AttemptKind.TRAIN, slot, resume=run.has_checkpoint)
