"""The judge: curves in, one verdict out. Pure: no clock, no file, no process, no state, no chance.

A detector is one file with `detect(curves) -> tuple[Finding, ...]` (empty = nothing seen) and one line in `DETECTORS`.
Each detector replays the run arrival by arrival and reports the first step at which its condition held, using nothing
that came later. So how often the controller looks never changes what is concluded, and a replay of the stored points
gives the same verdict.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from runner.judge.curves import Curves
from runner.judge.explosion import detect as detect_explosion
from runner.judge.non_finite import detect as detect_non_finite
from runner.judge.policy import decide
from runner.judge.regress import detect as detect_regress
from runner.records import DeclaredEvent, Finding, Policy, Primary, Series, Verdict

__all__ = ["DETECTORS", "judge"]

DETECTORS: Mapping[str, Callable[[Curves], tuple[Finding, ...]]] = MappingProxyType(
    {
        "non_finite": detect_non_finite,
        "explosion": detect_explosion,
        "regress": detect_regress,
    }
)


def judge(
    series: Mapping[str, Series],
    *,
    steps_total: int | None,
    primary: Primary | None,
    policy: Policy,
    events: Sequence[DeclaredEvent],
    loss_name: str | None = None,
    overridden: frozenset[str] = frozenset(),
) -> Verdict:
    """What to make of one run, from everything it reported so far.

    `series` maps names to curves; `steps_total` is the budget in optimizer steps (None: unknown, then no rule waits for
    a share of it, there is no tail, and a decline of the primary only warns); `primary` is the only metric whose
    decline may abort; `events` are what the trainer declared about itself; `loss_name` is the loss of a command arm;
    `overridden` are detectors whose abort a person has overruled for this run. A warning stays in the verdict after the
    curve recovered.
    Raises ValueError for a policy value other than shadow, warn or abort.
    """
    curves = Curves(series, steps_total, primary, events, loss_name)
    findings = [finding for detect in DETECTORS.values() for finding in detect(curves)]
    as_of = {name: curve.steps[-1] for name, curve in sorted(series.items()) if curve.steps}
    return decide(findings, policy=policy, steps_total=steps_total, overridden=overridden, as_of=as_of)
