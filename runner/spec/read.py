"""The front door: arm files in, resolved and checked arms out. Writes nothing."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from runner.errors import UsageError
from runner.spec.consistency import StoredStudy, check_names, check_study_keys
from runner.spec.load import load_chains
from runner.spec.models import ResolvedArm, check_webhook, environment_values
from runner.spec.resolve import parse_sets, resolve
from runner.spec.schema import nearest
from runner.spec.seeds import parse_seeds
from runner.spec.trainer_check import check_trainer_arms


def read_study_arms(
    paths: Sequence[str | Path],
    sets: Sequence[str] = (),
    seeds: str | None = None,
    arms: str | None = None,
    *,
    stored: Sequence[StoredStudy] = (),
    amend: bool = False,
    variables: Mapping[str, str] | None = None,
) -> tuple[ResolvedArm, ...]:
    """The arms in `paths`, in that order, complete and consistent with each other and with what is stored.

    `sets` (key=value), `seeds` (0-5) and `arms` (A,C) are the texts of the command line. `amend` lets study-level keys
    differ from the stored ones. `variables` is where {from: NAME} is looked up, by default the environment of this
    process; the values themselves are not kept. Raises SpecError or UsageError (exit code 2), InfrastructureError (3).
    """
    if not paths:
        raise UsageError("no arm file is named; next: runner check arms/*.yaml")
    changes = parse_sets(sets)
    own_seeds = None if seeds is None else parse_seeds(seeds)
    found = [resolve(chain.documents, chain.paths, changes, own_seeds) for chain in load_chains(paths)]
    check_names(found, stored)
    check_study_keys(found, () if amend else stored)
    chosen = found if arms is None else _named(found, arms)
    for arm in chosen:
        environment_values(arm, os.environ if variables is None else variables)
        check_webhook(arm, os.environ if variables is None else variables)
    return check_trainer_arms(chosen)


def _named(arms: Sequence[ResolvedArm], text: str) -> list[ResolvedArm]:
    """The arms whose names are listed in `text`, in the order of the files."""
    wanted = [name.strip() for name in text.split(",")]
    known = {arm.arm for arm in arms}
    for name in wanted:
        if name not in known:
            close = nearest(name, known)
            hint = f"; did you mean {close!r}?" if close else ""
            raise UsageError(f"--arms {text}: there is no arm {name!r}; allowed: {', '.join(sorted(known))}{hint}")
    return [arm for arm in arms if arm.arm in wanted]
