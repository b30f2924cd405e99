"""Which run of an arm is read against which run of its baseline, and at which step. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from reports.readings import at, curve, evaluation_sets, is_complete, last, run_label, state_of
from reports.study import RunView, StudyView
from reports.wording import listed, non_finite

Couple = tuple[RunView, RunView]


@dataclass(frozen=True, slots=True)
class Pair:
    """One arm's run and its baseline's, of one seed, with the value of each at the step at which it is read."""

    arm: RunView
    baseline: RunView
    arm_step: int
    baseline_step: int
    arm_value: float
    baseline_value: float

    @property
    def delta(self) -> float:
        """Arm minus baseline, in units of the metric."""
        return self.arm_value - self.baseline_value


@dataclass(frozen=True, slots=True)
class Pairing:
    """The pairs of a contrast, whether they share their seeds, what to tell about them, or why there are none."""

    pairs: tuple[Pair, ...] = ()
    by_seed: bool = True
    notes: tuple[str, ...] = ()
    why_not: str = ""


def pairing(study: StudyView, arm: str, baseline: str, metric: str) -> Pairing:
    """Pair the runs of two arms by seed: at the last value of each, or, where a run is not complete, all of them at
    the last step that they have in common."""
    arm_runs = [run for run in study.runs if run.arm == arm]
    baseline_runs = [run for run in study.runs if run.arm == baseline]
    if not baseline_runs:
        return Pairing(why_not=f"its baseline {baseline} has no run in this study")
    couples, by_seed = _couples(arm_runs, baseline_runs)
    if any(sets_differ(*couple) for couple in couples):
        return Pairing(why_not="the evaluation sets differ, so the scores are not compared")
    usable = [couple for couple in couples if common_steps([couple], metric)]
    notes = [_nothing_common(couple, metric) for couple in couples if not common_steps([couple], metric)]
    if not usable:
        return Pairing(by_seed=by_seed, why_not="; ".join(notes))
    if not by_seed:
        notes.append("no seed in common, so the runs are not paired")
    return _read(usable, by_seed, notes, metric)


def baseline_of(study: StudyView, run: RunView) -> RunView | None:
    """The baseline's run of the same seed, else its first; the run itself when its arm is the baseline."""
    seeds = [other for other in study.runs if other.arm == (run.baseline or run.arm)]
    same = [other for other in seeds if other.seed == run.seed]
    found = same or seeds
    return found[0] if found else None


def baseline_arms(study: StudyView) -> tuple[str, ...]:
    """Arms of the study that another arm is read against, in the order of the runs."""
    named = {run.baseline for run in study.runs if run.baseline not in (None, run.arm)}
    return tuple(arm for arm in dict.fromkeys(run.arm for run in study.runs) if arm in named)


def seed_floor(runs: Sequence[RunView], metric: str, step: int) -> float | None:
    """How far two seeds of one arm are apart at a step: |A0 - A1|, the mean over all pairs when there are more seeds.

    A mean and not the range, because a range grows with every seed that is added. None with fewer than two values.
    """
    values = [value for run in runs if (value := at(run, metric, step)) is not None and math.isfinite(value)]
    apart = [abs(one - other) for one, other in combinations(values, 2)]
    return math.fsum(apart) / len(apart) if apart else None


def sets_differ(run: RunView, other: RunView) -> bool:
    """Whether two runs were scored on different evaluation sets (an unknown one differs from nothing)."""
    mine, theirs = evaluation_sets(run), evaluation_sets(other)
    return bool(mine) and bool(theirs) and mine.isdisjoint(theirs)


def common_steps(couples: Sequence[Couple], metric: str) -> list[int]:
    """Steps after 0 at which every run has a finite value, increasing."""
    sets = [
        {step for step, value in zip(found.steps, found.values, strict=True) if step > 0 and math.isfinite(value)}
        for couple in couples
        for found in (curve(run, metric) for run in couple)
    ]
    return sorted(set.intersection(*sets)) if sets else []


def _couples(arm: list[RunView], baseline: list[RunView]) -> tuple[list[Couple], bool]:
    """Runs of equal seed; without any, the first of each."""
    by_seed = {run.seed: run for run in baseline}
    couples = [(run, by_seed[run.seed]) for run in arm if run.seed in by_seed]
    return (couples, True) if couples else ([(arm[0], baseline[0])], False)


def _nothing_common(couple: Couple, metric: str) -> str:
    told = listed([f"{run_label(run)} ({state_of(run)} at step {run.step})" for run in couple])
    return f"no finite {metric} after step 0 in common: {told}"


def _read(couples: list[Couple], by_seed: bool, notes: list[str], metric: str) -> Pairing:
    early = {run.run: run for couple in couples for run in couple if not is_complete(run)}
    if not early:
        pairs = [_pair(arm, baseline, metric, _end(arm, metric), _end(baseline, metric)) for arm, baseline in couples]
        notes += [f"schedules differ: {p.arm_step} and {p.baseline_step} steps" for p in pairs if _uneven(p)][:1]
    else:
        common = common_steps(couples, metric)
        if not common:
            return Pairing(by_seed=by_seed, why_not="the pairs have no validated step in common")
        step = common[-1]
        pairs = [_pair(arm, baseline, metric, step, step) for arm, baseline in couples]
        told = listed([f"{run_label(run)} is {state_of(run)} at step {run.step}" for run in early.values()])
        notes.append(f"read at step {step}, the last in common: {told}")
    broken = [
        f"the last value of {run_label(run)} is {non_finite(value)}"
        for pair in pairs
        for run, value in ((pair.arm, pair.arm_value), (pair.baseline, pair.baseline_value))
        if not math.isfinite(value)
    ]
    if broken:
        return Pairing(by_seed=by_seed, why_not=listed(broken))
    return Pairing(tuple(pairs), by_seed, tuple(notes))


def _end(run: RunView, metric: str) -> int:
    found = last(run, metric)
    assert found is not None, "a usable couple has values"
    return found[0]


def _uneven(pair: Pair) -> bool:
    return pair.arm_step != pair.baseline_step


def _pair(arm: RunView, baseline: RunView, metric: str, arm_step: int, baseline_step: int) -> Pair:
    arm_value, baseline_value = at(arm, metric, arm_step), at(baseline, metric, baseline_step)
    assert arm_value is not None, "the step comes from this curve"
    assert baseline_value is not None, "the step comes from this curve"
    return Pair(arm, baseline, arm_step, baseline_step, arm_value, baseline_value)
