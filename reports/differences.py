"""What differs between runs besides their scores: configuration, machine and code. Pure.

Where a run was launched and where it trained may be two machines. What its process announced of itself, and what slot
and lease say of its machine, stands under "trained on"; what is only known of the launch, under "launched from".
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reports.readings import run_label
from reports.study import RunView, StudyView
from reports.whereabouts import trained_elsewhere, trained_on

NOT_SET = "(not set)"
# Packages that a reader looks for; the others stand in the data file.
PACKAGES = frozenset({"armature", "lpips", "numpy", "safetensors", "scipy", "torch", "torchvision"})
# Parts of a launch's document that describe the machine and the interpreter of the launch.
OF_THE_LAUNCH = frozenset({"python", "packages", "hardware", "variables"})
LAUNCHED, TRAINED = "launched from", "trained on"
# Parts of a resolved document that name or describe an arm and change nothing in its training.
DESCRIPTIVE = frozenset(
    {"study", "arm", "title", "hypothesis", "baseline", "changes", "extends", "seed", "seeds", "run"}
)


@dataclass(frozen=True, slots=True)
class Difference:
    """One resolved key in which an arm differs from its baseline; values as compact JSON. It is declared by the arm's
    own files, or was set by the command line of its launch, or neither."""

    arm: str
    key: str
    baseline_value: str
    arm_value: str
    declared: bool
    was_set: bool = False


def differences(study: StudyView, arm: str, baseline: str) -> tuple[Difference, ...]:
    """The resolved difference of two arms (lowest seed of each), sorted by key; empty when one has no run."""
    mine, theirs = _first(study, arm), _first(study, baseline)
    if mine is None or theirs is None:
        return ()
    keys = sorted(key for key in {*mine.config, *theirs.config} if key.partition(".")[0] not in DESCRIPTIVE)
    return tuple(
        Difference(
            arm, key, value_text(theirs.config, key), value_text(mine.config, key),
            declared=_is_named(mine.changes, key), was_set=_is_named(mine.sets, key) or _is_named(theirs.sets, key),
        )
        for key in keys
        if value_text(theirs.config, key) != value_text(mine.config, key)
    )  # fmt: skip


def ineffective(study: StudyView, arm: str, baseline: str) -> tuple[str, ...]:
    """Changes that the arm's own files declare, after which the resolved value is the baseline's all the same. What a
    command line set is meant for all arms alike."""
    mine = _first(study, arm)
    if mine is None:
        return ()
    changed = [difference.key for difference in differences(study, arm, baseline)]
    return tuple(key for key, _ in mine.changes if not any(_covers(key, one) for one in changed))


def value_text(config: Mapping[str, Any], key: str) -> str:
    """A value as compact JSON, `(not set)` when the key is missing."""
    return json.dumps(config[key], sort_keys=True, ensure_ascii=False, default=str) if key in config else NOT_SET


def provenance_rows(study: StudyView) -> tuple[tuple[str, str, str], ...]:
    """(what, value, runs) for every provenance entry; runs that agree share a row. `runs` is `all` when they all do.
    An entry of launches elsewhere is not said to be missing where a run trained on the machine of its launch."""
    flat = {run_label(run): _flat(run) for run in study.runs}
    rows = []
    for key in sorted({key for found in flat.values() for key in found}):
        group = _group(key)
        by_value: dict[str, list[str]] = {}
        for name, found in flat.items():
            if key in found or not group or any(_group(one) == group for one in found):
                by_value.setdefault(found.get(key, NOT_SET), []).append(name)
        for value, names in by_value.items():
            rows.append((key, value, "all" if len(names) == len(flat) else ", ".join(names)))
    return tuple(rows)


def shown_provenance(rows: Sequence[tuple[str, str, str]]) -> tuple[tuple[str, str, str], ...]:
    """What of the provenance the text shows: all but the packages in which runs agree and few readers look for."""
    several = {key for key, count in Counter(key for key, *_ in rows).items() if count > 1}
    kept = tuple(row for row in rows if "packages: " not in row[0] or row[0] in several or _package(row[0]) in PACKAGES)
    left = len(rows) - len(kept)
    return (*kept, ("packages", f"{left} more in data/provenance.csv", "all")) if left else kept


def _first(study: StudyView, arm: str) -> RunView | None:
    return min((run for run in study.runs if run.arm == arm), key=lambda run: run.seed, default=None)


def _is_named(changes: Sequence[tuple[str, Any]], key: str) -> bool:
    return any(_covers(changed, key) for changed, _ in changes)


def _covers(changed: str, key: str) -> bool:
    """Whether a change of one key may set the other: a mapping sets everything below it."""
    return key == changed or key.startswith(changed + ".")


def _group(key: str) -> str:
    """The part of the provenance that a key belongs to, '' for what every run has."""
    group = key.partition(": ")[0]
    return group if group in OF_THE_LAUNCH or group.startswith((LAUNCHED, TRAINED)) else ""


def _package(key: str) -> str:
    return key.rpartition(": ")[2]


def _flat(run: RunView) -> dict[str, str]:
    """Provenance with one level of nesting opened; values as plain text or compact JSON."""
    flat: dict[str, str] = {"code hash": run.code_hash} if run.code_hash else {}
    for key, value in _labelled(run).items():
        inner = value if isinstance(value, Mapping) else None
        for name, one in inner.items() if inner is not None else [("", value)]:
            text = one if isinstance(one, str) else json.dumps(one, sort_keys=True, ensure_ascii=False, default=str)
            flat[f"{key}: {name}" if name else str(key)] = text
    return flat | {f"{TRAINED}: {key}": text for key, text in trained_on(run).items()}


def _labelled(run: RunView) -> dict[str, Any]:
    """The provenance of the launch; what describes its own machine and interpreter is called so where the run did not
    train there, or not with that."""
    known = dict(run.provenance)
    python, launcher = known.pop("python", None), known.pop("launcher", None)
    if not isinstance(python, Mapping):
        return {f"{LAUNCHED}, {key}" if key in _foreign(run) else key: value for key, value in known.items()}
    if not isinstance(launcher, Mapping):  # of an earlier version, which gave any interpreter the version of its own
        launcher = {key: value for key, value in python.items() if key != "executable" or not _names_python(run)}
        is_other = _names_python(run)
    else:
        is_other = python.get("version") is None
    if not trained_elsewhere(run):
        known["python"] = {key: value for key, value in python.items() if key != "version" or not is_other}
    foreign = _foreign(run) | ({"packages"} if is_other else frozenset())
    if foreign:
        known[f"{LAUNCHED}, python"] = launcher
    return {f"{LAUNCHED}, {key}" if key in foreign - {"python"} else key: value for key, value in known.items()}


def _foreign(run: RunView) -> frozenset[str]:
    return OF_THE_LAUNCH if trained_elsewhere(run) else frozenset()


def _names_python(run: RunView) -> bool:
    return run.config.get("environment.python") is not None or run.config.get("environment.setup") is not None
