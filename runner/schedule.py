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
from runner.actions import Action, MarkRunning, Reap, Retry, Revive, Settle, Spawn, Start, StartTogether, Stop
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
    """Whether two slots may not be used at once: a common GPU, one name, or common cores nobody agreed to share."""
    if one.gpu_uuids and other.gpu_uuids:
        return bool(set(one.gpu_uuids) & set(other.gpu_uuids))  # a number may have passed to another GPU since
    if one.name == other.name:
        return True
    if one.gpu_uuids or other.gpu_uuids or (one.shares_cores and other.shares_cores):
        return False
    return bool(set(one.cores) & set(other.cores))


def side_by_side(shapes: Sequence[Shape], free: Mapping[Shape, Sequence[Slot]]) -> list[Slot | None]:
    """A slot for each shape in turn that may be used at the same time as those before it; None where there is none."""
    found: list[Slot | None] = []
    for shape in shapes:
        used = [slot for slot in found if slot is not None]
        found.append(
            next((one for one in free.get(shape, ()) if not any(conflicts(one, other) for other in used)), None)
        )
    return found


def waits_for_room(runs: Sequence[RunFacts], slots: Mapping[Shape, Sequence[Slot]]) -> dict[str, str]:
    """Why runs cannot start on the host as it is now, by run: those that must start together and do not fit, and those
    of which an earlier attempt, given up for lost, turned out to live."""
    reasons = {
        run.run: f"attempt {run.attempt.number} of it still gives signs of life"
        for run in runs
        if run.attempt is not None and run.state is RunState.QUEUED and _still_lives(run)
    }
    if not any(run.needs_whole_wave for run in runs):
        return reasons
    for group in _groups(runs):
        room = len(_fit(group, slots)) if group[0].needs_whole_wave else len(group)
        if room < len(group) > 1:
            said = f"its wave of {len(group)} needs a slot for each at the same time, and the host has room for {room}"
            reasons.update({run.run: said for run in group})
    return reasons


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
    if attempt.stop_sent:
        return None
    if run.state is RunState.STOPPING:
        if attempt.kind is AttemptKind.EVALUATE and run.stop_wanted:  # a person wants the slot now
            return Stop(run.run, attempt.number, run.stop_wanted, run.stopping_rule)
        return None
    if run.state not in (RunState.STARTING, RunState.RUNNING):
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
    if run.last_step == 0:
        return Settle(run.run, RunState.FINISHED, "exit code 0, and no metric of it was ever read")
    if run.steps_total is not None and run.last_step < run.steps_total:
        return Settle(
            run.run, RunState.FINISHED, f"exit code 0; its last step was {run.last_step} of {run.steps_total}"
        )
    return Settle(run.run, RunState.FINISHED, f"all {run.steps_total or run.last_step} steps done")


def _after_stop(run: RunFacts, attempt: AttemptFacts) -> Action | None:
    """A stop that we asked for has happened; an aborted trainer run is scored in full while its slot is still held."""
    if run.is_trainer and run.stopping_rule not in ("", WRONG_GPU) and run.has_checkpoint:
        if run.stop_wanted:
            return _settle_stopped(run, f" (no final evaluation: {run.stop_wanted})")
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
    free = _beside(slots, list(busy))
    actions: list[Action] = []
    for group in _groups(runs):
        if not any(free.values()):
            break  # nothing can be placed, however long the queue is
        placed = _fit(group, free)
        possible = len(_fit(group, slots))
        largest = len(group) if group[0].needs_whole_wave else possible
        if possible < largest:
            continue  # as it is now the host cannot hold it, so it keeps nothing back from others
        if placed:
            free = _beside(free, list(placed.values()))
        starts = tuple(_start(run, placed[run.run]) for run in group if run.run in placed)
        if len(placed) < largest or not starts:
            continue
        actions.append(StartTogether(starts) if len(starts) > 1 else starts[0])
    return actions


def _groups(runs: Sequence[RunFacts]) -> Iterator[tuple[RunFacts, ...]]:
    """The waiting runs in the order of the queue: those of a wave together, any other alone."""
    waiting = [run for run in runs if run.state is RunState.QUEUED and not (run.stop_wanted or run.budget)]
    waiting = [run for run in waiting if not _still_lives(run)]
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


def _still_lives(run: RunFacts) -> bool:
    """Whether an attempt from before is alive after all: two processes must never share a run."""
    return run.attempt is not None and run.attempt.phase is Phase.LIVE


def _beside(slots: Mapping[Shape, Sequence[Slot]], taken: Sequence[Slot]) -> dict[Shape, tuple[Slot, ...]]:
    """The slots that may be used at the same time as all of those that are taken."""
    return {
        shape: tuple(slot for slot in found if not any(conflicts(slot, one) for one in taken))
        for shape, found in slots.items()
    }


def _fit(group: Sequence[RunFacts], free: Mapping[Shape, Sequence[Slot]]) -> dict[str, Slot]:
    """A slot for every run of a group that finds one beside those of the others."""
    found = side_by_side([run.shape for run in group], free)
    return {run.run: slot for run, slot in zip(group, found, strict=True) if slot is not None}


def _start(run: RunFacts, slot: Slot) -> Start:
    number = 1 if run.attempt is None else run.attempt.number + 1
    return Start(run.run, number, AttemptKind.TRAIN, slot, resume=run.has_checkpoint)
