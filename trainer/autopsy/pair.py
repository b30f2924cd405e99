"""Which two checkpoints an autopsy compares: t*, the best one, and t+, where the run stands. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from trainer.errors import UsageError


@dataclass(frozen=True, slots=True)
class Pair:
    """Two steps, `best` before `stop`, and what a reader must know about the choice.

    `why_not` says, when it says anything, why these two cannot be compared: then `stop` has no usable weights.
    """

    best: int
    stop: int
    notes: tuple[str, ...] = ()
    why_not: str = ""


@dataclass(frozen=True, slots=True)
class Kept:
    """The checkpoints of a run: all steps that are kept, those with finite weights, those with a score.

    `best_of` names the best-scored of some steps by checkpoint.keep.best, or None when it names none.
    """

    steps: Collection[int]
    finite: Collection[int]
    scored: Collection[int]
    best_of: Callable[[Collection[int]], int | None]


def choose_pair(kept: Kept, best: int | None = None, stop: int | None = None) -> Pair:
    """The pair that was asked for; what was not named is the best checkpoint and the newest one.

    Weights at `stop` that are not finite are replaced by the newest finite ones behind the best step. Raises UsageError
    when a named step is not kept, or when there is nothing to compare it with.
    """
    _refuse(kept, best, stop)
    asked = max(kept.steps) if stop is None else stop
    usable = sorted(step for step in kept.finite if step <= asked)
    first, notes = (best, []) if best is not None else _best(kept, usable, asked)
    later = [step for step in usable if step > first]
    if not later:
        why_not = (
            f"the weights of step {asked} are not finite, and no checkpoint with finite weights is kept between step "
            f"{first} and it"
        )
        return Pair(first, asked, tuple(notes), why_not)
    if later[-1] != asked:
        notes = [
            *notes,
            f"the weights of step {asked} are not finite: step {later[-1]}, the newest finite one, stands in",
        ]
    return Pair(first, later[-1], tuple(notes))


def _refuse(kept: Kept, best: int | None, stop: int | None) -> None:
    listed = ", ".join(map(str, sorted(kept.steps))) or "none"
    for option, step in (("--best", best), ("--stop", stop)):
        if step is not None and step not in kept.steps:
            raise UsageError(f"{option} {step}: no checkpoint of that step is kept; kept: {listed}")
    asked = stop if stop is not None else max(kept.steps, default=0)
    if sum(step <= asked for step in kept.steps) < 2:
        raise UsageError(f"an autopsy needs two checkpoints, one of them before step {asked}; kept: {listed}")
    if best is not None and best >= asked:
        raise UsageError(f"--best {best} must come before the other checkpoint, step {asked}; kept: {listed}")
    finite = ", ".join(map(str, sorted(kept.finite))) or "none"
    if not kept.finite or (best is not None and best not in kept.finite):
        which = "no checkpoint" if best is None else f"--best {best}: that checkpoint does not"
        verb = "has" if best is None else "have"
        raise UsageError(f"{which} {verb} finite weights; finite: {finite}")


def _best(kept: Kept, usable: list[int], asked: int) -> tuple[int, list[str]]:
    """t* where nobody named it, and how it was found."""
    earlier = [step for step in usable if step < asked]
    found, notes = kept.best_of(usable), []
    if found == asked:
        notes = [f"step {asked} is itself the best one by the run's own rule: the best one before it is compared"]
        found = kept.best_of(earlier)
    if found is None:
        scored = [step for step in earlier if step in kept.scored]
        if not scored:
            raise UsageError(f"no finite checkpoint before step {asked} has a score; name one with --best: {earlier}")
        found = scored[0]
        notes = [*notes, f"no earlier checkpoint counts as best: step {found}, the oldest kept one with a score"]
    return found, notes
