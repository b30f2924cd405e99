"""What a rescued run is: the arm of a run that was stopped, with the changes that its policy declares. Pure.

It begins with a checkpoint of that run and goes on from its step, with the same seed, budget and step numbers. It is a
run of its own, because its recipe and its first weights are others, and it is linked to the one it came from.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

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


def choose_step(start: str, best: int | None, kept: Collection[int]) -> tuple[int, str] | None:
    """(step, how it is called) of the checkpoint that a rescue begins with; None when there is none.

    `start` is best or last; `best` the step of the best checkpoint, None when none is known to be; `kept` are the steps
    of those that are there.
    """
    if not kept:
        return None
    if start == "best" and best in kept:
        assert best is not None
        return best, "its best checkpoint"
    fallback = ", because no best one is kept" if start == "best" else ""
    return max(kept), f"its last checkpoint{fallback}"


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
