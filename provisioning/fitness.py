"""What a look at a rented machine found: whether runs may go there."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Fit:
    """The machine can be used: where it is reached, usable GPUs, cores."""

    place: str
    gpus: int
    cores: int


@dataclass(frozen=True, slots=True)
class NotYet:
    """Nothing is known against the machine yet; ask again."""

    why: str


@dataclass(frozen=True, slots=True)
class Unfit:
    """The machine cannot be used, and waiting will not help."""

    why: str
