"""`runner backtest FILE|STUDY`: what a policy would have done to recorded curves. Reads only."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from difflib import get_close_matches
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from runner.errors import EXIT_OK, InfrastructureError, SpecError, UsageError, Where
from runner.home import find_home
from runner.judge import LEVEL_NAMES
from runner.judge.backtest import ARMED, RecordedArm, Replay, replay_study
from runner.judge.levels import Scaling, read_scaling
from runner.judge.recorded import CurveMistake, read_curves_file
from runner.records import Policy, Severity
from runner.screen import printable
from runner.spec.models import DEFAULT_DETECTORS, DETECTOR_NAMES
from runner.spec.yaml12 import parse

SEVERITIES = tuple(str(one) for one in Severity)
KEYS = ("study", "arm", "verdict", "action", "step", "warn_step", "rule", "evidence", "hours_saved")


def backtest(
    home_path: Path | None,
    curves: str,
    policy: str | None,
    scale: tuple[str, ...],
    usd_per_hour: float | None,
    *,
    as_json: bool,
) -> int:
    """Replay every study of a file, or one study of the home, and print what would have become of each arm."""
    scaling = _scaling(scale)
    arms, own = _arms(home_path, curves)
    chosen = _policy(policy, own)
    pairs = [
        pair
        for _, group in groupby(arms, key=lambda one: one.study)
        for pair in _replayed(list(group), chosen, scaling)
    ]
    results = [replay for _, replay in pairs]
    if as_json:
        print(json.dumps([_document(*pair) for pair in pairs], allow_nan=False))
        return EXIT_OK
    console = Console(highlight=False, soft_wrap=True)
    console.print(_table(results))
    for line in _summary(pairs, usd_per_hour):
        console.print(printable(line), markup=False)
    return EXIT_OK


def _replayed(group: list[RecordedArm], policy: Policy, scaling: Scaling) -> Iterable[tuple[RecordedArm, Replay]]:
    return zip(group, replay_study(group, policy=policy, scaling=scaling), strict=True)


def _scaling(texts: tuple[str, ...]) -> Scaling:
    try:
        return read_scaling(texts, LEVEL_NAMES)
    except ValueError as error:
        raise UsageError(f"--scale-thresholds: {error}") from None


def _arms(home_path: Path | None, curves: str) -> tuple[list[RecordedArm], Policy | None]:
    """The arms, those of a study together, and the policy that a study of ours has."""
    path = Path(curves)
    if os.path.isfile(path):  # unlike the method, it takes a folder that may not be entered for one without the file
        return _arms_of_file(path), None
    from runner.store.database import reading
    from runner.store.queries import require_home
    from runner.store.recorded import recorded_study

    home = find_home(home_path)
    if os.sep in curves or (path.suffix and not home.database.is_file()):  # a study may have a dot in its name
        raise UsageError(f"there is no file {curves}; next: runner backtest STUDY, or the path of a file of curves")
    require_home(home)
    with reading(home) as connection:
        return recorded_study(connection, home, curves)


def _arms_of_file(path: Path) -> list[RecordedArm]:
    try:
        arms = read_curves_file(path.read_text(encoding="utf-8-sig"), path.stem)
    except (CurveMistake, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: {error}") from None
    except OSError as error:
        raise InfrastructureError(f"{path} cannot be read: {error.strerror}") from None
    order = {study: index for index, study in enumerate(dict.fromkeys(one.study for one in arms))}
    return sorted(arms, key=lambda one: order[one.study])


def _policy(text: str | None, own: Policy | None) -> Policy:
    if text is None:
        return ARMED if own is None else own
    if text == "armed":
        return ARMED
    if text == "default":
        return Policy(DEFAULT_DETECTORS)
    if text == "own":
        if own is None:
            raise UsageError("--policy own: a file of curves has no policy of its own; allowed: armed, default, …")
        return own
    if "=" in text:
        pairs = dict(part.partition("=")[::2] for part in text.split(","))
        return Policy(_detectors({name.strip(): severity.strip() for name, severity in pairs.items()}, "--policy"))
    return _policy_of_file(Path(text))


def _policy_of_file(path: Path) -> Policy:
    """The `policy` block of a YAML file: an arm, a base, or just that block."""
    if not path.is_file():
        raise UsageError(
            f"--policy {path}: there is no such file; allowed: armed, own, default, DETECTOR=severity,…, or a YAML file"
        )
    block = parse(path.read_bytes(), str(path)).values.get("policy")
    if not isinstance(block, Mapping):
        raise SpecError(Where(str(path), None, "policy"), "is no block of keys", allowed="detectors, tail")
    detectors = block.get("detectors", {})
    if not isinstance(detectors, Mapping):
        raise SpecError(Where(str(path), None, "policy.detectors"), "is no block", allowed=DETECTOR_NAMES)
    tail = block.get("tail", Policy().tail)
    if isinstance(tail, bool) or not isinstance(tail, int | float) or not 0 <= tail < 1:
        raise SpecError(Where(str(path), None, "policy.tail"), f"{tail!r:.40} is not allowed", allowed="0 to below 1")
    return Policy({**DEFAULT_DETECTORS, **_detectors(detectors, str(path))}, float(tail))


def _detectors(values: Mapping[str, Any], where: str) -> dict[str, str]:
    for name, severity in values.items():
        if name not in DETECTOR_NAMES:  # those of live processes have nothing to say about curves, and no harm in it
            close = get_close_matches(str(name), DETECTOR_NAMES, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise UsageError(f"{where}: {name!r:.60} is no detector; allowed: {', '.join(DETECTOR_NAMES)}{hint}")
        if severity not in SEVERITIES:
            raise UsageError(f"{where}: {name}: {severity!r:.60}; allowed: {', '.join(SEVERITIES)}")
    return dict(values)


def _document(arm: RecordedArm, replay: Replay) -> dict[str, Any]:
    values = asdict(replay)
    if arm.as_written is not None:
        values["study"], values["arm"] = arm.as_written
    saved = replay.hours_saved
    return {**{key: values[key] for key in KEYS}, "hours_saved": None if saved is None else round(saved, 4)}


# ---- for a person ----------------------------------------------------------------------------------------------------


def _table(results: Sequence[Replay]) -> Table:
    table = Table(box=None, pad_edge=False)
    several = len({one.study for one in results}) > 1
    for name in (*(("study",) if several else ()), "arm", "verdict", "action", "warned at", "at step", "hours saved"):
        table.add_column(name, justify="right" if name in ("warned at", "at step", "hours saved") else "left")
    for one in results:
        cells = [one.arm, one.verdict, one.action, _shown(one.warn_step), _shown(one.step), _hours(one.hours_saved)]
        table.add_row(*(Text(printable(cell)) for cell in ([one.study] if several else []) + cells))
    return table


def _summary(pairs: Sequence[tuple[RecordedArm, Replay]], usd_per_hour: float | None) -> list[str]:
    stopped = [replay for _, replay in pairs if replay.action == "abort"]
    lines = ["", *(f"{one.arm}: {one.rule}: {one.reason}" for _, one in pairs if one.rule), ""]
    lines.append(f"{len(stopped)} of {len(pairs)} arms would have been stopped.")
    known = [one.hours_saved for one in stopped if one.hours_saved is not None]
    total = sum(max(arm.hours.values()) for arm, _ in pairs if arm.hours)
    if total > 0:
        saved = sum(known)
        money = "" if usd_per_hour is None else f", {saved * usd_per_hour:.2f} USD at {usd_per_hour:g} an hour"
        lines.append(f"Saved: {saved:.2f} of {total:.2f} hours ({100 * saved / total:.1f} %){money}.")
    labelled = [(arm, replay) for arm, replay in pairs if arm.label is not None]
    if labelled:
        lines += _against_labels(labelled)
    return lines


def _against_labels(labelled: Sequence[tuple[RecordedArm, Replay]]) -> list[str]:
    healthy = [replay for arm, replay in labelled if arm.label and not arm.label.sick]
    sick = [(arm, replay) for arm, replay in labelled if arm.label and arm.label.sick]
    false = [one for one in healthy if one.action == "abort"]
    found = [one for _, one in sick if one.action in ("abort", "verdict_only")]
    early = [
        one
        for arm, one in sick
        if one.action == "abort" and arm.label and arm.label.onset is not None and (one.step or 0) < arm.label.onset
    ]
    lines = [
        f"Labels: {len(false)} of {len(healthy)} healthy arms stopped by mistake, {len(found)} of {len(sick)} sick"
    ]
    lines[0] += f" arms recognised, {len(early)} of them before they went bad."
    return lines + [f"  false abort: {one.study}/{one.arm} at step {one.step} ({one.rule})" for one in false[:20]]


def _shown(step: int | None) -> str:
    return "" if step is None else f"{step}"


def _hours(hours: float | None) -> str:
    return "" if hours is None else f"{hours:.2f}"
