"""How early the judge sees a collapsing arm, and how rarely it kills a healthy one, beside the rules used today.

Synthetic studies with known labels (study_curves.py) are replayed by `runner.judge.backtest`, with live probes and
without, and by the real rules of Lightning, Ray Tune and Optuna. Profiles and sizes: base 3,000 healthy and 1,500 sick
arms, shift and stranger 1,000 and 500 each; a quick run has a tenth.

    python -m benchmarks.detectors --development            as large as the real one, on the seeds for working on it
    python -m benchmarks.detectors --case 1017/base/3       one arm: its curve, its truth and what the judge says
    python -m benchmarks.detectors --jsonl 1017/base        its study, as `runner backtest` reads it
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.detector_scores import Outcome, by_kind, scores, worst_cases
from benchmarks.peers import version
from benchmarks.stopping_rules import REQUIREMENTS, stops
from benchmarks.study_curves import PROFILES, Arm, line, study
from runner.judge.backtest import ARMED, Replay, replay_study
from runner.judge.recorded import arms_from_jsonl

DEVELOPMENT_SEEDS = range(1_000, 100_000)
"""Look at these while working on the judge."""
FINAL_SEEDS = range(11_000_000, 11_100_000)
"""Never looked at: the published figures come from these, in one run."""
SIZES = {"base": (3_000, 1_500), "shift": (1_000, 500), "stranger": (1_000, 500)}
"""Healthy and sick arms at least; studies are taken in order until both are there."""
OURS = ("armature, with probes", "armature, regular validations only")


def run(quick: bool) -> dict[str, Any]:
    """All measurements as plain JSON values. A quick run takes a tenth and the development seeds."""
    return measure(DEVELOPMENT_SEEDS if quick else FINAL_SEEDS, 0.1 if quick else 1.0)


def measure(seeds: Sequence[int], size: float, peers: Sequence[str] = tuple(REQUIREMENTS)) -> dict[str, Any]:
    """The same on these seeds, with this share of the full size and these peers."""
    profiles = {}
    for profile in PROFILES:
        healthy, sick = (round(size * count) for count in SIZES[profile])
        studies = list(_studies(profile, seeds, healthy, sick))
        outcomes: dict[str, list[Outcome]] = {}
        begun = time.perf_counter()
        for name, with_probes in zip(OURS, (True, False), strict=True):
            outcomes[name] = [one for arms in studies for one in ours(arms, with_probes=with_probes)]
        took_s = time.perf_counter() - begun
        for peer in peers:
            outcomes |= theirs(peer, studies)
        arms = sum(map(len, studies))
        print(f"  {profile}: {arms} arms in {len(studies)} studies, {1e3 * took_s / arms / 2:.1f} ms each", flush=True)
        profiles[profile] = {
            "studies": len(studies),
            "rules": {name: scores(told) for name, told in outcomes.items()},
            "kinds": {name: by_kind(outcomes[name]) for name in OURS},
            "worst": {name: worst_cases(outcomes[name]) for name in OURS},
            "replay_ms_per_arm": 1e3 * took_s / arms / 2,
        }
    versions = {name: version(REQUIREMENTS[name][0]) for name in peers}
    return {"benchmark": "detectors", "seeds": [seeds[0], seeds[-1]], "size": size, "versions": versions,
            "profiles": profiles}  # fmt: skip


def _studies(profile: str, seeds: Sequence[int], healthy: int, sick: int) -> Iterator[list[Arm]]:
    for seed in seeds:
        if healthy <= 0 and sick <= 0:
            return
        arms = study(seed, profile)
        ill = sum(arm.label.sick for arm in arms)
        healthy, sick = healthy - len(arms) + ill, sick - ill
        yield arms


def ours(arms: Sequence[Arm], *, with_probes: bool) -> list[Outcome]:
    """What the judge does with the arms of one study when every detector may abort."""
    return [_outcome(arm, one) for arm, one in zip(arms, _replays(arms, with_probes=with_probes), strict=True)]


def _replays(arms: Sequence[Arm], *, with_probes: bool) -> list[Replay]:
    by_name = {str(arm.arm): arm for arm in arms}
    recorded = arms_from_jsonl("\n".join(line(arm) for arm in arms))
    probe = (lambda name, step: by_name[name].probe(step)) if with_probes else None
    return replay_study(recorded, policy=ARMED, probe=probe)


def _outcome(arm: Arm, replay: Replay) -> Outcome:
    return Outcome(
        case=arm.name, kind=arm.label.kind, onset=arm.label.onset, steps_total=arm.steps_total,
        stopped=replay.step if replay.action == "abort" else None,
        named=replay.step if replay.action in ("abort", "verdict_only") else None,
        rule=replay.rule, warned=replay.warn_step is not None, probes=len(replay.probes),
        lines_late=_lines_late(arm, replay.step if replay.action == "abort" else None),
    )  # fmt: skip


def _lines_late(arm: Arm, stopped: int | None) -> int | None:
    """How many log lines were not finite before the step that ended the arm; None without any or without an end."""
    odd = [step for step, loss in zip(arm.log_steps, arm.train_loss, strict=True) if loss is None]
    return None if stopped is None or not odd else sum(step < stopped for step in odd)


def theirs(peer: str, studies: Sequence[Sequence[Arm]]) -> dict[str, list[Outcome]]:
    """What each rule of a peer does with the same arms."""
    arms = {(arm.study, arm.arm): arm for group in studies for arm in group}
    outcomes: dict[str, list[Outcome]] = {}
    for stop in stops(peer, studies):
        arm = arms[stop.study, stop.arm]
        told = Outcome(arm.name, arm.label.kind, arm.label.onset, arm.steps_total, stop.step, stop.step, stop.rule)
        outcomes.setdefault(stop.rule, []).append(told)
    return outcomes


def table(result: Mapping[str, Any]) -> str:
    """The result as Markdown: all rules for each profile, then the kinds under ours with probes."""
    parts = []
    for profile, told in result["profiles"].items():
        first = told["rules"][OURS[0]]
        parts.append(f"**{profile}**: {first['healthy']:,} healthy and {first['sick']:,} sick arms\n")
        parts += [_HEADER, _RULE]
        parts += [f"| {name} | {_cells(figures)} |" for name, figures in told["rules"].items()]
        parts.append("")
    return "\n".join([*parts, *_kinds_table(result["profiles"])])


def _kinds_table(profiles: Mapping[str, Any]) -> Iterator[str]:
    """Ours with probes, each kind of arm under each profile."""
    kinds = list(dict.fromkeys(kind for told in profiles.values() for kind in told["kinds"][OURS[0]]))
    yield "Ours with probes, by kind. Sick: recall %, delay median / p90 in % of the budget; healthy: false aborts.\n"
    yield f"| kind | {' | '.join(profiles)} |"
    yield f"|---|{'--:|' * len(profiles)}"
    for kind in sorted(kinds, key=lambda kind: not any(_of(told, kind).get("sick") for told in profiles.values())):
        yield f"| {kind} | {' | '.join(_kind_cell(_of(told, kind)) for told in profiles.values())} |"


def _of(told: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    figures: Mapping[str, Any] = told["kinds"][OURS[0]].get(kind, {})
    return figures


def _kind_cell(figures: Mapping[str, Any]) -> str:
    if not figures:
        return "–"
    if figures["healthy"]:
        return f"{figures['false_aborts']} of {figures['healthy']}"
    delay = f"{_one(figures['delay_median'])} / {_one(figures['delay_p90'])}"
    return f"{_one(figures['recall'])} of {figures['sick']}, {delay}"


_HEADER = (
    "| rule | recall % | aborted % | false aborts % (95 % bound) | before onset % | delay median / p90, % of budget "
    "| compute after onset saved % | probes per healthy arm |"
)
_RULE = "|---|--:|--:|--:|--:|--:|--:|--:|"


def _cells(figures: Mapping[str, Any]) -> str:
    bound = "–" if figures["false_aborts_bound"] is None else f"{figures['false_aborts_bound']:.2f}"
    return " | ".join(
        (
            _one(figures["recall"]),
            _one(figures["aborted"]),
            f"{figures['false_aborts_percent']:.2f} (< {bound})",
            _one(figures["before_onset"]),
            f"{_one(figures['delay_median'])} / {_one(figures['delay_p90'])}",
            _one(figures["saved"]),
            f"{figures['probes_per_healthy']:.2f}",
        )
    )


def _one(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def case(name: str) -> str:
    """One arm SEED/PROFILE/ARM in words: what is true of it, its curve, and what the judge does. Raises ValueError."""
    where, _, number = name.rpartition("/")
    arms = named_study(where, f"{name!r} is no case; allowed: SEED/PROFILE/ARM, such as 1017/base/3")
    at = next((at for at, arm in enumerate(arms) if str(arm.arm) == number), None)
    if at is None:
        raise ValueError(f"{name}: the study has arms {', '.join(str(arm.arm) for arm in arms)}")
    arm = arms[at]
    siblings = ", ".join(one.label.kind for one in arms if one is not arm)
    lines = [
        f"{arm.name}: {arm.label.kind}, onset {arm.label.onset}, {arm.steps_total} steps, {arm.direction}, "
        f"events {arm.events}, siblings {siblings}"
    ]
    for with_probes in (True, False):
        replay = _replays(arms, with_probes=with_probes)[at]
        who = OURS[0 if with_probes else 1]
        lines.append(f"\n{who}: {replay.action} {replay.rule} at {replay.step}, first warning {replay.warn_step}")
        lines += [f"  {replay.reason}", f"  {dict(replay.evidence)}"] if replay.reason else []
        if replay.probes:
            lines.append("  probes " + ", ".join(f"{step}: {arm.probe(step):.6g}" for step in replay.probes))
    lines.append("\nstep       metric  loss of the lines since (median, highest)")
    lines += list(_curve(arm))
    return "\n".join(lines)


def named_study(name: str, mistake: str = "") -> list[Arm]:
    """The study SEED/PROFILE. Raises ValueError for anything else."""
    seed, _, profile = name.partition("/")
    if not seed.isdigit():
        raise ValueError(mistake or f"{name!r} is no study; allowed: SEED/PROFILE, such as 1017/base")
    return study(int(seed), profile)


def _curve(arm: Arm) -> Iterator[str]:
    """The validations of an arm, each with the losses logged since the one before."""
    begin = 0
    for step, value in zip(arm.val_steps, arm.val_metric, strict=True):
        told = [
            loss
            for at, loss in zip(arm.log_steps, arm.train_loss, strict=True)
            if begin < at <= step and loss is not None
        ]
        losses = f"{sorted(told)[len(told) // 2]:.4g}, {max(told):.4g}" if told else "none finite"
        yield f"{step:>7}  {'not finite' if value is None else format(value, '.6g'):>10}  {losses}"
        begin = step


def main() -> int:
    """The command line of this benchmark alone; it writes no result of record."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.detectors", description=__doc__)
    parser.add_argument("--case", metavar="SEED/PROFILE/ARM", help="show one arm and what the judge does with it")
    parser.add_argument("--jsonl", metavar="SEED/PROFILE", help="print one study as JSON lines")
    parser.add_argument("--development", action="store_true", help="measure at full size on the development seeds")
    parser.add_argument("--size", type=float, default=1.0, help="share of the full size (default 1)")
    parser.add_argument("--no-peers", action="store_true", help="ours alone")
    parser.add_argument("--out", type=Path, help="also write the result as JSON")
    given = parser.parse_args()
    try:
        if given.case:
            print(case(given.case))
        if given.jsonl:
            print("\n".join(line(arm) for arm in named_study(given.jsonl)))
    except ValueError as error:
        parser.error(str(error))
    if given.case or given.jsonl:
        return 0
    if not given.development:
        parser.error("one of --case, --jsonl, --development; the figures of record: python -m benchmarks detectors")
    result = measure(DEVELOPMENT_SEEDS, given.size, () if given.no_peers else tuple(REQUIREMENTS))
    print(table(result))
    for profile, told in result["profiles"].items():
        print(f"\n{profile}: " + json.dumps(told["worst"][OURS[0]]))
    if given.out:
        given.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
