"""What a rescued run is: the arm of a run that was stopped, with the changes that its policy declares. Pure.

It begins with a checkpoint of that run and goes on from its step, with the same seed, budget and step numbers. It is a
run of its own, because its recipe and its first weights are others, and it is linked to the one it came from.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from runner.records import Severity
from runner.spec.identity import identity, run_id
from runner.spec.models import ResolvedArm
from runner.spec.rescue import origin_of, rescued_name


@dataclass(frozen=True, slots=True)
class Rescued:
    """A run to be: its arm, its identity with the 8 hex digits for a generation, and how it is told of."""

    arm: ResolvedArm
    identity: str
    step: int
    sentence: str

    def id(self, generation: int) -> str:
        """The 8 hex digits; `generation` counts from 1."""
        return run_id(self.identity, generation)


def may_rescue(arm: ResolvedArm, rule: str) -> bool:
    """Whether the policy of a run lets it be started again after a stop by this rule, rescues before it counted."""
    allowed = arm.policy.detectors.get(rule) == Severity.RESCUE and arm.command is None
    return allowed and origin_of(arm.arm)[1] < arm.policy.rescue.max


def began_at(verdict: Mapping[str, Any]) -> int | None:
    """The step at which what stopped a run began, where its verdict (as it is stored) shows one: weights from then on
    are broken, whatever an average of them still scores."""
    decisive = [
        one for one in verdict.get("findings", ())
        if (one["detector"], one["summary"]) == (verdict.get("rule"), verdict.get("reason"))
    ]  # fmt: skip
    if not decisive:
        return None
    found = {"explosion": decisive[0]["evidence"].get("first_step"), "non_finite": decisive[0]["step"]}
    return found.get(decisive[0]["detector"])


def choose_step(
    start: str, best: int | None, kept: Collection[int], began: int | None = None
) -> tuple[int, str] | None:
    """(step, how it is called) of the checkpoint that a rescue begins with; None when there is none.

    `start` is best or last; `best` the step of the best checkpoint, None when none is known to be; `kept` are the steps
    of those that are there; `began` is the step at which the run went wrong, where that is known: a best one is one
    from before.
    """
    if not kept:
        return None
    if start == "last":
        return max(kept), "its last checkpoint"
    sound = kept if began is None else [step for step in kept if step < began]
    if best is not None and best in sound:
        return best, "its best checkpoint"
    if began is not None and sound:
        return max(sound), f"its last checkpoint from before step {began}, where it went wrong"
    after = "" if began is None else f"; it went wrong at step {began}, before any that is kept"
    if best is not None and best in kept:
        return best, f"its best checkpoint{after}"
    return max(kept), f"its last checkpoint, because no best one is kept{after}"


def rescued(arm: ResolvedArm, seed: int, parent: str, code_hash: str, step: int, checkpoint: str) -> Rescued:
    """The run that goes on from `step` of the run `parent` (8 hex digits) of `arm`.

    It is read against what its parent was read against, or against its parent. The budget in steps is the parent's as
    it is now, which a person may have made longer.
    """
    assert arm.trainer is not None
    changes = arm.policy.rescue.changes
    trainer = {**(arm.rescue_trainer or arm.trainer), "steps": arm.trainer["steps"]}
    found = replace(
        arm,
        arm=rescued_name(arm.arm, origin_of(arm.arm)[1] + 1),
        title=f"{arm.title}, rescued at step {step}",
        baseline=arm.baseline or arm.arm,
        seeds=(seed,),
        trainer=trainer,
        rescue_trainer=None if arm.rescue_trainer is None else trainer,
        changes=tuple({**dict(arm.changes), **changes}.items()),
    )
    told = ", ".join(f"{key} = {value!r:.60}" for key, value in changes.items()) or "nothing changed"
    sentence = f"from step {step} of {parent}, {checkpoint}, with {told}"
    return Rescued(found, identity(found, seed, code_hash, {"run": parent, "step": step}), step, sentence)
