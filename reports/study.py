"""What a report is made from: one frozen view of a study, complete, and without any way back to where it came from.

Units: steps are optimizer steps, times are seconds since the epoch, sizes are MiB. Values may be nan or inf.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any


@dataclass(frozen=True, slots=True)
class Curve:
    """One metric of one run over its attempts: strictly increasing steps; each has a value, a time and an attempt.

    Raises ValueError when the four tuples differ in length or the steps do not increase.
    """

    steps: tuple[int, ...]
    values: tuple[float, ...]
    times: tuple[float, ...]
    attempts: tuple[int, ...]

    def __post_init__(self) -> None:
        lengths = {len(self.steps), len(self.values), len(self.times), len(self.attempts)}
        if len(lengths) != 1:
            raise ValueError(f"a curve needs equally many steps, values, times and attempts, not {sorted(lengths)}")
        if any(late <= early for early, late in pairwise(self.steps)):
            raise ValueError("the steps of a curve must strictly increase")


@dataclass(frozen=True, slots=True)
class Score:
    """One held-out sample under one protocol: a row of scores.csv. `value` is None when `valid` is false."""

    step: int
    weights: str
    sampler: str
    metric: str
    sample_id: str
    eval_seed: int
    value: float | None
    valid: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class AttemptView:
    """One process execution of a run. `host` tells machines apart; slots of one host contend with each other.

    `provider` is where that host is (local: the machine of the launch). `place` is what the runner knows of its slot
    there and `said` what the process itself announced; both may lack anything, and `said` may hold anything.
    """

    number: int
    kind: str
    slot: str
    shares_cores: bool
    started: float | None
    ended: float | None
    cause: str = ""
    exit_code: int | None = None
    max_rss_mib: int | None = None
    resumed_from: int | None = None
    host: str = ""
    provider: str = "local"
    place: Mapping[str, Any] = field(default_factory=dict)
    said: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EventView:
    """A state change, a remark of the runner, or (`announced`) what the trainer said about itself.

    `number` grows with the order in which events were written, whatever the clock did. `lease` is the number of the
    rented machine that it is about.
    """

    time: float
    what: str
    reason: str
    step: int | None = None
    number: int = 0
    announced: bool = False
    lease: int | None = None


@dataclass(frozen=True, slots=True)
class VerdictView:
    """A verdict of the judge with its evidence. `action` is shadow, warn, abort, rescue or verdict_only."""

    rule: str
    action: str
    step: int
    reason: str
    evidence: Mapping[str, Any] = field(default_factory=dict)
    attempt: int = 0

    @property
    def is_stop(self) -> bool:
        """Whether it ended the training, for good or to let another run go on from there."""
        return self.action in ("abort", "rescue")


@dataclass(frozen=True, slots=True)
class OriginView:
    """The checkpoint of another run that a rescued one began with: the run's id, what tables call it (`B-s0`), the step
    of the checkpoint, and the declared changes with which the training went on."""

    run: str
    label: str
    step: int
    changes: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class LaunchView:
    """What the launch of a run was given beside its files: `options` as words of its command line, without those of
    --set. `is_known` is false where nothing but the provider was kept; `hosts` are the names in its list of hosts;
    `declares_seeds` says whether the arm's files name seeds, without which an arm has seed 0 alone."""

    provider: str = "local"
    options: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    is_known: bool = True
    declares_seeds: bool = False


@dataclass(frozen=True, slots=True)
class RunView:
    """One run, that is an arm with a seed.

    `config` is the resolved document flattened to dotted keys with JSON values; `changes` the arm's own list, `sets`
    what the command line of its launch put over it.
    `images` maps (step, variant) to {sample id: absolute path of a PNG}. `metas` maps a step to its meta.json.
    `best` is (step, value) of the primary. `baseline` names the arm that this one is read against. `overridden` are the
    rules whose abort a person has overruled. `steps_total` is 0 when no budget is known. `autopsy` is the content of
    the run's autopsy.json, empty when that file cannot be read, None when there is none. `parent` is where a rescued
    run comes from, None for a run with first weights of its own.
    """

    run: str
    arm: str
    seed: int
    generation: int
    title: str
    hypothesis: str
    baseline: str | None
    kind: str
    changes: tuple[tuple[str, Any], ...]
    config: Mapping[str, Any]
    state: str
    reason: str
    health: str
    step: int
    steps_total: int
    points: int
    rejected_lines: int
    curves: Mapping[str, Curve]
    scores: tuple[Score, ...] = ()
    metas: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    images: Mapping[tuple[int, str], Mapping[str, str]] = field(default_factory=dict)
    verdicts: tuple[VerdictView, ...] = ()
    attempts: tuple[AttemptView, ...] = ()
    events: tuple[EventView, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    best: tuple[int, float] | None = None
    parameters: int | None = None
    flops_per_sample: float | None = None
    code_hash: str = ""
    overridden: tuple[str, ...] = ()
    autopsy: Mapping[str, Any] | None = None
    parent: OriginView | None = None
    sets: tuple[tuple[str, Any], ...] = ()
    launch: LaunchView = LaunchView()


@dataclass(frozen=True, slots=True)
class LintView:
    """One remark of the fairness lint. `severity` is E, W or N; `allowed` is the reason given with --allow."""

    rule: str
    severity: str
    message: str
    allowed: str = ""


@dataclass(frozen=True, slots=True)
class PrimaryView:
    """The study's one ranking metric: full name, min or max, and whether the last or the best value counts."""

    metric: str
    direction: str
    select: str


@dataclass(frozen=True, slots=True)
class NeighbourView:
    """A process outside this study (or of a superseded run) that kept a slot of one of its hosts busy."""

    host: str
    started: float
    ended: float | None


@dataclass(frozen=True, slots=True)
class MachineView:
    """A rented machine: what was ordered, how long it was held, and its cost in USD: foreseen, at most, by our meter,
    and as the provider charged it (None: it has not said)."""

    name: str
    gpus: str
    held_h: float
    usd_per_h: float
    ceiling_usd: float
    metered_usd: float
    charged_usd: float | None


@dataclass(frozen=True, slots=True)
class CostView:
    """What a study cost in USD: its machines, and by run (its folder's name; '' = no run) the slot time that it used
    and its part of the time that nobody did."""

    machines: tuple[MachineView, ...]
    runs: Mapping[str, tuple[float, float]]


@dataclass(frozen=True, slots=True)
class StudyView:
    """A study as it stands: the newest generation of each run, the older ones by name only.

    `neighbours` are other processes on the same hosts; they decide which windows of throughput are comparable.
    `events` are those of the study as a whole. `costs` is None where nothing was rented for it.
    """

    study: str
    primary: PrimaryView | None
    policy: Mapping[str, Any]
    runs: tuple[RunView, ...]
    superseded: tuple[str, ...] = ()
    lint: tuple[LintView, ...] = ()
    neighbours: tuple[NeighbourView, ...] = ()
    events: tuple[EventView, ...] = ()
    costs: CostView | None = None
