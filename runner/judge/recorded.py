"""Curves that others recorded, as arms that can be replayed. Pure: text in, arms out.

Two layouts are read: one JSON object with an arm's checkpoints under each name, as the prx-tg repository publishes its
ablation, and JSON lines with one arm each.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from runner.judge.backtest import Label, RecordedArm
from runner.metric_formats import MAX_STEP
from runner.records import DeclaredEvent, Primary, Series

PRIMARY = "val/recon_lpips"
# What the checkpoints of the published layout call their metrics, and our names for them.
CHECKPOINT_NAMES = {
    "recon_lpips": PRIMARY,
    "recon_rmse": "val/recon_rmse",
    "text_lpips": "val/text_lpips",
    "text_manip_delta": "val/text_manip_delta",
    "train_loss": "train/loss",
    "grad_norm": "train/grad_norm",
}
METRIC = "val/metric"
_KEYS = frozenset(
    {
        "study", "arm", "steps_total", "events", "val_steps", "val_metric", "log_steps", "train_loss", "grad_norm",
        "direction", "label", "hours",
    }
)  # fmt: skip


class CurveMistake(ValueError):
    """Something in a file of curves that cannot be replayed; the text says where, and what was allowed."""


def read_curves_file(text: str, study: str) -> list[RecordedArm]:
    """The arms of a file in either layout, in its order; `study` names what a file of one study does not.

    Raises CurveMistake; nothing is skipped silently.
    """
    if not text.strip():
        raise CurveMistake("the file is empty; allowed: one JSON object of arms, or one arm a line")
    try:
        document = _parsed(text)
    except ValueError as error:
        if not _is_json(text.lstrip().partition("\n")[0]):
            raise CurveMistake(f"no JSON ({error}); allowed: one JSON object of arms, or one arm a line") from None
        document = None
    if isinstance(document, dict) and document.keys().isdisjoint(("steps_total", "val_metric", "log_steps")):
        if not document:
            raise CurveMistake("the file holds no arm; allowed: one JSON object of arms, or one arm a line")
        return [_from_checkpoints(study, name, arm) for name, arm in document.items()]
    return arms_from_jsonl(text)


def arms_from_jsonl(text: str) -> list[RecordedArm]:
    """One arm a line (contract: `study`, `arm`, `steps_total`, `val_steps`, `val_metric`, `log_steps`, `train_loss` …).

    null, "nan", "inf" and "-inf" are values that are not finite. Raises CurveMistake with the line's number.
    """
    arms: list[RecordedArm] = []
    seen: set[tuple[str, str]] = set()
    for number, line in enumerate(text.split("\n"), start=1):  # names may hold what else ends a line in Unicode
        if not line.strip():
            continue
        try:
            values = _parsed(line)
        except ValueError as error:
            raise CurveMistake(f"line {number}: no JSON ({error}); allowed: one object a line") from None
        arm = _from_line(f"line {number}", values)
        if (arm.study, arm.arm) in seen:
            raise CurveMistake(f"line {number}: study {arm.study} has an arm {arm.arm} already")
        seen.add((arm.study, arm.arm))
        arms.append(arm)
    return arms


def _from_line(where: str, values: Any) -> RecordedArm:
    if not isinstance(values, Mapping):
        raise CurveMistake(f"{where}: {values!r:.40} is no object")
    for key in ("study", "arm", "steps_total"):
        if key not in values:
            raise CurveMistake(f"{where}: {key} is missing; allowed: {', '.join(sorted(_KEYS))}")
    for key in ("study", "arm"):
        if not isinstance(values[key], str | int) or isinstance(values[key], bool) or values[key] == "":
            raise CurveMistake(f"{where}: {key} {values[key]!r:.40}; allowed: a name or a number")
    steps_total = _budget(where, values["steps_total"])
    direction = values.get("direction", "min")
    if direction not in ("min", "max"):
        raise CurveMistake(f"{where}: direction {direction!r:.40}; allowed: min, max")
    series = {}
    for name, steps_key, values_key in (
        (METRIC, "val_steps", "val_metric"), ("train/loss", "log_steps", "train_loss"),
        ("train/grad_norm", "log_steps", "grad_norm"),
    ):  # fmt: skip
        if values.get(values_key) is not None:
            series[name] = _series(f"{where}: {values_key}", name, values.get(steps_key), values[values_key])
    if not any(one.steps for one in series.values()):
        raise CurveMistake(f"{where}: no point at all; allowed: val_steps with val_metric, log_steps with train_loss")
    return RecordedArm(
        study=str(values["study"]),
        arm=str(values["arm"]),
        steps_total=steps_total,
        series=series,
        primary=Primary(METRIC, direction) if METRIC in series else None,
        events=tuple(_events(where, values.get("events"))),
        hours=_hours(where, values),
        label=_label(where, values.get("label")),
        as_written=(values["study"], values["arm"]),
    )


def _from_checkpoints(study: str, name: str, arm: Any) -> RecordedArm:
    points = arm.get("checkpoints") if isinstance(arm, Mapping) else None
    if not _is_list(points) or not points:
        raise CurveMistake(f"arm {name}: no checkpoints; allowed: {{arm: {{checkpoints: [{{step, recon_lpips, …}}]}}}}")
    where = f"arm {name}"
    for point in points:
        if not isinstance(point, Mapping) or not _is_count(point.get("step")):
            raise CurveMistake(f"{where}: a checkpoint without a step; allowed: whole numbers from 0")
    series = {}
    for key, ours in CHECKPOINT_NAMES.items():
        there = [point for point in points if key in point]
        if there:
            steps = [point["step"] for point in there]
            series[ours] = _series(f"{where}: {key}", ours, steps, [point[key] for point in there])
    if not series:
        raise CurveMistake(f"{where}: none of its checkpoints holds {', '.join(CHECKPOINT_NAMES)}")
    told = [(point["step"], point.get("elapsed_hours")) for point in points]
    budget = _budget(where, arm.get("steps_total", max(point["step"] for point in points)))
    primary = next((one for one in (PRIMARY, "val/recon_rmse") if one in series), None)
    return RecordedArm(
        study, name, budget, series, None if primary is None else Primary(primary),
        hours=_known_hours(f"{where}: elapsed_hours", told),
        label=_label(where, arm.get("label") if isinstance(arm.get("label"), Mapping) else None),
    )  # fmt: skip


def _series(where: str, name: str, steps: Any, values: Any) -> Series:
    if not _is_list(steps) or not _is_list(values) or len(steps) != len(values):
        raise CurveMistake(f"{where}: as many values as steps are needed")
    if not all(_is_count(step) for step in steps):
        raise CurveMistake(f"{where}: steps are whole numbers from 0")
    if any(after <= before for before, after in pairwise(steps)):
        raise CurveMistake(f"{where}: steps must rise")
    return Series(name, tuple(steps), tuple(_number(where, value) for value in values))


def _number(where: str, value: Any) -> float:
    if value is None:
        return math.nan
    if isinstance(value, str) and value in ("nan", "inf", "-inf"):
        return float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise CurveMistake(f"{where}: {value!r:.40} is no number; allowed: numbers, null, nan, inf, -inf")
    try:
        return float(value)
    except OverflowError:
        raise CurveMistake(f"{where}: {f'{value}':.20}… is too large for a number") from None


def _events(where: str, events: Any) -> Iterator[DeclaredEvent]:
    if events is not None and not _is_list(events):
        raise CurveMistake(f"{where}: events: {events!r:.60}; allowed: a list of [step, name]")
    for event in events or ():
        if not _is_list(event) or len(event) != 2 or not _is_count(event[0]) or not isinstance(event[1], str):
            raise CurveMistake(f"{where}: events: {event!r:.60}; allowed: [step, name]")
        yield DeclaredEvent(event[0], event[1])


def _label(where: str, label: Any) -> Label | None:
    if label is None:
        return None
    if not isinstance(label, Mapping) or not isinstance(label.get("sick"), bool):
        raise CurveMistake(f'{where}: label {label!r:.60}; allowed: {{"sick": true or false, "onset": step or null}}')
    onset = label.get("onset")
    if onset is not None and (isinstance(onset, bool) or not isinstance(onset, int | float) or not _is_finite(onset)):
        raise CurveMistake(f"{where}: label.onset {onset!r:.40} is no step; allowed: a number, null")
    return Label(label["sick"], None if onset is None else round(onset))


def _hours(where: str, values: Mapping[str, Any]) -> dict[int, float]:
    """Hours since the start, one for each validation, where a file has them."""
    hours, steps = values.get("hours"), values.get("val_steps")
    if hours is None:
        return {}
    if not isinstance(hours, list) or not isinstance(steps, list) or len(hours) != len(steps):
        raise CurveMistake(f"{where}: hours: one for each of val_steps")
    if not all(_is_count(step) for step in steps):
        raise CurveMistake(f"{where}: val_steps: steps are whole numbers from 0")
    return _known_hours(f"{where}: hours", zip(steps, hours, strict=True))


def _known_hours(where: str, told: Iterable[tuple[int, Any]]) -> dict[int, float]:
    """Hours by step; null means that nobody knows, and every other must be a time."""
    hours = {step: _number(where, one) for step, one in told if one is not None}
    bad = next((one for one in hours.values() if not 0 <= one < math.inf), None)
    if bad is not None:
        raise CurveMistake(f"{where}: {bad!r:.40} is no time; allowed: hours from 0, null")
    return hours


def _budget(where: str, value: Any) -> int:
    if not _is_count(value) or value < 1:
        raise CurveMistake(f"{where}: steps_total {value!r:.40} is no number of steps above 0")
    return int(value)


def _parsed(text: str) -> Any:
    """The JSON value of a text. Raises ValueError where there is none, and for a key that stands there twice."""
    try:
        return json.loads(text, object_pairs_hook=_object)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _is_json(text: str) -> bool:
    try:
        _parsed(text)
    except ValueError:
        return False
    return True


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for index, (name, _) in enumerate(pairs) if name in dict(pairs[:index]))
        raise ValueError(f"{twice!r:.60} stands there twice")
    return found


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def _is_finite(value: float) -> bool:
    return abs(value) < MAX_STEP


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MAX_STEP
