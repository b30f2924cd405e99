"""Seeds as they are written on a command line: `0`, `0-5`, `0,2,4-6`. Pure."""

from __future__ import annotations

import re

from runner.errors import UsageError
from runner.spec.yaml12 import MAX_INTEGER

MAX_SEEDS = 1000
MAX_SEED = MAX_INTEGER  # a specification may name every seed that a command line may

_PART = re.compile(r"([0-9]{1,19})(?:-([0-9]{1,19}))?")


def parse_seeds(text: str) -> tuple[int, ...]:
    """The seeds in the order they are written. Raises UsageError for repeats and all else."""
    seeds: list[int] = []
    for part in text.split(","):
        found = _PART.fullmatch(part.strip())
        if found is None:
            raise _refused(text, f"{part.strip()!r} is neither a seed nor a range")
        first = int(found[1])
        last = first if found[2] is None else int(found[2])
        if last < first:
            raise _refused(text, f"the range {part.strip()} runs backwards")
        if last > MAX_SEED or len(seeds) + last - first >= MAX_SEEDS:
            raise _refused(text, f"more than {MAX_SEEDS} seeds, or one beyond 64 bits")
        seeds.extend(range(first, last + 1))
    if len(set(seeds)) < len(seeds):
        raise _refused(text, "a seed is there twice")
    return tuple(seeds)


def format_seeds(seeds: tuple[int, ...]) -> str:
    """The shortest text that `parse_seeds` reads as these seeds."""
    parts: list[list[int]] = []
    for seed in seeds:
        if parts and seed == parts[-1][-1] + 1:
            parts[-1][1:] = [seed]
        else:
            parts.append([seed])
    return ",".join("-".join(str(end) for end in part) for part in parts)


def _refused(text: str, why: str) -> UsageError:
    return UsageError(f"--seeds {text}: {why}; allowed: whole numbers and ranges such as 0-5 or 0,2,4-6")
