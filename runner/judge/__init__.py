"""The judge: curves in, one verdict out. Pure: no clock, no file, no process, no state, no chance.

A detector is one file with `detect(curves, levels) -> tuple[Finding, ...]` (empty = nothing seen), its `LEVELS`, and
one line in `DETECTORS`. Each detector replays the run arrival by arrival and reports the first step at which its
condition held, using nothing that came later. So how often the controller looks never changes what is concluded, and a
replay of the stored points gives the same verdict.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from runner.judge import explosion, non_finite, oscillating, regress, stall, starvation
from runner.judge.curves import Curves
from runner.judge.levels import Levels, Scaling
from runner.judge.policy import action_for, decide, in_tail
from runner.records import DeclaredEvent, Finding, Policy, Primary, Series, Sibling, Verdict

__all__ = ["DETECTORS", "LEVEL_NAMES", "Detector", "findings_on", "judge", "probe_cadence", "verdict"]

# A standing warning is looked into at this distance, as a share of the budget.
PROBE_SHARE = 0.02


@dataclass(frozen=True, slots=True)
class Detector:
    """One way for a run to go wrong: what sees it, and by which levels."""

    detect: Callable[[Curves, Levels], tuple[Finding, ...]]
    levels: Levels


DETECTORS: Mapping[str, Detector] = MappingProxyType(
    {
        "non_finite": Detector(non_finite.detect, {}),
        "explosion": Detector(explosion.detect, explosion.LEVELS),
        "regress": Detector(regress.detect, regress.LEVELS),
        "oscillating": Detector(oscillating.detect, oscillating.LEVELS),
        "stall": Detector(stall.detect, stall.LEVELS),
        "starvation": Detector(starvation.detect, starvation.LEVELS),
    }
)
LEVEL_NAMES = tuple(f"{name}.{level}" for name, detector in DETECTORS.items() for level in detector.levels)
"""Every level by its full name, for `--scale-thresholds NAME=X`."""


def judge(
    series: Mapping[str, Series],
    *,
    steps_total: int | None,
    primary: Primary | None,
    policy: Policy,
    events: Sequence[DeclaredEvent],
    loss_name: str | None = None,
    overridden: frozenset[str] = frozenset(),
    siblings: Sequence[Sibling] = (),
    paired: Mapping[int, Mapping[str, float]] = MappingProxyType({}),
) -> Verdict:
    """What to make of one run, from everything it reported so far.

    `series` maps names to curves; `steps_total` is the budget in optimizer steps (None: unknown, then no rule waits for
    a share of it, there is no tail, and a decline of the primary only warns); `primary` is the only metric whose
    decline may abort; `events` are what the trainer declared about itself; `loss_name` is the loss of a command arm;
    `overridden` are detectors whose abort a person has overruled for this run; `siblings` are the comparable runs of
    the study, and `paired` per-sample scores of the primary (step -> sample -> value), where they exist. A warning
    stays in the verdict after the curve recovered.
    Raises ValueError for a policy value that is no Severity.
    """
    curves = Curves(series, steps_total, primary, events, loss_name, siblings, paired)
    return verdict(findings_on(curves), curves, policy=policy, overridden=overridden)


def findings_on(
    curves: Curves,
    scaling: Scaling = Scaling(),  # noqa: B008 (frozen)
    names: Iterable[str] = DETECTORS,
) -> tuple[Finding, ...]:
    """What the detectors of these names saw, in the order of the names."""
    return tuple(
        finding
        for name in names
        for finding in DETECTORS[name].detect(curves, scaling.of(name, DETECTORS[name].levels))
    )


def probe_cadence(steps_total: int) -> int:
    """The steps between two extra validations of a run that is looked into."""
    return max(1, round(PROBE_SHARE * steps_total))


def verdict(
    findings: Sequence[Finding], curves: Curves, *, policy: Policy, overridden: frozenset[str] = frozenset()
) -> Verdict:
    """What the policy makes of `findings` on `curves`."""
    as_of = {name: curve.steps[-1] for name, curve in sorted(curves.series.items()) if curve.steps}
    as_of |= {f"{one.run}:{one.series.name}": one.series.steps[-1] for one in curves.siblings if one.series.steps}
    decided = decide(findings, policy=policy, steps_total=curves.steps_total, overridden=overridden, as_of=as_of)
    return replace(decided, probe_every_steps=_probe_every_steps(findings, curves, policy, overridden))


def _probe_every_steps(
    findings: Sequence[Finding], curves: Curves, policy: Policy, overridden: frozenset[str]
) -> int | None:
    """The cadence of extra validations while a warning stands; none in the tail, where nothing would follow."""
    steps_total = curves.steps_total
    if steps_total is None or not any(finding.wants_probes for finding in findings):
        return None
    newest = max(series.steps[-1] for series in curves.series.values() if series.steps)
    if in_tail(newest, steps_total, policy.tail):
        return None
    is_heard = any(
        finding.wants_probes and action_for(finding, policy, steps_total, overridden) != "shadow"
        for finding in findings
    )
    return probe_cadence(steps_total) if is_heard else None
