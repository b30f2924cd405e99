"""Documents into a resolved arm: bases under the arm, then changes, then the command line. Pure.

Maps merge key by key; lists and scalars replace. Every key remembers the file and line that had the last word.
"""

from __future__ import annotations

import math
import os.path
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from runner.errors import SpecError, UsageError, Where
from runner.records import Policy, Primary, Rescue, Resources
from runner.spec.models import COMMAND, DEFAULT_DETECTORS, DEFAULT_TRAINER_PRIMARY, TRAINER, ResolvedArm
from runner.spec.rescue import BadChange, with_changes
from runner.spec.rules import check_rules
from runner.spec.schema import TOP_LEVEL_KEYS, ArmBlock, Mistake, PolicyBlock, nearest, validate
from runner.spec.yaml12 import Document, Path, dotted, parse_value

SET = "--set"
RELATIVE_TO_THEIR_FILE: tuple[Path, ...] = (
    ("trainer", "data", "path"),
    ("trainer", "validation", "pose", "detector"),
    ("environment", "python"),
    ("notify", "command", 0),
)

Origins = dict[Path, tuple[str, int | None]]


def resolve(
    documents: Sequence[Document],
    paths: Sequence[str],
    sets: Sequence[tuple[str, Any]] = (),
    seeds: tuple[int, ...] | None = None,
) -> ResolvedArm:
    """The arm in `documents` (outermost base first, the arm last; `paths` are their absolute paths).

    `sets` are dotted keys with values that go over everything else; `seeds` replaces the arm's own. Raises SpecError
    with file, line and key. The trainer block is taken as it stands: only the trainer can check it.
    """
    file = documents[-1].file
    folders = {document.file: os.path.dirname(path) for document, path in zip(documents, paths, strict=True)}
    origins: Origins = {}
    try:
        values = _merged(documents, origins)
        changes = _take_changes(values, origins)
        for key, value in changes:
            values = _changed(values, key, value, origins.get(("changes", key), (file, None)), origins)
        for key, value in sets:
            values = _changed(values, key, value, (SET, None), origins)
        if seeds is not None:
            values["seeds"] = list(seeds)
        _refuse_infinities(values, ())
        values = {key: value for key, value in values.items() if value is not None}
        for path in RELATIVE_TO_THEIR_FILE:
            _make_absolute(values, path, origins, folders)
        block = validate(values, ArmBlock)
        check_rules(block)
        rescued = _rescued(block)
    except Mistake as mistake:
        raise _located(mistake, origins, file) from None
    return _arm(block, (*changes, *sets), origins, file, tuple(reversed(paths)), rescued)


def parse_sets(texts: Sequence[str]) -> tuple[tuple[str, Any], ...]:
    """`key=value` texts of the command line; the value is YAML. Raises UsageError or SpecError."""
    pairs = []
    for text in texts:
        key, sign, value = text.partition("=")
        if not sign or not key.strip():
            raise UsageError(f"--set {text}: allowed: key=value, for example --set trainer.steps=200")
        pairs.append((key.strip(), parse_value(value, f"{SET} {key.strip()}")))
    return tuple(pairs)


def _merged(documents: Sequence[Document], origins: Origins) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for document in documents:
        layer = {key: value for key, value in document.values.items() if key != "extends"}
        places: Origins = {path: (document.file, line) for path, line in document.lines.items()}
        values = _overlaid(values, layer, (), places, origins)
    return values


def _overlaid(
    under: Mapping[str, Any], over: Mapping[str, Any], at: Path, places: Origins, origins: Origins
) -> dict[str, Any]:
    """`over` on top of `under`; moves the origins of what it replaces."""
    values = dict(under)
    for key, value in over.items():
        path = (*at, key)
        old = values.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            values[key] = _overlaid(old, value, path, places, origins)
        else:
            values[key] = value
            _replace_origins(path, places, origins)
            origins[path] = places[path]
    return values


def _replace_origins(path: Path, places: Origins, origins: Origins) -> None:
    size = len(path)
    for old in [each for each in origins if each[:size] == path]:
        del origins[old]
    origins.update({each: place for each, place in places.items() if each[:size] == path})


def _take_changes(values: dict[str, Any], origins: Origins) -> tuple[tuple[str, Any], ...]:
    changes = values.pop("changes", None)
    if changes is None:
        return ()
    if not isinstance(changes, dict):
        raise Mistake(("changes",), f"{changes!r:.60} is not allowed", allowed="dotted keys with values")
    return tuple(changes.items())


def _changed(
    values: dict[str, Any], key: str, value: Any, place: tuple[str, int | None], origins: Origins
) -> dict[str, Any]:
    """The document with one dotted key set; the blocks on its way are made where they are missing."""
    parts = key.split(".")
    known = tuple(name for name in TOP_LEVEL_KEYS if name not in ("extends", "changes"))
    at = ("changes", key)
    origins.setdefault(at, place)
    if parts[0] not in known:
        close = nearest(key, known) or nearest(parts[0], known)
        raise Mistake(at, f"there is no key {key} to change", allowed=known, nearest=close)
    if "" in parts:
        raise Mistake(at, f"{key!r} has an empty part", allowed="dotted keys such as trainer.optimizer.lr")
    _refuse_wrong_kind(values, parts[0], at)
    inner: Any = values
    for count, part in enumerate(parts[:-1], start=1):
        inner = inner.get(part)
        if inner is None:
            break
        if not isinstance(inner, Mapping):
            raise Mistake(
                at, f"{'.'.join(parts[:count])} is a value, there is no key below it", allowed="existing keys"
            )
    layer = value
    for part in reversed(parts):
        layer = {part: layer}
    return _overlaid(values, layer, (), _AllAt(place), origins)


def _refuse_wrong_kind(values: Mapping[str, Any], head: str, at: Path) -> None:
    """A change must not turn a trainer arm into half a command arm, or the other way round."""
    if head == TRAINER and COMMAND in values and TRAINER not in values:
        raise Mistake(at, "this arm has a command and no trainer", allowed="command, metrics, steps")
    if head in (COMMAND, "metrics", "steps") and TRAINER in values and COMMAND not in values:
        close = "trainer.steps" if head == "steps" else None
        raise Mistake(at, "this arm has a trainer and no command", allowed="trainer.…", nearest=close)


class _AllAt(dict[Path, tuple[str, int | None]]):
    """Places of a change: whatever it writes, it writes there."""

    def __init__(self, place: tuple[str, int | None]) -> None:
        super().__init__()
        self._place = place

    def __missing__(self, path: Path) -> tuple[str, int | None]:
        return self._place


def _refuse_infinities(value: Any, path: Path) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise Mistake(path, f"{value} is not allowed", allowed="a finite number")
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _refuse_infinities(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            _refuse_infinities(inner, (*path, index))


def _located(mistake: Mistake, origins: Origins, file: str) -> SpecError:
    path = mistake.path
    key = path[1] if path[:1] == ("changes",) and len(path) == 2 else dotted(path)
    place = next((origins[path[:size]] for size in range(len(path), 0, -1) if path[:size] in origins), (file, None))
    command = f"runner check {shlex.quote(file)}"
    return SpecError(
        Where(*place, str(key)), mistake.problem, allowed=mistake.allowed, nearest=mistake.nearest, next_command=command
    )


def _make_absolute(values: dict[str, Any], path: Path, origins: Origins, folders: Mapping[str, str]) -> None:
    """Turn a relative path in the document into an absolute one: runs work elsewhere than where the file lies."""
    value = _value_at(values, path)
    if not isinstance(value, str) or os.path.isabs(value) or not _is_path(path, value):
        return
    file = next((origins[path[:size]][0] for size in range(len(path), 0, -1) if path[:size] in origins), "")
    if file not in folders:
        raise Mistake(path, f"{value!r} is relative to nothing on a command line", allowed="an absolute path")
    absolute = os.path.normpath(os.path.join(folders[file], value))
    values[str(path[0])] = _with_value(values[str(path[0])], path[1:], absolute)


def _value_at(values: Any, path: Path) -> Any:
    """What stands at a path of keys and list places; None where nothing does."""
    for part in path:
        if isinstance(values, Mapping):
            values = values.get(part)
        elif isinstance(values, list) and isinstance(part, int) and part < len(values):
            values = values[part]
        else:
            return None
    return values


def _with_value(values: Any, path: Path, value: Any) -> Any:
    """A copy with one value replaced; bases share their blocks, so nothing is changed in place."""
    if not path:
        return value
    copy: Any = list(values) if isinstance(values, list) else dict(values)
    copy[path[0]] = _with_value(copy[path[0]], path[1:], value)
    return copy


def _is_path(path: Path, value: str) -> bool:
    """A program without a slash is a name to be found in PATH; what begins with a placeholder is a path elsewhere, and
    what begins like an address is none."""
    if value.startswith(("{data:", "{environment}", "https://", "http://", "hub:")):
        return False
    return path[0] == "trainer" or "/" in value


def _rescued(block: ArmBlock) -> dict[str, Any] | None:
    """The trainer block of a rescued run; None where nothing would change."""
    if block.trainer is None or not block.policy.rescue.changes:
        return None
    found: dict[str, Any] = block.trainer
    for key, value in block.policy.rescue.changes.items():
        try:
            found = with_changes(found, {key: value})
        except BadChange as error:
            raise Mistake(("policy", "rescue", "changes", key), error.problem, allowed=error.allowed) from None
    return found


def _policy(block: PolicyBlock) -> Policy:
    rescue = Rescue(block.rescue.source, block.rescue.changes, block.rescue.max)
    return Policy({**DEFAULT_DETECTORS, **block.detectors}, block.tail, rescue, block.autopsy_s)


def _arm(
    block: ArmBlock,
    changes: tuple[tuple[str, Any], ...],
    origins: Origins,
    file: str,
    sources: tuple[str, ...],
    rescued: dict[str, Any] | None,
) -> ResolvedArm:
    primary = None if block.primary is None else Primary(**block.primary.model_dump())
    is_trainer = block.trainer is not None
    return ResolvedArm(
        file=file,
        path=sources[0],
        folder=os.path.dirname(sources[0]),
        sources=sources,
        study=block.study,
        arm=block.arm,
        title=block.title or block.arm,
        hypothesis=block.hypothesis,
        baseline=None if block.baseline == block.arm else block.baseline,
        seeds=tuple(block.seeds),
        kind=TRAINER if is_trainer else COMMAND,
        trainer=_with_best(block.trainer, primary or DEFAULT_TRAINER_PRIMARY) if block.trainer is not None else None,
        command=None if block.command is None else tuple(block.command),
        metrics=None if block.metrics is None else block.metrics.model_dump(exclude_none=True),
        steps=block.steps or 0,
        primary=primary or (DEFAULT_TRAINER_PRIMARY if is_trainer else None),
        resources=Resources(**block.resources.model_dump()),
        policy=_policy(block.policy),
        environment=block.environment.model_dump(),
        env=dict(block.env),
        data=dict(block.data),
        code=block.code.model_dump(),
        budget=block.budget.model_dump(),
        retries=block.retries,
        notify=None if block.notify is None else block.notify.model_dump(),
        changes=changes,
        origins={dotted(path): place for path, place in origins.items()},
        rescue_trainer=None if rescued is None else _with_best(rescued, primary or DEFAULT_TRAINER_PRIMARY),
    )


def _with_best(trainer: dict[str, Any], primary: Primary) -> dict[str, Any]:
    """The trainer block with checkpoint.keep.best filled from the primary metric, unless the arm itself names one."""
    checkpoint = trainer.get("checkpoint") or {}
    keep = (checkpoint.get("keep") or {}) if isinstance(checkpoint, dict) else None
    if not isinstance(keep, dict) or keep.get("best") is not None:
        return trainer
    best = {"metric": primary.metric, "direction": primary.direction}
    return {**trainer, "checkpoint": {**checkpoint, "keep": {**keep, "best": best}}}
