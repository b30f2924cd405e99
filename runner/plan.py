"""What a launch will do: arms x seeds and the runs that exist already become a list of runs. Pure.

A run that exists is never started twice: a queued or live one is watched, a finished or aborted one stays as it is, one
that failed, was lost, preempted or cancelled gets a new attempt. A changed arm under an old name, or `fresh`, is a new
generation, and the older one is superseded.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from provisioning.base import Slot
from runner.errors import SpecError
from runner.records import ENDED, RunState
from runner.schedule import Shape, most_side_by_side, shape_of
from runner.spec.identity import identity, run_id
from runner.spec.models import ResolvedArm


class Intent(StrEnum):
    """What a launch does about one run."""

    START = "start"
    RESTART = "restart"
    WATCH = "watch"
    NOTHING = "nothing"


@dataclass(frozen=True, slots=True)
class KnownRun:
    """A run that the home has already, superseded or not. `id` is its 8 hex digits."""

    study: str
    arm: str
    seed: int
    id: str
    identity: str
    generation: int
    state: RunState


@dataclass(frozen=True, slots=True)
class Capacity:
    """How many runs the hosts of a provider can hold at once, by the kind of slot they ask for; `cut` has the slots
    themselves."""

    cpu_slots: int
    gpu_slots: int = 0
    cut: Mapping[Shape, Sequence[Slot]] = field(default_factory=dict)
    provider: str = "local"

    @property
    def hosts(self) -> int:
        """How many hosts have a slot."""
        return len({slot.host for slots in self.cut.values() for slot in slots})


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """One run of the launch. `supersedes` is the id of the generation that it replaces; `sentence` is for a person.

    `wave` counts from 0 over the runs that will use a slot; None for a run that will not. `arm_order` is the place of
    the arm in the launch.
    """

    study: str
    arm: str
    seed: int
    id: str
    identity: str
    generation: int
    intent: Intent
    sentence: str
    steps: int
    arm_order: int
    supersedes: str | None = None
    wave: int | None = None

    @property
    def name(self) -> str:
        """study/arm-s0."""
        return f"{self.study}/{self.arm}-s{self.seed}"

    @property
    def folder(self) -> str:
        """The run's folder below the home."""
        return f"{self.name}-{self.id}"


@dataclass(frozen=True, slots=True)
class Plan:
    """All runs of a launch in (seed, arm) order.

    `waves` holds the folders of the runs that are meant to run side by side. `disk_mib` is what the checkpoints of the
    runs will take; `disk_unknown` names the arms whose checkpoints it does not know. `hours` is None when a speed is
    not known.
    """

    runs: tuple[PlannedRun, ...]
    waves: tuple[tuple[str, ...], ...]
    disk_mib: float
    disk_unknown: tuple[str, ...]
    hours: float | None

    @property
    def to_run(self) -> tuple[PlannedRun, ...]:
        """The runs that will use a slot: new ones and new attempts."""
        return tuple(run for run in self.runs if run.intent in (Intent.START, Intent.RESTART))


def make_plan(
    arms: Sequence[ResolvedArm],
    code_hashes: Mapping[str, str],
    known: Sequence[KnownRun] = (),
    *,
    capacity: Capacity,
    fresh: bool = False,
    seconds_per_step: Mapping[str, float] | None = None,
) -> Plan:
    """The plan of launching `arms`.

    `code_hashes` and `seconds_per_step` are by study/arm. Raises SpecError when an arm asks for a kind of slot that the
    host does not have.
    """
    _require_slots(arms, capacity)
    _require_whole_waves(arms, capacity)
    pairs = [(seed, order, arm) for order, arm in enumerate(arms) for seed in arm.seeds]
    runs = []
    for seed, order, arm in sorted(pairs, key=lambda pair: pair[:2]):
        history = [run for run in known if (run.study, run.arm, run.seed) == (arm.study, arm.arm, seed)]
        runs.append(_planned(arm, order, seed, identity(arm, seed, code_hashes[arm.name]), history, fresh))
    arms_by_name = {arm.name: arm for arm in arms}
    waves = _waves(runs, arms_by_name, capacity)
    by_folder = {folder: number for number, wave in enumerate(waves) for folder in wave}
    numbered = tuple(replace(run, wave=by_folder.get(run.folder)) for run in runs)
    active = [run for run in numbered if run.wave is not None]
    return Plan(
        runs=numbered,
        waves=waves,
        disk_mib=sum(_checkpoints_mib(arms_by_name[f"{run.study}/{run.arm}"]) or 0.0 for run in active),
        disk_unknown=tuple(arm.name for arm in arms if _checkpoints_mib(arm) is None),
        hours=_hours(active, arms_by_name, capacity, seconds_per_step or {}),
    )


def checkpoints_kept(arm: ResolvedArm) -> int:
    """How many checkpoints of a run lie on the disk at the worst moment: those kept and the one being written."""
    keep = ((arm.trainer or {}).get("checkpoint") or {}).get("keep") or {}
    return int(keep.get("last", 2)) + (keep.get("best") is not None) + len(keep.get("milestones") or ()) + 1


def _require_slots(arms: Sequence[ResolvedArm], capacity: Capacity) -> None:
    for arm in arms:
        if arm.resources.gpus and not capacity.gpu_slots:
            problem = f"asks for {arm.resources.gpus} GPU(s), and {_has_no(capacity)} slot for that"
            raise SpecError(
                arm.where("resources.gpus"),
                problem,
                allowed="resources.gpus: 0 for a CPU slot, or a host with enough free GPUs",
                next_command=f"runner check {shlex.quote(arm.file)}",
            )
        if not arm.resources.gpus and not capacity.cpu_slots:
            less = "this host has fewer" if capacity.provider == "local" else f"{_has_no(capacity)} slot for that"
            problem = f"asks for {arm.resources.cpus} CPU core(s), and {less}"
            raise SpecError(
                arm.where("resources.cpus"),
                problem,
                allowed="fewer cores",
                next_command=f"runner check {shlex.quote(arm.file)}",
            )


def _require_whole_waves(arms: Sequence[ResolvedArm], capacity: Capacity) -> None:
    """colocate: require promises that all arms of a seed run at the same time on one host."""
    for arm in arms:
        if arm.resources.colocate != "require":
            continue
        for seed in arm.seeds:
            together = [
                one for one in arms if seed in one.seeds and bool(one.resources.gpus) == bool(arm.resources.gpus)
            ]
            room = _room(together, capacity)
            if room < len(together):
                raise SpecError(
                    arm.where("resources.colocate"),
                    f"require: {len(together)} arms share seed {seed}; {_room_text(capacity, room)} of them at once",
                    allowed="prefer, off, fewer or smaller arms, or a host with more slots",
                    next_command=f"runner check {shlex.quote(arm.file)}",
                )


def _room_text(capacity: Capacity, room: int) -> str:
    if capacity.provider == "local":
        return f"this host has room for {room}"
    return f"no {capacity.provider} host has room for more than {room}"


def _has_no(capacity: Capacity) -> str:
    if capacity.provider == "local":
        return "this host has no"
    return f"the {capacity.provider} host has no" if capacity.hosts == 1 else f"no {capacity.provider} host has a"


def _room(arms: Sequence[ResolvedArm], capacity: Capacity) -> int:
    """How many of these arms, which ask for one kind of slot, one host can run side by side."""
    shapes = [shape_of(arm.resources, capacity.provider) for arm in arms]
    if set(shapes) <= capacity.cut.keys():
        return most_side_by_side(shapes, capacity.cut)
    return min(len(arms), capacity.gpu_slots if arms[0].resources.gpus else capacity.cpu_slots)


def _planned(
    arm: ResolvedArm, order: int, seed: int, same: str, history: Sequence[KnownRun], fresh: bool
) -> PlannedRun:
    newest = max(history, key=lambda run: run.generation, default=None)
    if newest is not None and newest.identity == same and not fresh:
        intent, sentence = _about_existing(newest, is_trainer=arm.command is None)
        generation, supersedes = newest.generation, None
        run = newest.id
    else:
        intent = Intent.START
        generation = 1 if newest is None else newest.generation + 1
        run = run_id(same, generation)
        supersedes = None if newest is None else newest.id
        sentence = "starts"
        if newest is not None:
            alive = "" if newest.state in ENDED else ", which is stopped with a checkpoint"
            sentence = f"starts as generation {generation} and supersedes {newest.id}{alive}"
    return PlannedRun(
        study=arm.study,
        arm=arm.arm,
        seed=seed,
        id=run,
        identity=same,
        generation=generation,
        intent=intent,
        sentence=sentence,
        steps=arm.steps,
        arm_order=order,
        supersedes=supersedes,
    )


def _about_existing(run: KnownRun, *, is_trainer: bool) -> tuple[Intent, str]:
    if run.state not in ENDED:
        return Intent.WATCH, f"is {run.state} already, so it is watched"
    if run.state in (RunState.FINISHED, RunState.ABORTED):
        again = "`--fresh` runs it again"
        if run.state is RunState.ABORTED:
            again += f", `runner resume {run.id}` overrides the abort"
        return Intent.NOTHING, f"is {run.state} already, so nothing is done ({again})"
    how = "continues from its last complete checkpoint, if there is one" if is_trainer else "starts the command again"
    return Intent.RESTART, f"is {run.state}, so a new attempt {how}"


def _waves(
    runs: Sequence[PlannedRun], arms: Mapping[str, ResolvedArm], capacity: Capacity
) -> tuple[tuple[str, ...], ...]:
    """The runs of one seed and one kind of slot, cut to the number of slots."""
    groups: dict[tuple[int, bool], list[str]] = {}
    for run in runs:
        if run.intent in (Intent.START, Intent.RESTART):
            on_gpu = arms[f"{run.study}/{run.arm}"].resources.gpus > 0
            groups.setdefault((run.seed, on_gpu), []).append(run.folder)
    waves: list[tuple[str, ...]] = []
    for (_, on_gpu), folders in groups.items():
        size = capacity.gpu_slots if on_gpu else capacity.cpu_slots
        waves.extend(tuple(folders[start : start + size]) for start in range(0, len(folders), size))
    return tuple(waves)


def _checkpoints_mib(arm: ResolvedArm) -> float | None:
    if arm.check is None or arm.check.checkpoint_mib is None:
        return None
    return arm.check.checkpoint_mib * checkpoints_kept(arm)


def _hours(
    runs: Sequence[PlannedRun],
    arms: Mapping[str, ResolvedArm],
    capacity: Capacity,
    seconds_per_step: Mapping[str, float],
) -> float | None:
    """Hours until the last run ends when every freed slot takes the next run in the order of the plan."""
    free_at = {True: [0.0] * capacity.gpu_slots, False: [0.0] * capacity.cpu_slots}
    for run in runs:
        name = f"{run.study}/{run.arm}"
        if name not in seconds_per_step:
            return None
        slots = free_at[arms[name].resources.gpus > 0]
        slots.sort()
        slots[0] += run.steps * seconds_per_step[name]
    return max((end for slots in free_at.values() for end in slots), default=0.0) / 3600.0
