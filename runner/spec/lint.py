"""Is this comparison fair? Rules over the resolved arms of a launch and their studies. Pure.

Severities: E stops a launch unless it is allowed with a reason, W is a warning, N a note. This version has

    F01  W    an arm differs from its baseline in more than one factor
    F02  E    arms of a study are scored with different common samplers
    F05  E    held-out samples are training samples (known once runs have validated)
    F06  E/W  the EMA remembers the beginning of the run
    F07  W    warm-up is a large share of the run (the schedule itself always spans the run here)
    F12  N/W  how far the number of seeds carries; seeds that the baseline does not have
    F17  E    a key is set but changes nothing, or a whole arm repeats its baseline
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from reports.study import LintView
from runner.errors import UsageError
from runner.spec.factors import factors
from runner.spec.identity import identity
from runner.spec.models import TRAINER, ResolvedArm

RULES = ("F01", "F02", "F05", "F06", "F07", "F12", "F17")

EARLY_EMA_ERROR = 0.05  # share of the final average that comes from the first tenth of the run
LONG_HALF_LIFE = 0.10
LONG_WARMUP = 0.20
INDICATIVE_SEEDS = 3
SUPPORTED_SEEDS = 6


def lint(
    arms: Sequence[ResolvedArm],
    allow: Mapping[str, str] | None = None,
    training_ids_in_eval: Mapping[str, int] | None = None,
) -> tuple[LintView, ...]:
    """All remarks on these arms, study by study, rule by rule.

    `allow` maps a rule to the reason why it is accepted; its remarks then carry that reason. `training_ids_in_eval`
    maps study/arm to the number of held-out ids that were training ids, as the validations of its runs found it.
    """
    reasons = allow or {}
    remarks: list[LintView] = []
    for study in dict.fromkeys(arm.study for arm in arms):
        members = [arm for arm in arms if arm.study == study]
        for rule in (_one_factor, _common_sampler, _ema_memory, _schedule, _seeds, _dead_switches):
            remarks.extend(rule(members))
        remarks.extend(_holdout(members, training_ids_in_eval or {}))
    remarks.sort(key=lambda remark: remark.rule)
    return tuple(dataclasses.replace(remark, allowed=reasons.get(remark.rule, "")) for remark in remarks)


def blocking(remarks: Sequence[LintView]) -> tuple[LintView, ...]:
    """The remarks that stop a launch: errors that nobody allowed."""
    return tuple(remark for remark in remarks if remark.severity == "E" and not remark.allowed)


def parse_allow(texts: Sequence[str]) -> dict[str, str]:
    """`RULE=reason` texts of the command line. Raises UsageError for an unknown rule or a missing reason."""
    allowed = {}
    for text in texts:
        rule, _, reason = (part.strip() for part in text.partition("="))
        if rule not in RULES:
            raise UsageError(
                f"--allow {text}: no such rule; allowed: {', '.join(RULES)}, for example --allow F02='why'"
            )
        if not reason:
            raise UsageError(f"--allow {text}: a reason is needed, the report prints it; next: --allow {rule}='why'")
        allowed[rule] = reason
    return allowed


def early_share(half_life: float) -> float:
    """Share of the weight of a bias-corrected EMA at the last step that lies on the first tenth of the run.

    `half_life` is a share of the run. Update i of N has the weight (1-d) d^(N-i) / (1-d^N), where d^N is
    0.5^(1/half_life), so the first tenth has (d^(0.9 N) - d^N) / (1 - d^N).
    """
    whole: float = 0.5 ** (1.0 / half_life)
    late: float = 0.5 ** (0.9 / half_life)
    return (late - whole) / (1.0 - whole)


def published_early_share(steps: int) -> float:
    """The same of the published average, decay 0.9999 after a linear ramp of 500 steps, in a run of `steps`."""
    return math.prod(0.9999 * min(step / 500, 1.0) for step in range(steps // 10 + 1, steps + 1))


def seed_word(seeds: int) -> str:
    """How strong a claim this many paired seeds can carry."""
    if seeds >= SUPPORTED_SEEDS:
        return "supported"
    return "indicative" if seeds >= INDICATIVE_SEEDS else "screening"


def _one_factor(arms: Sequence[ResolvedArm]) -> Iterator[LintView]:
    isolated: dict[str, str] = {}
    for one, other in itertools.combinations(arms, 2):
        if len(found := factors(one, other)) == 1:
            isolated.setdefault(found[0], f"{other.arm} - {one.arm}")
    for arm, base in _contrasts(arms):
        found = factors(base, arm)
        if len(found) < 2:
            continue
        alone = [name for name in found if name not in isolated]
        if alone:
            advice = f"add an arm that isolates {alone[0]}"
        else:
            advice = "each is isolated elsewhere: " + ", ".join(f"{name} by {isolated[name]}" for name in found)
        listed = ", ".join(found)
        yield LintView("F01", "W", f"{arm.arm} differs from {base.arm} in {len(found)} factors ({listed}); {advice}")


def _common_sampler(arms: Sequence[ResolvedArm]) -> Iterator[LintView]:
    trainer_arms = [arm for arm in arms if arm.kind == TRAINER]
    for arm in trainer_arms[1:]:
        base = _baseline(arm, trainer_arms) or trainer_arms[0]
        one, other = _sampler(arm), _sampler(base)
        if one != other:
            yield LintView("F02", "E", f"{arm.arm} is scored with {one}, {base.arm} with {other}")


def _sampler(arm: ResolvedArm) -> str:
    objective = _config(arm)["objective"]
    steps = _config(arm)["validation"]["sampler_steps"]
    shift = "" if objective["shift"] == 1 else f" shifted by {objective['shift']:g}"
    return f"{steps} Euler steps{shift}"


def _holdout(arms: Sequence[ResolvedArm], training_ids_in_eval: Mapping[str, int]) -> Iterator[LintView]:
    for arm in arms:
        if count := training_ids_in_eval.get(arm.name, 0):
            yield LintView("F05", "E", f"{arm.arm}: {count} eval ids are training ids")


def _ema_memory(arms: Sequence[ResolvedArm]) -> Iterator[LintView]:
    for arm in arms:
        if arm.kind != TRAINER:
            continue
        ema = _config(arm)["ema"]
        half_life = ema["half_lives"][0]
        share = published_early_share(arm.steps) if ema.get("published") else early_share(half_life)
        text = f"{arm.arm}: at the last step {share:.1%} of the EMA is from the first 10 % of the run"
        if share > EARLY_EMA_ERROR:
            yield LintView("F06", "E", text)
        elif half_life > LONG_HALF_LIFE:
            yield LintView("F06", "W", f"{text} (half-life {half_life:.0%} of the run)")


def _schedule(arms: Sequence[ResolvedArm]) -> Iterator[LintView]:
    for arm in arms:
        if arm.kind != TRAINER:
            continue
        share = _config(arm)["optimizer"]["warmup_steps"] / arm.steps
        if share > LONG_WARMUP:
            yield LintView("F07", "W", f"{arm.arm}: warm-up is {share:.0%} of the run")


def _seeds(arms: Sequence[ResolvedArm]) -> Iterator[LintView]:
    contrasts = list(_contrasts(arms))
    paired = [len(set(arm.seeds) & set(base.seeds)) for arm, base in contrasts] or [len(arm.seeds) for arm in arms]
    fewest = min(paired)
    noun = "seed" if fewest == 1 else "seeds"
    kind = "paired " if contrasts else ""
    yield LintView("F12", "N", f"{arms[0].study}: {fewest} {kind}{noun}: {seed_word(fewest)}")
    for arm in arms:
        if arm.baseline and not _baseline(arm, arms):
            yield LintView("F12", "N", f"{arm.arm} is read against {arm.baseline}, which is not among these arms")
    for arm, base in contrasts:
        if alone := sorted(set(arm.seeds) - set(base.seeds)):
            listed = ", ".join(map(str, alone))
            yield LintView("F12", "W", f"unpaired seeds: {arm.arm} has {listed} and its baseline {base.arm} has not")


def _dead_switches(arms: Sequence[ResolvedArm]) -> Iterator[LintView]:
    for arm in arms:
        if arm.kind == TRAINER:
            for key, why in _dead_keys(arm):
                yield LintView("F17", "E", f"{arm.arm}: {key} is set but changes nothing ({why})")
    for arm, base in _contrasts(arms):
        if identity(arm, 0, "") == identity(base, 0, "") and not _code_differs(arm, base):
            yield LintView(
                "F17", "E", f"{arm.arm} changes nothing: it resolves to the same run as its baseline {base.arm}"
            )


def _dead_keys(arm: ResolvedArm) -> Iterator[tuple[str, str]]:
    config = _config(arm)
    for key in dict.fromkeys(each for change in arm.changes for each in _leaves(*change)):
        head, _, rest = key.partition(".")
        if head != TRAINER:
            continue
        block = config.get(rest.partition(".")[0])
        if isinstance(block, Mapping) and block.get("enabled") is False and not rest.endswith(".enabled"):
            yield key, f"{rest.partition('.')[0]}.enabled is false"
        for dead, deciding, works_with in _NEEDS:
            if rest == dead and (value := _at(config, deciding)) not in works_with:
                yield key, f"{deciding} is {value}, it belongs to {' and '.join(works_with)}"


# A key, the key that decides whether it is read, and the values it is read with.
_NEEDS = (
    ("optimizer.momentum", "optimizer.name", ("muon", "normuon")),
    ("optimizer.normuon_beta2", "optimizer.name", ("normuon",)),
    ("data.path", "data.source", ("folder", "shards")),
    ("data.index", "data.source", ("shards",)),
    ("data.samples", "data.source", ("procedural",)),
    ("repa.stop.start", "repa.stop.kind", ("linear",)),
)


def _contrasts(arms: Sequence[ResolvedArm]) -> Iterator[tuple[ResolvedArm, ResolvedArm]]:
    for arm in arms:
        if base := _baseline(arm, arms):
            yield arm, base


def _baseline(arm: ResolvedArm, arms: Sequence[ResolvedArm]) -> ResolvedArm | None:
    return next((other for other in arms if other.arm == arm.baseline and other is not arm), None)


def _code_differs(arm: ResolvedArm, base: ResolvedArm) -> bool:
    """Whether two command arms may run different code; trainer arms of one launch never do."""
    return arm.kind != TRAINER and (arm.folder != base.folder or dict(arm.code) != dict(base.code))


def _leaves(key: str, value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _leaves(f"{key}.{name}", inner)
    else:
        yield key


def _at(config: Mapping[str, Any], dotted: str) -> Any:
    value: Any = config
    for part in dotted.split("."):
        value = value[part]
    return value


def _config(arm: ResolvedArm) -> Mapping[str, Any]:
    assert arm.trainer is not None, "the fairness rules read complete trainer arms"
    return arm.trainer
