"""Every arm against its baseline on the primary metric, and how far that may be believed. Pure.

The headline is the last value of each run, never its own best. Words: under 3 paired seeds "screening", 3 to 5
"indicative", from 6 "supported"; a difference no larger than the baseline's seeds are apart is "within seed spread".
An interval over samples speaks of one pair of checkpoints and these samples, never of the method.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from reports.budgets import Reading, equal_samples, equal_steps, equal_time
from reports.completeness import remarks
from reports.contention import Busyness, busyness
from reports.intervals import Interval, hierarchical_bootstrap, holm, paired_bootstrap, sign_flip
from reports.lineage import dependence
from reports.pairing import Pair, pairing, seed_floor
from reports.readings import mean, paired_differences, run_label, scores_at
from reports.study import PrimaryView, StudyView

NOT_READ = Reading(None)
WITHIN = "within seed spread"


@dataclass(frozen=True, slots=True)
class Contrast:
    """An arm against its baseline. `delta` is None, and `why_not` says why, when nothing can be compared.

    `p` is the exact sign-flip value over paired seeds (from two on), `p_holm` the same over all contrasts of the
    study. `seed_floor` is in units of the metric; None when the baseline has fewer than two seeds there.
    """

    arm: str
    baseline: str
    metric: str
    direction: str
    why_not: str = ""
    pairs: tuple[Pair, ...] = ()
    paired_by_seed: bool = True
    delta: float | None = None
    interval: Interval | None = None
    seed_floor: float | None = None
    p: float | None = None
    p_holm: float | None = None
    equal_steps: Reading = NOT_READ
    equal_samples: Reading = NOT_READ
    equal_time: Reading = NOT_READ
    notes: tuple[str, ...] = ()

    @property
    def paired_seeds(self) -> int:
        """Seeds that both arms have and that could be read."""
        return len(self.pairs) if self.paired_by_seed else 0

    @property
    def word(self) -> str:
        """How much this number of paired seeds can carry."""
        return word(self.paired_seeds)

    @property
    def within_seed_spread(self) -> bool | None:
        """Whether the difference is no larger than the baseline's seeds are apart; None when that is not known."""
        if self.delta is None or self.seed_floor is None:
            return None
        return abs(self.delta) <= self.seed_floor

    @property
    def improves(self) -> bool:
        """Whether the difference points the way in which the metric is meant to go."""
        return self.delta is not None and self.delta != 0 and (self.delta < 0) == (self.direction == "min")


def contrasts(study: StudyView) -> tuple[Contrast, ...]:
    """All contrasts of the study's primary, in the order of its arms; none without a primary."""
    if study.primary is None:
        return ()
    busy = busyness(study)
    arms = dict.fromkeys((run.arm, run.baseline) for run in study.runs)
    found = [
        _contrast(study, study.primary, arm, baseline, busy)
        for arm, baseline in arms
        if baseline is not None and baseline != arm
    ]
    tested = [(index, contrast.p) for index, contrast in enumerate(found) if contrast.p is not None]
    for (index, _), p_holm in zip(tested, holm([p for _, p in tested]), strict=True):
        found[index] = replace(found[index], p_holm=p_holm)
    return tuple(found)


def word(paired_seeds: int) -> str:
    """What a contrast with this many paired seeds may be called."""
    if paired_seeds >= 6:
        return "supported"
    return "indicative" if paired_seeds >= 3 else "screening"


def _contrast(study: StudyView, primary: PrimaryView, arm: str, baseline: str, busy: Busyness) -> Contrast:
    metric = primary.metric
    empty = Contrast(arm, baseline, metric, primary.direction)
    read = pairing(study, arm, baseline, metric)
    if not read.pairs:
        return replace(empty, why_not=read.why_not, paired_by_seed=read.by_seed)
    deltas = [pair.delta for pair in read.pairs]
    baseline_runs = [run for run in study.runs if run.arm == baseline]
    return replace(
        empty,
        pairs=read.pairs,
        paired_by_seed=read.by_seed,
        delta=mean(deltas),
        interval=_interval(study.study, read.pairs, metric),
        seed_floor=seed_floor(baseline_runs, metric, max(pair.baseline_step for pair in read.pairs)),
        p=sign_flip(deltas) if read.by_seed and len(deltas) >= 2 else None,
        equal_steps=equal_steps(read.pairs, metric),
        equal_samples=equal_samples(read.pairs, metric),
        equal_time=equal_time(read.pairs, metric, busy),
        notes=(*read.notes, *_remarks(read.pairs)),
    )


def _remarks(pairs: Sequence[Pair]) -> list[str]:
    """What to know of the runs behind a difference; each run once."""
    runs = {run.run: run for pair in pairs for run in (pair.arm, pair.baseline)}
    told = [(run, text) for run in runs.values() for text in (dependence(run), *remarks(run)) if text]
    return [f"of {run_label(run)}: {text}" for run, text in told]


def _interval(study: str, pairs: Sequence[Pair], metric: str) -> Interval | None:
    """Over samples for one pair; over seeds and then samples for several; None without per-sample scores."""
    by_seed = [
        list(
            paired_differences(
                scores_at(pair.arm, metric, pair.arm_step), scores_at(pair.baseline, metric, pair.baseline_step)
            ).values()
        )
        for pair in pairs
    ]
    key = "/".join([study, metric, pairs[0].arm.arm, pairs[0].baseline.arm])
    return paired_bootstrap(by_seed[0], key) if len(pairs) == 1 else hierarchical_bootstrap(by_seed, key)
