"""Is an attempt alive, and does it get on? Pure: what one round saw and what is remembered make what is suspected now.

    observe(watch, signs) -> (watch, concerns)

Every duration is observed time. The time between two rounds counts at most `round_gap_s`, so that a controller that was
stopped, or a computer that slept, accuses nobody when it wakes up. Wall time plays no part.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from statistics import median
from typing import Any

from runner.records import AttemptKind, Health, Severity

SILENT = "silent"
HUNG = "hung"
NEVER_STARTED = "never_started"
THROUGHPUT_COLLAPSE = "throughput_collapse"
UNACKNOWLEDGED_CONTROL = "unacknowledged_control"

HEALTH: Mapping[str, Health] = {
    SILENT: Health.UNKNOWN,
    HUNG: Health.HUNG,
    NEVER_STARTED: Health.WARNED,
    THROUGHPUT_COLLAPSE: Health.WARNED,
    UNACKNOWLEDGED_CONTROL: Health.WARNED,
}

NEW_WORK = frozenset({"resumed", "resolution", "routing_off", "repa_off"})
"""Announcements after which a step may take another time than before."""

_PAUSES = NEW_WORK | {"started", "checkpoint"}  # no steps, and no records, for a while after these announcements
_GRAVITY = (Health.OK, Health.WARNED, Health.STALLED, Health.UNKNOWN, Health.HUNG, Health.DIVERGED)
_RATES_KEPT = 240
_GAPS_THAT_TELL = 5  # so many gaps between records show how far apart they are; before, only the wait for the first


@dataclass(frozen=True, slots=True)
class Limits:
    """When patience ends. All `_s` are seconds of observed time, all `_share` shares of the run's usual step rate.

    `hang_s` holds for a run that should be making steps or has shown what its pauses are like, `patient_s` for the
    first step, for pauses before that and for the work after the last step, `evaluation_s` for attempts that only
    evaluate. Three (`hang_gaps`) times the longest gap between two records is never a hang. `stop_factor` times the
    limit of a hang, or of the wait for the first step, is a reason to stop the attempt, and so is `dead_s` below
    `dead_share`: between the two, whoever shares the machine may go away again.
    """

    round_gap_s: float = 10.0
    silent_s: float = 120.0
    hang_s: float = 300.0
    hang_gaps: float = 3.0
    patient_s: float = 1800.0
    evaluation_s: float = 7200.0
    acknowledge_s: float = 30.0
    acknowledge_steps: int = 3
    window_s: float = 30.0
    windows_needed: int = 8
    collapse_share: float = 0.4
    recovered_share: float = 0.6
    collapse_s: float = 120.0
    collapse_windows: int = 3
    stop_factor: float = 2.0
    dead_share: float = 0.15
    dead_s: float = 1800.0


@dataclass(frozen=True, slots=True)
class Signs:
    """What one round sees of one live attempt.

    `monotonic_s` is the controller's clock that never runs backwards. `heartbeat` is anything that changes with each
    beat of the supervisor (None: no beat yet). `is_visible`: supervisor or training process is seen to run.
    `records` counts what the attempt wrote and we understood, announcements included, `validations` those with a
    validation metric, `work` the announcements in NEW_WORK; each may begin at any number, for only changes matter.
    `step` is the newest step; `has_stepped`: this attempt made one. `announced` is the name of its newest record when
    that is an announcement. `control_seq` is the number in the control.json that we wrote for it, `acknowledged_seq`
    the newest one that it confirmed.
    """

    monotonic_s: float
    heartbeat: Hashable = None
    is_visible: bool = True
    records: int = 0
    step: int = 0
    has_stepped: bool = False
    announced: str = ""
    validations: int = 0
    work: int = 0
    control_seq: int | None = None
    acknowledged_seq: int | None = None


@dataclass(frozen=True, slots=True)
class Concern:
    """Something that is wrong now. `summary` is a sentence for a person, `evidence` plain JSON values with units;
    `severity` is abort once it has lasted so long that a policy may stop the attempt for it, else warn."""

    name: str
    summary: str
    evidence: Mapping[str, Any] = field(default_factory=dict)
    severity: Severity = Severity.WARN

    @property
    def health(self) -> Health:
        """The health of a run with this concern, if nothing graver is known."""
        return HEALTH[self.name]


@dataclass(frozen=True, slots=True)
class Pace:
    """The step rate in windows that begin and end with a record; `rates` are those of windows that were not slow.
    `slow_s` is how long it has been slow, `dead_s` how long next to nothing was done."""

    since_step: int | None = None
    since_s: float = 0.0
    work: int = 0
    rates: tuple[float, ...] = ()
    newest: float = 0.0
    slow_windows: int = 0
    slow_s: float = 0.0
    dead_s: float = 0.0

    @property
    def usual(self) -> float:
        """Steps per second, the median of the windows that were not slow; 0 while there are none."""
        return median(self.rates) if self.rates else 0.0


@dataclass(frozen=True, slots=True)
class Watch:
    """What is remembered of one attempt between rounds; nothing of it must outlive the controller.

    After a restart begin anew, with `standing` (HUNG,) when the run's stored health is hung, `dump_seq` as in the
    dump.json that is there, and `longest_gap_s` from `gap_to_expect`. `dump_seq` is the number that dump.json should
    hold (0: none is wanted). `standing` names the concerns of the last round, `grave` those with severity abort.
    """

    kind: AttemptKind
    is_trainer: bool
    steps_total: int | None = None
    limits: Limits = field(default_factory=Limits)
    dump_seq: int = 0
    standing: tuple[str, ...] = ()
    grave: tuple[str, ...] = ()
    longest_gap_s: float = 0.0
    has_dump: bool = False
    has_validated: bool = False
    is_adopted: bool = False
    seen: Signs | None = None
    unbeaten_s: float = 0.0
    quiet_s: float = 0.0
    waited_s: float = 0.0
    first_step_s: float | None = None
    gaps: int = 0
    unacknowledged_s: float = 0.0
    pace: Pace = Pace()


def observe(watch: Watch, signs: Signs) -> tuple[Watch, tuple[Concern, ...]]:
    """Take in one round; returns the new memory and everything that is suspected now.

    A concern that was in `watch.standing` and is not returned any more is over. While an attempt is silent, nothing
    else is said of it.
    """
    watch = _remember(watch, signs)
    silent = _silent(watch, signs)
    others = (_hung(watch, signs), _never_started(watch, signs), _collapse(watch), _unacknowledged(watch, signs))
    concerns = tuple(concern for concern in ((silent,) if silent else others) if concern is not None)
    standing = tuple(concern.name for concern in concerns)
    grave = tuple(concern.name for concern in concerns if concern.severity is Severity.ABORT)
    if HUNG in standing and not watch.has_dump:
        watch = replace(watch, dump_seq=watch.dump_seq + 1, has_dump=True)
    if (standing, grave) != (watch.standing, watch.grave):
        watch = replace(watch, standing=standing, grave=grave)
    return watch, concerns


def health(judged: Health, concerns: tuple[Concern, ...]) -> Health:
    """The gravest of what the judge thinks of a run and of what is suspected of its attempt."""
    return max([judged, *(concern.health for concern in concerns)], key=_GRAVITY.index)


def gap_to_expect(times_s: Iterable[float]) -> float:
    """The longest pause that the times of stored points show, for a controller that takes an attempt over.

    It is the second longest difference: these are times of the host's wall clock, and one jump of it looks like a gap.
    """
    times = sorted(set(times_s))
    gaps = sorted(after - before for before, after in pairwise(times))
    return gaps[-2] if len(gaps) > 1 else 0.0


def _remember(watch: Watch, signs: Signs) -> Watch:
    """Let the time since the last round pass, and note what changed in it."""
    before = watch.seen
    if before is None:
        has_dump = HUNG in watch.standing  # a controller before us asked for it
        gaps = _GAPS_THAT_TELL if watch.longest_gap_s > 0.0 else 0
        is_adopted = signs.has_stepped
        return replace(
            watch, seen=signs, has_dump=has_dump, gaps=gaps, is_adopted=is_adopted, pace=Pace(work=signs.work)
        )
    unclipped_s = max(0.0, signs.monotonic_s - before.monotonic_s)
    passed_s = min(unclipped_s, watch.limits.round_gap_s)
    is_news = signs.records != before.records
    gives_signs = is_news or signs.heartbeat != before.heartbeat
    unbeaten_s = 0.0 if gives_signs else watch.unbeaten_s + passed_s
    if not signs.is_visible and unbeaten_s >= watch.limits.silent_s:
        # Where nothing can be seen, no time counts against the training.
        return replace(watch, seen=signs, unbeaten_s=unbeaten_s)
    watch = replace(
        watch,
        seen=signs,
        unbeaten_s=unbeaten_s,
        has_validated=watch.has_validated or (before.has_stepped and signs.validations != before.validations),
        unacknowledged_s=_unacknowledged_s(watch, before, signs, passed_s),
        pace=_paced(watch, before, signs, passed_s, was_away=unclipped_s > passed_s),
        quiet_s=watch.quiet_s + passed_s,
        waited_s=watch.waited_s + (passed_s if watch.first_step_s is None else 0.0),
    )
    return _end_of_quiet(watch, signs) if is_news else watch


def _end_of_quiet(watch: Watch, signs: Signs) -> Watch:
    """Something new came: no hang, and a gap to learn from, or the end of the wait for the first step."""
    if watch.first_step_s is not None:
        watch = replace(watch, gaps=watch.gaps + 1, longest_gap_s=max(watch.longest_gap_s, watch.quiet_s))
    elif signs.has_stepped:
        watch = replace(watch, first_step_s=watch.waited_s)
    standing = tuple(name for name in watch.standing if name != HUNG)
    return replace(watch, quiet_s=0.0, has_dump=False, standing=standing)


# ---- silent ----------------------------------------------------------------------------------------------------------


def _silent(watch: Watch, signs: Signs) -> Concern | None:
    if signs.is_visible or watch.unbeaten_s < watch.limits.silent_s:
        return None
    summary = f"no heartbeat of its supervisor for {watch.unbeaten_s:.0f} s, and no process of it can be seen"
    return Concern(SILENT, summary, _rounded(unbeaten_s=watch.unbeaten_s, limit_s=watch.limits.silent_s))


# ---- hung ------------------------------------------------------------------------------------------------------------


def _hung(watch: Watch, signs: Signs) -> Concern | None:
    """Nothing new for longer than its pauses explain. Only something new ends it."""
    is_training = watch.kind == AttemptKind.TRAIN
    if is_training and not signs.has_stepped and HUNG not in watch.standing:
        return None
    limit_s = _hang_limit_s(watch, signs)
    if watch.quiet_s < limit_s and HUNG not in watch.standing:
        return None
    summary = f"its process runs, but nothing new came for {watch.quiet_s:.0f} s after step {signs.step}"
    return Concern(
        HUNG,
        summary,
        {
            "step": signs.step,
            **_rounded(quiet_s=watch.quiet_s, limit_s=limit_s, longest_gap_s=watch.longest_gap_s),
        },
        _severity(watch.quiet_s >= watch.limits.stop_factor * limit_s),
    )


def _hang_limit_s(watch: Watch, signs: Signs) -> float:
    """How long a run may say nothing: a floor, or a multiple of the longest pause that it made so far."""
    limits, total = watch.limits, watch.steps_total
    if watch.kind != AttemptKind.TRAIN:
        return max(limits.evaluation_s, limits.hang_gaps * watch.longest_gap_s)
    knows_gaps = watch.gaps >= _GAPS_THAT_TELL
    is_done = total is not None and signs.step >= total
    # One half of its steps without a validation: it has none, or only one at its end.
    knows_pauses = watch.has_validated or (knows_gaps and total is not None and 2 * signs.step >= total)
    may_pause = not watch.is_trainer or signs.announced in _PAUSES
    is_new_to_us = watch.is_adopted and (watch.first_step_s is None or not knows_gaps)
    is_patient = is_done or is_new_to_us or (may_pause and not knows_pauses)
    floor_s = limits.patient_s if is_patient else limits.hang_s
    first_s = 0.0 if knows_gaps else watch.first_step_s or 0.0
    return max(floor_s, limits.hang_gaps * max(watch.longest_gap_s, first_s))


def _never_started(watch: Watch, signs: Signs) -> Concern | None:
    is_expected = watch.kind == AttemptKind.TRAIN and HUNG not in watch.standing
    if not is_expected or signs.has_stepped or watch.waited_s < watch.limits.patient_s:
        return None
    return Concern(
        NEVER_STARTED,
        f"no training step within {watch.waited_s:.0f} s of its start",
        _rounded(waited_s=watch.waited_s, limit_s=watch.limits.patient_s),
        _severity(watch.waited_s >= watch.limits.stop_factor * watch.limits.patient_s),
    )


# ---- throughput ------------------------------------------------------------------------------------------------------


def _paced(watch: Watch, before: Signs, signs: Signs, passed_s: float, was_away: bool) -> Pace:
    """The pace with this round in it. Work of another kind, or steps made while nobody looked, begin a new window."""
    pace = watch.pace
    if signs.work != pace.work or signs.step < before.step:
        return Pace(work=signs.work)
    if was_away:
        return replace(pace, since_step=None, since_s=0.0)
    pace = replace(pace, since_s=pace.since_s + passed_s)
    if signs.step == before.step or not signs.has_stepped:
        return pace
    if pace.since_step is None:
        return replace(pace, since_step=signs.step, since_s=0.0)
    if pace.since_s < watch.limits.window_s:
        return pace
    return _closed(pace, signs.step, pace.since_step, watch)


def _closed(pace: Pace, step: int, since_step: int, watch: Watch) -> Pace:
    """A window has ended: is it slow? While the run is called slow it must be clearly faster to be cleared."""
    limits = watch.limits
    rate = (step - since_step) / pace.since_s
    share = limits.recovered_share if THROUGHPUT_COLLAPSE in watch.standing else limits.collapse_share
    is_slow = len(pace.rates) >= limits.windows_needed and rate < share * pace.usual
    rates = pace.rates if is_slow else (*pace.rates, rate)
    return replace(
        pace,
        since_step=step,
        since_s=0.0,
        newest=rate,
        rates=rates if len(rates) <= _RATES_KEPT else rates[::2],
        slow_windows=pace.slow_windows + 1 if is_slow else 0,
        slow_s=pace.slow_s + pace.since_s if is_slow else 0.0,
        dead_s=pace.dead_s + pace.since_s if is_slow and rate < limits.dead_share * pace.usual else 0.0,
    )


def _collapse(watch: Watch) -> Concern | None:
    pace, limits = watch.pace, watch.limits
    is_sustained = pace.slow_s >= limits.collapse_s and pace.slow_windows >= limits.collapse_windows
    if watch.kind != AttemptKind.TRAIN or not is_sustained:
        return None
    share = pace.newest / pace.usual
    summary = f"{share:.0%} of its usual speed for {pace.slow_s:.0f} s: {pace.newest:.3g} steps/s, not {pace.usual:.3g}"
    seconds = _rounded(slow_s=pace.slow_s, dead_s=pace.dead_s)
    evidence = {"steps_per_s": pace.newest, "usual_steps_per_s": pace.usual, **seconds}
    return Concern(THROUGHPUT_COLLAPSE, summary, evidence, _severity(pace.dead_s >= limits.dead_s))


# ---- control ---------------------------------------------------------------------------------------------------------


def _unacknowledged_s(watch: Watch, before: Signs, signs: Signs, passed_s: float) -> float:
    """How long control.json waits for its answer, without the time in which the trainer makes no steps anyway."""
    seq, answered = signs.control_seq, signs.acknowledged_seq
    if seq is None or seq != before.control_seq or (answered is not None and answered >= seq):
        return 0.0
    makes_steps = signs.has_stepped and signs.announced not in _PAUSES
    return watch.unacknowledged_s + (passed_s if makes_steps else 0.0)


def _unacknowledged(watch: Watch, signs: Signs) -> Concern | None:
    is_expected = watch.is_trainer and watch.kind == AttemptKind.TRAIN and watch.pace.rates
    if not is_expected or watch.unacknowledged_s < watch.limits.acknowledge_s:
        return None
    rate = min(watch.pace.newest, watch.pace.usual)
    limit_s = watch.limits.acknowledge_s + watch.limits.acknowledge_steps / rate
    if watch.unacknowledged_s < limit_s:
        return None
    return Concern(
        UNACKNOWLEDGED_CONTROL,
        f"the trainer did not confirm control.json, seq {signs.control_seq}, within {watch.unacknowledged_s:.0f} s",
        {"seq": signs.control_seq, **_rounded(unacknowledged_s=watch.unacknowledged_s, limit_s=limit_s)},
    )


def _severity(is_grave: bool) -> Severity:
    return Severity.ABORT if is_grave else Severity.WARN


def _rounded(**seconds: float) -> dict[str, float]:
    return {name: round(value, 1) for name, value in seconds.items()}
