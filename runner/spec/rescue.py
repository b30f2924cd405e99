"""`policy.rescue.changes`: what a rescue may change, what becomes of a trainer block, and the new arm's name. Pure.

A rescue goes on at the checkpoint that it begins with, with the same step numbers, samples and model: only the recipe
may change.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

HEAD = "trainer"
FIXED = ("steps", "model", "streams", "data")
"""Blocks that no rescue may change: the weights must fit, and the curve goes on where the other one ended."""


_RESCUED = re.compile(r"(.+)-rescue([1-9][0-9]*)")


class BadChange(ValueError):
    """A dotted key that no rescue can set: what is wrong with it, and what is allowed."""

    def __init__(self, problem: str, allowed: str) -> None:
        self.problem = problem
        self.allowed = allowed
        super().__init__(f"{problem}; allowed: {allowed}")


def with_changes(trainer: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A trainer block with dotted keys of `policy.rescue.changes` set as the `changes` of an arm are: a block is merged
    into what is there, anything else replaces it. Raises BadChange for a key that no rescue can set."""
    found = dict(trainer)
    for key, value in changes.items():
        check_change(key, value)
        parts = key.split(".")[1:]
        layer = value
        for part in reversed(parts):
            layer = {part: layer}
        found = _overlaid(found, layer, key)
    return found


def check_change(key: str, value: Any) -> None:
    """Raises BadChange for a key that is not a part of the recipe."""
    allowed = f"{HEAD}.… without {', '.join(FIXED)}"
    head, *parts = key.split(".")
    if head != HEAD:
        raise BadChange("a rescue changes how the trainer goes on, and nothing else", allowed)
    if "" in parts:
        raise BadChange(f"{key!r} has an empty part", "dotted keys such as trainer.optimizer.lr")
    if not parts and not isinstance(value, Mapping):
        raise BadChange(f"{value!r:.60} is no block of keys", allowed)
    touched = parts[:1] or [str(name) for name in value]
    for name in touched:
        if name in FIXED:
            raise BadChange(f"{HEAD}.{name} stays as it was: the run goes on with its weights and samples", allowed)


def rescued_name(arm: str, number: int) -> str:
    """The arm name of the rescue of this number: B-rescue2, of B as of B-rescue1."""
    return f"{origin_of(arm)[0]}-rescue{number}"


def origin_of(arm: str) -> tuple[str, int]:
    """The arm that a rescued one goes back to, and the number of rescues since: (B, 2) for B-rescue2, (B, 0) for B. No
    arm file may use such a name."""
    found = _RESCUED.fullmatch(arm)
    return (arm, 0) if found is None else (found[1], int(found[2]))


def _overlaid(under: Mapping[str, Any], over: Any, key: str) -> dict[str, Any]:
    values = dict(under)
    for name, value in over.items():
        old = values.get(name)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            values[name] = _overlaid(old, value, key)
        elif isinstance(value, Mapping) and old is not None:
            raise BadChange(f"{name} is a value, there is no key below it", "existing keys")
        else:
            values[name] = value
    return values
