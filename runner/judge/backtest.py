"""What a policy would have done to recorded studies: every arm replayed as it would have arrived.

The arms of a study advance together, by share of their budgets, and an arm that would have been stopped gives its
siblings no further points. With a `probe` the extra validations that a warning asks for are taken while it stands.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from runner.judge import DETECTORS, findings_on, probe_cadence, verdict
from runner.judge.curves import Curves
from runner.judge.levels import Scaling
from runner.judge.policy import FINAL, action_for
from runner.records import STOPS, DeclaredEvent, Finding, Policy, Primary, Series, Severity, Sibling, Verdict

ARMED = Policy(dict.fromkeys(DETECTORS, Severity.ABORT))
"""Every detector may stop what it is sure of."""

_AMONG_SIBLINGS = ("stall",)
_ASK_FOR_PROBES = ("regress", "starvation")

Probe = Callable[[str, int], float]
"""(arm, step) -> the primary as an extra validation of that arm at that step would have measured it."""


@dataclass(frozen=True, slots=True)
class Label:
    """What is known of an arm: whether it went bad, and at which step."""

    sick: bool
    onset: int | None = None


@dataclass(frozen=True, slots=True)
class RecordedArm:
    """One arm as it was recorded: its curves under our names, its budget in steps, and the hours since its start by
    step, where they are known. Only arms of one `eval_set` are compared. `paired` are per-sample scores of the primary.
    `as_written` are study and arm as the file has them, for a reader who looks them up there; None: as they are here.
    """

    study: str
    arm: str
    steps_total: int | None
    series: Mapping[str, Series]
    primary: Primary | None
    events: tuple[DeclaredEvent, ...] = ()
    hours: Mapping[int, float] = field(default_factory=dict)
    label: Label | None = None
    loss_name: str | None = None
    overridden: frozenset[str] = frozenset()
    eval_set: str = ""
    paired: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    as_written: tuple[str | int, str | int] | None = None

    def hours_after(self, step: int) -> float | None:
        """Hours that the arm went on after `step`, from the last known time before it; None without times."""
        if not self.hours:
            return None
        return max(self.hours.values()) - max((hours for at, hours in self.hours.items() if at <= step), default=0.0)


@dataclass(frozen=True, slots=True)
class Replay:
    """What would have become of one arm.

    `verdict` is healthy, warned, diverged, stalled or non_finite; `action` none, warn, abort or verdict_only; `step` is
    the step whose arrival decided, `warn_step` that of the first warning; `probes` are the steps of extra validations.
    """

    study: str
    arm: str
    verdict: str
    action: str
    step: int | None
    warn_step: int | None
    rule: str
    reason: str
    evidence: Mapping[str, Any]
    hours_saved: float | None
    probes: tuple[int, ...] = ()


def replay_study(
    arms: Sequence[RecordedArm],
    *,
    policy: Policy = ARMED,
    scaling: Scaling = Scaling(),  # noqa: B008 (frozen)
    probe: Probe | None = None,
) -> list[Replay]:
    """One result for each arm of one study, in the order given. Arms without a step budget are no siblings."""
    players = [_Player(arm, policy, scaling, probe) for arm in arms]
    for player in players:
        player.judge_alone()
    settled: set[int] = set()
    while True:
        # The earliest stop changes nothing that was seen before it, so it is final; the others lose a sibling there.
        stops = []
        for index, player in enumerate(players):
            if index not in settled:
                player.judge_among([other.as_sibling() for other in players if other.is_comparable(player)])
                if player.is_stopped_by(_AMONG_SIBLINGS):
                    stops.append((player.stop_share(), index))
        if not stops:
            return [player.result() for player in players]
        settled.add(min(stops)[1])


class _Player:
    """One arm on its way through a replay."""

    def __init__(self, arm: RecordedArm, policy: Policy, scaling: Scaling, probe: Probe | None) -> None:
        self._arm = arm
        self._policy = policy
        self._scaling = scaling
        self._probe = probe
        self._curves = Curves(arm.series, arm.steps_total, arm.primary, arm.events, arm.loss_name, (), arm.paired)
        self._alone: tuple[Finding, ...] = ()
        self._probes: dict[int, float] = {}
        self._verdict: Verdict

    def judge_alone(self) -> None:
        """Everything that needs no sibling, the probes that it asked for included."""
        if self._probe is not None:
            self._take_probes(self._probe)
        names = tuple(name for name in DETECTORS if name not in _AMONG_SIBLINGS)
        self._alone = findings_on(self._probed(self._curves), self._scaling, names)
        self._conclude(())

    def judge_among(self, siblings: Sequence[Sibling]) -> None:
        """The same beside what is known of its siblings."""
        curves = replace(self._curves, siblings=[one for one in siblings if one.series.steps])
        self._conclude(findings_on(curves, self._scaling, _AMONG_SIBLINGS))

    def is_comparable(self, other: _Player) -> bool:
        """Whether it is another arm whose primary was measured in the same way, and may stand beside this one."""
        mine, its = self._arm, other._arm
        return self is not other and mine.primary == its.primary and mine.eval_set == its.eval_set

    def as_sibling(self) -> Sibling:
        """Its primary up to where it would have been stopped."""
        arm = self._arm
        series = None if arm.primary is None else arm.series.get(arm.primary.metric)
        if series is None or arm.steps_total is None:
            return Sibling(arm.arm, Series("", (), ()), 1)
        if self._verdict.action in STOPS:
            series = _upto(series, self._decided_at())
        return Sibling(arm.arm, series, arm.steps_total)

    def is_stopped_by(self, detectors: Sequence[str]) -> bool:
        """Whether one of these detectors is what stops it."""
        return self._verdict.action in STOPS and self._verdict.rule in detectors

    def stop_share(self) -> float:
        """The share of its budget at which it is stopped."""
        assert self._arm.steps_total is not None
        return self._decided_at() / self._arm.steps_total

    def result(self) -> Replay:
        """What became of it."""
        arm, judged = self._arm, self._verdict
        is_final = judged.action in FINAL
        deciding = next((one for one in self._deciding() if one.detector == judged.rule), None)
        warned = [one.step for one in judged.findings if self._action(one) == "warn"]
        word = {"non_finite": "non_finite", "stall": "stalled"}.get(judged.rule, "diverged") if is_final else "healthy"
        action = {"rescue": "abort", "shadow": "none"}.get(judged.action, judged.action)
        step = None if deciding is None or action == "none" else deciding.step
        return Replay(
            arm.study, arm.arm, "warned" if action == "warn" else word, action, step, min(warned, default=None),
            judged.rule if action != "none" else "", judged.reason if action != "none" else "",
            {} if deciding is None or action == "none" else deciding.evidence,
            arm.hours_after(step) if action == "abort" and step is not None else None,
            tuple(sorted(self._probes)),
        )  # fmt: skip

    def _conclude(self, more: Sequence[Finding]) -> None:
        order = list(DETECTORS)
        findings = sorted((*self._alone, *more), key=lambda one: order.index(one.detector))
        self._verdict = verdict(findings, self._curves, policy=self._policy, overridden=self._arm.overridden)
        if self._verdict.action in STOPS:
            decided_at = self._decided_at()
            self._probes = {step: value for step, value in self._probes.items() if step <= decided_at}

    def _deciding(self) -> list[Finding]:
        """The findings that carry the verdict, the earliest first."""
        strongest = self._verdict.action
        return sorted(
            (one for one in self._verdict.findings if self._action(one) == strongest), key=lambda one: one.step
        )

    def _decided_at(self) -> int:
        return next(one.step for one in self._deciding() if one.detector == self._verdict.rule)

    def _action(self, finding: Finding) -> str:
        return action_for(finding, self._policy, self._arm.steps_total, self._arm.overridden)

    # ---- probes ------------------------------------------------------------------------------------------------------

    def _take_probes(self, probe: Probe) -> None:
        """Probe between regular validations for as long as a warning stands and nothing has stopped the arm."""
        arm = self._arm
        primary = None if arm.primary is None else arm.series.get(arm.primary.metric)
        if primary is None or arm.steps_total is None:
            return
        every = probe_cadence(arm.steps_total)
        asking = findings_on(self._curves, self._scaling, _ASK_FOR_PROBES)
        warned = [one.step for one in asking if self._is_heard(one)]
        for step, after in pairwise((*primary.steps, arm.steps_total)):
            if not warned or step < min(warned):
                continue
            at = step
            while self._wants_probes(at):
                at = (at // every + 1) * every
                if at >= after or at > (1.0 - self._policy.tail) * arm.steps_total:
                    break
                self._probes[at] = probe(arm.arm, at)

    def _wants_probes(self, at: int) -> bool:
        findings = findings_on(self._probed(self._curves, upto=at), self._scaling, (*_ASK_FOR_PROBES, "oscillating"))
        if any(self._action(one) in STOPS for one in findings):
            return False
        return any(one.wants_probes and self._is_heard(one) for one in findings)

    def _is_heard(self, finding: Finding) -> bool:
        return self._action(finding) != "shadow"

    def _probed(self, curves: Curves, upto: int | None = None) -> Curves:
        """The curves up to a step, with regular validations and probes as the judge's own series of the primary."""
        series = dict(curves.series)
        if upto is not None:
            sparse = {name: one for name, one in series.items() if name.startswith(("val", "opt/"))}
            series = {name: _upto(one, upto) for name, one in sparse.items()}
        primary = curves.primary
        if self._probes and primary is not None:
            points = dict(zip(series[primary.metric].steps, series[primary.metric].values, strict=True))
            points |= {step: value for step, value in self._probes.items() if upto is None or step <= upto}
            name = f"val_probe/{primary.metric.rpartition('/')[2]}"
            steps = sorted(points)
            series[name] = Series(name, tuple(steps), tuple(points[step] for step in steps))
        return replace(curves, series=series)


def _upto(series: Series, step: int) -> Series:
    end = bisect_right(series.steps, step)
    return Series(series.name, series.steps[:end], series.values[:end])
