"""What the arms of one study must have in common, with each other and with what is stored. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runner.errors import SpecError
from runner.spec.models import ResolvedArm, study_document


@dataclass(frozen=True, slots=True)
class StoredStudy:
    """A study that this home knows: its study-level keys, the file they came from, and the names of its arms."""

    study: str
    document: Mapping[str, Any]
    source: str
    arms: tuple[str, ...] = ()


def check_names(arms: Sequence[ResolvedArm], stored: Sequence[StoredStudy] = ()) -> None:
    """Raises SpecError when two arms share a name, or a name differs from another one only in upper and lower case.

    A baseline that nobody has is fine (it may come with a later launch), unless only its case is wrong.
    """
    studies = {known.study.lower(): (known.study, known.source) for known in stored}
    taken = {(known.study.lower(), arm.lower()): (arm, known.source) for known in stored for arm in known.arms}
    files: dict[tuple[str, str], str] = {}
    for arm in arms:
        study, file = studies.setdefault(arm.study.lower(), (arm.study, arm.file))
        if study != arm.study:
            raise _clash(arm, "study", f"{arm.study!r} differs from {study!r} ({file}) only in case", study)
        key = (arm.study.lower(), arm.arm.lower())
        if key in files:
            raise _clash(arm, "arm", f"{arm.arm!r} is also the name of the arm in {files[key]}", None)
        files[key] = arm.file
        known, source = taken.get(key, (arm.arm, arm.file))
        if known != arm.arm:
            raise _clash(arm, "arm", f"{arm.arm!r} differs from {known!r} ({source}) only in case", known)
    names = {key: name for key, (name, _) in taken.items()} | {
        (arm.study.lower(), arm.arm.lower()): arm.arm for arm in arms
    }
    for arm in arms:
        close = names.get((arm.study.lower(), (arm.baseline or "").lower()), arm.baseline)
        if close != arm.baseline:
            raise _clash(arm, "baseline", f"{arm.baseline!r} differs from the arm {close!r} only in case", close)


def check_study_keys(arms: Sequence[ResolvedArm], stored: Sequence[StoredStudy] = ()) -> None:
    """Raises SpecError, naming both files and the key, when study-level keys differ inside a study."""
    first = {known.study: (known.source, known.document) for known in stored}
    kept = frozenset(first)
    for arm in arms:
        document = study_document(arm)
        file, expected = first.setdefault(arm.study, (arm.file, document))
        difference = _first_difference(expected, document, "")
        if difference is None:
            continue
        key, wanted, found = difference
        problem = f"is {found!r:.80} here and {wanted!r:.80} in {file}, and one study has one"
        allowed = f"{wanted!r:.80}, or --amend to replace what is stored" if arm.study in kept else f"{wanted!r:.80}"
        raise SpecError(arm.where(key), problem, allowed=allowed, next_command=_recheck(arm))


def _first_difference(expected: Any, found: Any, key: str) -> tuple[str, Any, Any] | None:
    if isinstance(expected, Mapping) and isinstance(found, Mapping):
        for name in dict.fromkeys([*expected, *found]):
            inner = f"{key}.{name}" if key else name
            if difference := _first_difference(expected.get(name), found.get(name), inner):
                return difference
        return None
    return None if expected == found else (key, expected, found)


def _clash(arm: ResolvedArm, key: str, problem: str, close: str | None) -> SpecError:
    return SpecError(
        arm.where(key),
        problem,
        allowed="names that differ whatever the case",
        nearest=close,
        next_command=_recheck(arm),
    )


def _recheck(arm: ResolvedArm) -> str:
    return f"runner check {shlex.quote(arm.file)}"
