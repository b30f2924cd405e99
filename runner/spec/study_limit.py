"""The arms of a launch with what their study may cost: from --max-usd, from the arms, or as it is stored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from runner.errors import SpecError, Where
from runner.spec.consistency import StoredStudy, check_study_keys
from runner.spec.models import ResolvedArm
from runner.spec.read import read_study_arms
from runner.spec.resolve import SET

LIMIT = "budget.study.max_usd"
MAX_USD = "--max-usd"


def read_arms(
    paths: Sequence[str | Path],
    sets: Sequence[str],
    seeds: str | None,
    arms: str | None,
    *,
    stored: Sequence[StoredStudy],
    amend: bool,
    max_usd: float | None,
) -> tuple[ResolvedArm, ...]:
    """As `read_study_arms`; `max_usd`, in USD, is the limit of each study. Where neither it nor an arm says a word of
    the limit, that of the stored study stays, with `amend` too. Raises as `read_study_arms` does, and says of a limit
    who asked for it."""
    said = (*sets, *(() if max_usd is None else (f"{LIMIT}={max_usd}",)))

    def read(amended: bool) -> tuple[ResolvedArm, ...]:
        return read_study_arms(paths, said, seeds, arms, stored=stored, amend=amended)

    try:
        try:
            found = read(amend)
        except SpecError as error:
            if error.where.key != LIMIT or amend:
                raise
            found = read(True)  # nothing but the stored limit was in the way, unless this raises the same
            _check_limits(found, stored, max_usd)
    except SpecError as error:
        raise _by_its_name(error, max_usd) from None
    return tuple(_kept(arm, stored) for arm in found)


def _check_limits(arms: Iterable[ResolvedArm], stored: Iterable[StoredStudy], max_usd: float | None) -> None:
    """Raises SpecError for a limit that is not the stored one, or for another key of the study that differs."""
    known = {one.study: one for one in stored}
    for arm in arms:
        if (one := known.get(arm.study)) is None:
            continue
        mine, before = arm.budget["study"]["max_usd"], _limit(one.document)
        if mine != before and not _says_nothing(arm):
            here = "no limit is asked for" if mine is None else f"{mine:g} USD"
            there = "has no limit" if before is None else f"may cost {before:g} USD"
            raise SpecError(
                Where(MAX_USD) if max_usd is not None else arm.where(LIMIT),
                f"{here}, and the stored study {arm.study} {there}",
                allowed="--amend to move the limit of the study, or none here, which leaves it as it is",
            )
        budget = one.document.get("budget") or {}
        same = {**budget, "study": {**(budget.get("study") or {}), "max_usd": mine}}
        check_study_keys([arm], [replace(one, document={**one.document, "budget": same})])


def _kept(arm: ResolvedArm, stored: Iterable[StoredStudy]) -> ResolvedArm:
    before = next((_limit(one.document) for one in stored if one.study == arm.study), None)
    if before is None or not _says_nothing(arm):
        return arm
    return replace(arm, budget={**arm.budget, "study": {**arm.budget["study"], "max_usd": before}})


def _says_nothing(arm: ResolvedArm) -> bool:
    """A limit that is null in so many words takes one away."""
    changed = any(key in ("budget", "budget.study", LIMIT) for key, _ in arm.changes)
    return arm.budget["study"]["max_usd"] is None and not changed and LIMIT not in arm.origins


def _limit(document: Mapping[str, Any]) -> float | None:
    found: float | None = ((document.get("budget") or {}).get("study") or {}).get("max_usd")
    return found


def _by_its_name(error: SpecError, max_usd: float | None) -> SpecError:
    """On its way to the arms --max-usd is a --set; a person has not typed that."""
    if max_usd is None or error.where != Where(SET, None, LIMIT):
        return error
    return type(error)(
        Where(MAX_USD), error.problem, allowed=error.allowed, nearest=error.nearest, next_command=error.next_command
    )
