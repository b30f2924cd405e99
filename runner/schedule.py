"""What to do next, from what is known now. Pure: the same facts give the same actions.

    (runs with their attempts and verdicts, slots) -> actions

The judge only returns verdicts; here a verdict and a person's wishes become starts, stops and settled states, in the
order: settle what ended, stop what must stop, then fill every free slot in (priority, launch, seed, arm) order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from provisioning.base import Slot
from runner.actions import (
    Action,
    EndAutopsy,
    MarkRunning,
    Probe,
    Reap,
    Retry,
    Revive,
    Settle,
    Spawn,
    Start,
    StartTogether,
    Stop,
)
from runner.ending import after_asked_autopsy, after_end, settle_gone
from runner.records import ON_A_SLOT, AttemptKind, RunState
from runner.run_facts import BUDGET, WRONG_GPU, AttemptFacts, Order, Phase, RunFacts, Shape, shape_of

__all__ = [
    "BUDGET", "WRONG_GPU", "AttemptFacts", "Order", "Phase", "RunFacts", "Shape", "conflicts", "most_side_by_side",
    "schedule", "shape_of", "side_by_side", "waits_for_autopsy", "waits_for_room",
]  # fmt: skip


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
    """Whether two slots may not be used at once: a common GPU, one name, or common cores nobody agreed to share.

    Slots of different hosts have nothing in common.
    """
    if one.host != other.host:
        return False
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


def most_side_by_side(shapes: Sequence[Shape], free: Mapping[Shape, Sequence[Slot]]) -> int:
    """How many of these the host that holds the most of them can hold at the same time."""
    return max(
        (sum(slot is not None for slot in side_by_side(shapes, _on(host, free))) for host in _hosts(free)), default=0
    )


def waits_for_room(runs: Sequence[RunFacts], slots: Mapping[Shape, Sequence[Slot]]) -> dict[str, str]:
    """Why runs cannot start on the host as it is now, by run: those that must start together and do not fit, and those
    of which an earlier attempt, given up for lost, turned out to live."""
    reasons = {
        run.run: f"attempt {run.attempt.number} of it still gives signs of life"
        if run.autopsy_attempt is None
        else "its autopsy comes first"
        for run in runs
        if run.attempt is not None
        and run.state is RunState.QUEUED
        and (run.autopsy_attempt is not None or _still_lives(run))
    }
    if not any(run.needs_whole_wave for run in runs):
        return reasons
    for group in _groups(runs):
        room = len(_fit(group, slots)) if group[0].needs_whole_wave else len(group)
        if room < len(group) > 1:
            said = f"its wave of {len(group)} needs a slot for each at the same time, and the host has room for {room}"
            reasons.update({run.run: said for run in group})
    return reasons


def waits_for_autopsy(run: RunFacts) -> bool:
    """Whether an autopsy that a person asked for has no attempt yet."""
    return run.autopsy_attempt is not None and (run.attempt is None or run.attempt.number < run.autopsy_attempt)


def _next_for(run: RunFacts) -> Action | None:
    """The one action for a run that is not waiting for a slot."""
    if run.autopsy_attempt is not None:
        return _next_for_autopsy(run, run.autopsy_attempt)
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
        return settle_gone(run, attempt)
    if attempt.phase is Phase.ENDED:
        return after_end(run, attempt)
    if attempt.orphaned:
        return Reap(run.run, attempt.number)
    if run.state is RunState.STARTING and attempt.reported:
        return MarkRunning(run.run)
    return _stop_if_due(run, attempt) or _probe_if_due(run, attempt)


def _next_for_autopsy(run: RunFacts, number: int) -> Action | None:
    """An autopsy that a person asked for: the run keeps its state, and whatever else is wanted of it comes after."""
    attempt = run.attempt
    if attempt is None or attempt.number < number:
        why_not = run.stop_wanted or run.autopsy_lacks
        return EndAutopsy(run.run, number, f"it was not begun: {why_not}", ok=False) if why_not else None
    if attempt.phase is Phase.INTENDED:
        return Spawn(run.run, number)
    if attempt.phase is not Phase.LIVE:
        return after_asked_autopsy(run.run, attempt)
    if attempt.orphaned:
        return Reap(run.run, number)
    if run.stop_wanted and not attempt.stop_sent:
        return Stop(run.run, number, run.stop_wanted)
    return None


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
        if attempt.kind is not AttemptKind.TRAIN and run.stop_wanted:  # a person wants the slot now
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


def _probe_if_due(run: RunFacts, attempt: AttemptFacts) -> Probe | None:
    """Only our own trainer knows how to validate in between, and only while it trains."""
    is_training = run.state is RunState.RUNNING and attempt.kind is AttemptKind.TRAIN and not attempt.stop_sent
    if not (run.is_trainer and is_training) or run.probe_every_steps == attempt.probe_every_steps:
        return None
    return Probe(run.run, attempt.number, run.probe_every_steps)


def _occupies(run: RunFacts, action: Action | None) -> bool:
    """Whether the run's slot is taken in this round; a run that settles now gives it back at once."""
    if run.attempt is None or isinstance(action, Settle | Retry | EndAutopsy):
        return False
    if run.autopsy_attempt is not None:
        return not waits_for_autopsy(run)
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
        whole = _fit(group, slots)
        possible = len(whole)
        # A host that could hold all of them is waited for; where there is none, any room will do.
        on_one = possible == len(group) and len({slot.host for slot in whole.values()}) == 1
        placed = _fit(group, free, on_one=on_one)
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
    waiting = [run for run in runs if _wants_a_slot(run) and not _still_lives(run)]
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


def _wants_a_slot(run: RunFacts) -> bool:
    """Whether a run waits for a slot; one with an autopsy to come waits for that first."""
    if run.autopsy_attempt is not None:
        return waits_for_autopsy(run) and not (run.stop_wanted or run.autopsy_lacks)
    return run.state is RunState.QUEUED and not (run.stop_wanted or run.budget)


def _still_lives(run: RunFacts) -> bool:
    """Whether an attempt from before is alive after all: two processes must never share a run."""
    return run.attempt is not None and run.attempt.phase is Phase.LIVE


def _beside(slots: Mapping[Shape, Sequence[Slot]], taken: Sequence[Slot]) -> dict[Shape, tuple[Slot, ...]]:
    """The slots that may be used at the same time as all of those that are taken."""
    return {
        shape: tuple(slot for slot in found if not any(conflicts(slot, one) for one in taken))
        for shape, found in slots.items()
    }


def _fit(group: Sequence[RunFacts], free: Mapping[Shape, Sequence[Slot]], *, on_one: bool = False) -> dict[str, Slot]:
    """A slot for every run of a group that finds one beside those of the others.

    All of a group go to the first host that can hold them. Where none can, those that must be `on_one` host, or must
    start together, go to the one that holds the most, others wherever there is room.
    """
    shapes = [run.shape for run in group]
    found = side_by_side(shapes, free)
    hosts = _hosts(free)
    if len(group) > 1 and len(hosts) > 1:
        alone = [side_by_side(shapes, _on(host, free)) for host in hosts]
        fullest = max(alone, key=lambda slots: sum(slot is not None for slot in slots))
        if None not in fullest or on_one or group[0].needs_whole_wave:
            found = fullest
    return {run.run: slot for run, slot in zip(group, found, strict=True) if slot is not None}


def _hosts(free: Mapping[Shape, Sequence[Slot]]) -> list[str]:
    return list(dict.fromkeys(slot.host for slots in free.values() for slot in slots))


def _on(host: str, free: Mapping[Shape, Sequence[Slot]]) -> dict[Shape, tuple[Slot, ...]]:
    return {shape: tuple(slot for slot in slots if slot.host == host) for shape, slots in free.items()}


def _start(run: RunFacts, slot: Slot) -> Start:
    if run.autopsy_attempt is not None:
        return Start(run.run, run.autopsy_attempt, AttemptKind.AUTOPSY, slot, resume=False)
    number = 1 if run.attempt is None else run.attempt.number + 1
    return Start(run.run, number, AttemptKind.TRAIN, slot, resume=run.has_checkpoint)
