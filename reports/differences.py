"""What differs between runs besides their scores: configuration, machine and code. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reports.readings import run_label
from reports.study import RunView, StudyView

NOT_SET = "(not set)"
# Packages that a reader looks for; the others stand in the data file.
PACKAGES = frozenset({"armature", "lpips", "numpy", "safetensors", "scipy", "torch", "torchvision"})
# Parts of a resolved document that name or describe an arm and change nothing in its training.
DESCRIPTIVE = frozenset(
    {"study", "arm", "title", "hypothesis", "baseline", "changes", "extends", "seed", "seeds", "run"}
)


@dataclass(frozen=True, slots=True)
class Difference:
    """One resolved key in which an arm differs from its baseline; values as compact JSON."""

    arm: str
    key: str
    baseline_value: str
    arm_value: str
    declared: bool


def differences(study: StudyView, arm: str, baseline: str) -> tuple[Difference, ...]:
    """The resolved difference of two arms (lowest seed of each), sorted by key; empty when one has no run."""
    mine, theirs = _first(study, arm), _first(study, baseline)
    if mine is None or theirs is None:
        return ()
    keys = sorted(key for key in {*mine.config, *theirs.config} if key.partition(".")[0] not in DESCRIPTIVE)
    return tuple(
        Difference(arm, key, value_text(theirs.config, key), value_text(mine.config, key), _is_declared(mine, key))
        for key in keys
        if value_text(theirs.config, key) != value_text(mine.config, key)
    )


def ineffective(study: StudyView, arm: str, baseline: str) -> tuple[str, ...]:
    """Declared changes after which the resolved value is the baseline's all the same."""
    mine = _first(study, arm)
    if mine is None:
        return ()
    changed = [difference.key for difference in differences(study, arm, baseline)]
    return tuple(key for key, _ in mine.changes if not any(_covers(key, one) for one in changed))


def value_text(config: Mapping[str, Any], key: str) -> str:
    """A value as compact JSON, `(not set)` when the key is missing."""
    return json.dumps(config[key], sort_keys=True, ensure_ascii=False, default=str) if key in config else NOT_SET


def provenance_rows(study: StudyView) -> tuple[tuple[str, str, str], ...]:
    """(what, value, runs) for every provenance entry; runs that agree share a row. `runs` is `all` when they all do."""
    flat = {run_label(run): _flat(run) for run in study.runs}
    rows = []
    for key in sorted({key for found in flat.values() for key in found}):
        by_value: dict[str, list[str]] = {}
        for name, found in flat.items():
            by_value.setdefault(found.get(key, NOT_SET), []).append(name)
        for value, names in by_value.items():
            rows.append((key, value, "all" if len(by_value) == 1 else ", ".join(names)))
    return tuple(rows)


def shown_provenance(rows: Sequence[tuple[str, str, str]]) -> tuple[tuple[str, str, str], ...]:
    """What of the provenance the text shows: all but the packages that every run shares and few readers look for."""
    prefix = "packages: "
    kept = tuple(
        row
        for row in rows
        if not row[0].startswith(prefix) or row[2] != "all" or row[0].removeprefix(prefix) in PACKAGES
    )
    left = len(rows) - len(kept)
    return (*kept, ("packages", f"{left} more in data/provenance.csv", "all")) if left else kept


def _first(study: StudyView, arm: str) -> RunView | None:
    return min((run for run in study.runs if run.arm == arm), key=lambda run: run.seed, default=None)


def _is_declared(run: RunView, key: str) -> bool:
    return any(_covers(changed, key) for changed, _ in run.changes)


def _covers(changed: str, key: str) -> bool:
    """Whether a change of one key may set the other: a mapping sets everything below it."""
    return key == changed or key.startswith(changed + ".")


def _flat(run: RunView) -> dict[str, str]:
    """Provenance with one level of nesting opened; values as plain text or compact JSON."""
    flat: dict[str, str] = {"code hash": run.code_hash} if run.code_hash else {}
    for key, value in run.provenance.items():
        inner = value if isinstance(value, Mapping) else None
        for name, one in inner.items() if inner is not None else [("", value)]:
            text = one if isinstance(one, str) else json.dumps(one, sort_keys=True, ensure_ascii=False, default=str)
            flat[f"{key}: {name}" if name else str(key)] = text
    return flat
