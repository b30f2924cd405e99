"""A validation metric that leaves its own best for good.

One level cannot tell sick from healthy: in the published arms of prx-tg the first bad checkpoint of the arm that
collapsed lies 1.70 % above its best, the last one of a healthy arm 1.79 %. Rate, persistence and what is left of the
budget decide. Only the declared primary metric may abort; the healthy arms' other metrics drift by up to 4 % (text
LPIPS) and 17 % (text manipulation), so they warn at most.

Everything is relative to the run's own curve: r = (value - best) / |median value|, with best = minimum + one jitter
(the minimum of noisy values is biased low) and jitter the noise of the curve around its own trend.
"""

from __future__ import annotations

from dataclasses import replace

from runner.judge.curves import Curves, json_numbers
from runner.judge.levels import Levels
from runner.judge.rise import FEWEST, JITTER_FEWEST, Rise, Track, rises
from runner.judge.robust import theil_sen
from runner.records import Finding, Severity

# Validation metrics besides the primary that are known to be better when lower. Probes are never ranked.
LOWER_IS_BETTER = frozenset({"text_lpips", "text_rmse", "loss"})


# A severe rise that has eased by less than a tenth is not on its way back.
EASED_SHARE = 0.10
# Three close points are one event seen three times; two may decide only when they lie a regular checkpoint apart.
THREE_POINTS_SPAN = 0.05
TWO_CHECKPOINTS_SPAN = 0.09
# Where scores of the same samples exist, chance is ruled out by them.
CONVINCING_P = 0.001

# Shares of |median value|; `warn_jitters` and `z` in jitters.
LEVELS: Levels = {
    # The noise of a smooth validation stays below one percent; of a noisy one, below two and a half of its deviations.
    "warn": 0.008,
    "warn_jitters": 2.0,
    # An abort is for what no repeated validation could show by chance.
    "z": 6.0,
    # Healthy runs end up to 2.5 % above their best, collapses beyond 4.5 %: a rise must be past the first and heading
    # well past the second, or stay between them, or be far beyond.
    "projected": 0.026,
    "projected_end": 0.055,
    "persistent": 0.030,
    "severe": 0.080,
    # From here on the leaps of a curve that goes down in stairs are no excuse.
    "leap": 0.080,
    # The last checkpoint has no successor to confirm it; nothing is stopped there, so less certainty will do.
    "final": 0.042,
    "final_z": 4.0,
}


def detect(curves: Curves, levels: Levels) -> tuple[Finding, ...]:
    """A warning and, for the primary metric alone, an abort: each at the first step whose arrival justified it."""
    findings = _primary_findings(curves, levels)
    for name, series in sorted(curves.series.items()):
        if _is_secondary(name) and (curves.primary is None or name != curves.primary.metric):
            findings += _first_findings(Track(series, 1.0, may_abort=False), curves, levels)
    return tuple(findings)


def _primary_findings(curves: Curves, levels: Levels) -> list[Finding]:
    """Regular validations warn; they, or the probes that the warning asked for, abort: whatever comes first."""
    primary = curves.primary
    if primary is None or primary.metric not in curves.series:
        return []
    series, sign = curves.series[primary.metric], -1.0 if primary.direction == "max" else 1.0
    # Every abort rule weighs a rise against the budget: without one there is nothing to weigh.
    may_abort = curves.steps_total is not None
    own = _first_findings(Track(series, sign, may_abort, paired=curves.paired), curves, levels)
    probes = curves.probes()
    if not own or probes is None or not probes.steps:
        return own
    warning = own[0]
    seen = _first_findings(Track(probes, sign, may_abort, frozenset(series.steps)), curves, levels, warning.step)
    aborts = [one for one in (*own, *seen) if one.severity is Severity.ABORT]
    stands = seen[-1].wants_probes if probes.steps[-1] > series.steps[-1] and seen else warning.wants_probes
    if probes.steps[-1] > series.steps[-1] and not seen:
        stands = False
    return [replace(warning, wants_probes=stands), *sorted(aborts, key=lambda one: one.step)[:1]]


def _is_secondary(name: str) -> bool:
    protocol, _, metric = name.partition("/")
    return protocol == "val" and (metric.startswith("recon_") or metric in LOWER_IS_BETTER)


def _first_findings(track: Track, curves: Curves, levels: Levels, abort_from: int = 0) -> list[Finding]:
    """The first warning, and the first abort at or after step `abort_from`."""
    warning: Finding | None = None
    newest = track.series.steps[-1] if track.series.steps else 0
    stands = False
    for rise, gap_steps in rises(track, curves, levels):
        if warning is None:
            warning = _finding(track, Severity.WARN, "warn", rise)
        rule = _abort_rule(rise, gap_steps, levels) if track.may_abort else None
        if rule is not None and rise.steps[-1] >= abort_from:
            return [warning, _finding(track, Severity.ABORT, rule, rise)]
        stands = track.may_abort and rise.steps[-1] == newest
        if not track.may_abort:
            break
    return [] if warning is None else [replace(warning, wants_probes=stands)]


def _abort_rule(rise: Rise, gap_steps: int, levels: Levels) -> str | None:
    """The name of the abort rule that holds, unless chance may explain it."""
    rule = _rule(rise, gap_steps, levels)
    return rule if rule is not None and _is_beyond_chance(rise, rule, levels) else None


def _is_beyond_chance(rise: Rise, rule: str, levels: Levels) -> bool:
    """Whether the newest point is surely worse than the best: on the same samples if their scores were kept, else by
    the noise of the curve."""
    p = rise.paired_p()
    needed = levels["final_z" if rule == "final_verdict" else "z"]
    return rise.z >= needed if p is None else p <= CONVINCING_P


def _rule(rise: Rise, gap_steps: int, levels: Levels) -> str | None:
    """The gravest rule that the shape of the rise fits."""
    if rise.is_from_start:
        return None
    if rise.held(2, levels["severe"]) and rise.is_near_peak(EASED_SHARE * (max(rise.values) - rise.best)):
        return "severe"
    if rise.in_event_window or rise.points_seen < JITTER_FEWEST or not rise.is_near_peak(rise.jitter):
        return None
    if theil_sen([rise.best_step, *rise.steps], [rise.best, *rise.values]) <= 0:
        return None
    has_three = len(rise.values) >= FEWEST and rise.spans(THREE_POINTS_SPAN)
    if has_three and rise.held(FEWEST, levels["persistent"]):
        return "persistent"
    is_heading_out = rise.projected() >= levels["projected_end"]
    if has_three and rise.now >= levels["projected"] and is_heading_out:
        return "projected"
    if rise.now >= levels["persistent"] and rise.spans(TWO_CHECKPOINTS_SPAN) and is_heading_out:
        return "two_checkpoints"
    return "final_verdict" if rise.now >= levels["final"] and rise.is_final(gap_steps) else None


def _finding(track: Track, severity: Severity, rule: str, rise: Rise) -> Finding:
    step, percent, metric = rise.steps[-1], 100 * rise.now, track.series.name
    p = rise.paired_p()
    return Finding(
        detector="regress",
        severity=severity,
        step=step,
        summary=f"{metric} is {said_percent(percent)} worse than its best of step {rise.best_step} "
        f"(step {step}, {rule})",
        evidence=json_numbers(
            {
                "metric": metric,
                "rule": rule,
                "value": rise.sign * rise.values[-1],
                "best_value": rise.sign * rise.best,
                "best_step": rise.best_step,
                "regress_percent": round(percent, 3),
                "jitter_percent": round(100 * rise.jitter / rise.scale, 3),
                "z": round(rise.z, 2),
                **({} if p is None else {"paired_p": float(f"{p:.2g}")}),
                "projected_percent": round(100 * rise.projected(), 3),
                "points": [[at, rise.sign * value] for at, value in zip(rise.steps, rise.values, strict=True)],
            }
        ),
    )


def said_percent(percent: float) -> str:
    """A percentage for a sentence; from ten-fold on a multiple says more."""
    return f"{percent:.1f} %" if percent < 1000 else f"{percent / 100:.3g} times"
