"""Which files of a run folder come home: everything but the checkpoints that nobody will read again."""

from __future__ import annotations

import re
from collections.abc import Iterable

LAST_WRITTEN = "state.json"
"""The file that makes a checkpoint complete."""

_CHECKPOINT = re.compile(r"checkpoints/step_(\d{6,12})/")
_ASIDE = re.compile(r"checkpoints/before-attempt-\d+/")


def checkpoint_step(name: str) -> int | None:
    """The step of the checkpoint that a file of a run folder (a path with /) belongs to; None for other files."""
    match = _CHECKPOINT.match(name)
    return int(match[1]) if match else None


def kept_checkpoints(
    names: Iterable[str], best_step: int | None, others: frozenset[int] = frozenset()
) -> frozenset[int]:
    """Steps of the checkpoints to bring home, given all file names of a run folder: the last complete one, and those of
    `best_step` and of `others` where they are complete. One is complete when it holds the file that is written last."""
    steps = {checkpoint_step(name) for name in names if name.endswith(f"/{LAST_WRITTEN}")}
    complete = {step for step in steps if step is not None}
    return frozenset([max(complete)] if complete else []) | (complete & {best_step, *others})


def left_behind(
    names: Iterable[str], best_step: int | None, others: frozenset[int] = frozenset()
) -> tuple[dict[str, str], dict[str, str]]:
    """Files that are not wanted and why, then what is wanted and not there. What began from one of `others` may have
    begun there already: they are not missed."""
    found = list(names)
    kept = kept_checkpoints(found, best_step, others)
    left = {}
    for name in found:
        step = checkpoint_step(name)
        if step is not None and step not in kept:
            left[name] = "a checkpoint that is neither the last nor the best"
        elif _ASIDE.match(name):
            left[name] = "a checkpoint that was set aside"
    missing = {}
    if best_step is not None and best_step not in kept:
        missing[f"checkpoints/step_{best_step:06d}"] = "the best checkpoint is not there, or not complete"
    return left, missing


def importance(name: str, best_step: int | None) -> int:
    """When a file comes, lowest first: how a run ended and its metrics, scores and images, then the best checkpoint,
    then the last."""
    if name.startswith("attempt-") or "/" not in name:
        return 0
    step = checkpoint_step(name)
    if step is None:
        return 2 if name.endswith(".png") else 1
    return 3 if step == best_step else 4
