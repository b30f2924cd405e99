"""A longer budget, decided: which runs may have one, what happens to their processes, and what stays the same."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.errors import UsageError
from runner.extending import Extension, Way, extension, keep_extension, with_steps
from runner.plan import Capacity, Intent, KnownRun, make_plan
from runner.records import ENDED, ON_A_SLOT, RunState, is_legal
from runner.spec.command import BadPlaceholder, expand, takes_steps
from runner.spec.identity import identity, run_id
from runner.spec.models import ResolvedArm, document, from_json, to_json
from tests.fakes.arms import command_arm, trainer_arm

STATES = st.sampled_from([state for state in RunState if state is not RunState.ABORTED])


def extended(
    state: RunState,
    *,
    is_trainer: bool = True,
    before: int | None = 100,
    wanted: int = 150,
    takes_steps: bool = True,
) -> Extension:
    return extension("0000000a", state, is_trainer=is_trainer, before=before, wanted=wanted, takes_steps=takes_steps)


@given(STATES, st.booleans(), st.integers(1, 10**9), st.integers(1, 10**9))
def test_only_a_larger_budget_is_one_and_says_from_where_to_where(
    state: RunState, is_trainer: bool, before: int, more: int
) -> None:
    is_trainer = is_trainer or state in ON_A_SLOT
    found = extended(state, is_trainer=is_trainer, before=before, wanted=before + more)
    assert found.sentence.startswith(f"extended from {before} to {before + more} steps: ")
    assert found.data(7) == {"from": before, "to": before + more, "step": 7}
    for wanted in (before, before - 1, 0, -more):
        with pytest.raises(UsageError, match=f"--steps {wanted}: 0000000a has {before} steps already"):
            extended(state, is_trainer=is_trainer, before=before, wanted=wanted)


@pytest.mark.parametrize("state", sorted(ON_A_SLOT))
def test_a_live_training_stops_first_and_a_live_script_is_left_to_a_person(state: RunState) -> None:
    """A script at work has its old budget, and nobody knows whether it saves when it is told to end."""
    assert extended(state).way is Way.STOP_FIRST
    with pytest.raises(UsageError, match=f"is {state} and its command was started with 100 steps.*runner stop 0000000"):
        extended(state, is_trainer=False)


@pytest.mark.parametrize("state", sorted(set(RunState) - {RunState.ABORTED}))
def test_a_command_that_is_not_told_its_budget_gets_no_longer_one(state: RunState) -> None:
    with pytest.raises(UsageError) as refused:
        extended(state, is_trainer=False, takes_steps=False)
    for said in ("do the same 100 steps again", '"--steps", "{steps}"', "continue by itself", "nothing was changed"):
        assert said in str(refused.value)
    assert extended(state, takes_steps=False) == extended(state), "our own trainer has no placeholders"


def test_the_new_attempt_of_a_script_says_what_it_is_started_with() -> None:
    said = extended(RunState.FINISHED, is_trainer=False).sentence
    assert said.endswith("a new attempt of the command with {steps} = 150, which must continue by itself")


@pytest.mark.parametrize("state", sorted(ENDED - {RunState.ABORTED}))
@pytest.mark.parametrize("is_trainer", [True, False])
def test_what_has_ended_gets_a_new_attempt(state: RunState, is_trainer: bool) -> None:
    assert extended(state, is_trainer=is_trainer).way is Way.AGAIN
    assert state is RunState.FINISHED or is_legal(state, RunState.QUEUED)


@pytest.mark.parametrize("is_trainer", [True, False])
def test_what_waits_only_gets_another_number(is_trainer: bool) -> None:
    assert extended(RunState.QUEUED, is_trainer=is_trainer).way is Way.GROW


def test_a_stop_that_somebody_else_asked_for_wins_over_a_waiting_extension() -> None:
    """A person who stops a run that was told to save for an extension means it."""
    ours = extended(RunState.RUNNING).sentence
    waiting = extension("a", RunState.STOPPING, is_trainer=True, before=100, wanted=150, stop_wanted=ours)
    assert (waiting.way, waiting.sentence) == (Way.STOP_FIRST, ours)
    with pytest.raises(UsageError, match=r"a is being stopped \(stopped by a person\)"):
        extension("a", RunState.STOPPING, is_trainer=True, before=100, wanted=150, stop_wanted="stopped by a person")


def test_an_abort_must_be_overridden_first_and_a_run_needs_a_budget() -> None:
    with pytest.raises(UsageError, match=r"was aborted; its rule comes first: `runner resume 0000000a`"):
        extended(RunState.ABORTED)
    with pytest.raises(UsageError, match="no budget in steps"):
        extended(RunState.FINISHED, before=None)


@pytest.mark.parametrize("arm", [trainer_arm(), command_arm()], ids=["trainer", "command"])
def test_the_arm_document_changes_in_its_steps_alone(arm: ResolvedArm) -> None:
    stored = json.loads(json.dumps(to_json(arm)))
    longer = from_json(with_steps(stored, 150))
    assert longer.steps == 150
    differing = {key for key in stored if to_json(longer)[key] != stored[key]}
    assert differing == ({"steps", "trainer", "check"} if arm.command is None else {"steps"})
    if arm.trainer is not None:
        assert longer.trainer == {**arm.trainer, "steps": 150}
        assert longer.check == dataclasses.replace(arm.check, steps_total=150) if arm.check else None
    assert stored["steps"] == arm.steps, "the stored document itself is left alone"


def test_what_the_trainer_said_of_the_longer_run_replaces_what_it_said_before() -> None:
    stored = to_json(trainer_arm())
    said = {**stored["check"], "steps_total": 150, "notes": ["all samples are seen 3 times"]}
    longer = from_json(with_steps(stored, 150, said))
    assert longer.check is not None
    assert (longer.check.notes, longer.check.steps_total) == (("all samples are seen 3 times",), 150)


@pytest.mark.parametrize("arm", [trainer_arm(), command_arm()], ids=["trainer", "command"])
@pytest.mark.parametrize(
    ("state", "intent"),
    [
        (RunState.QUEUED, Intent.WATCH),
        (RunState.RUNNING, Intent.WATCH),
        (RunState.FINISHED, Intent.NOTHING),
        (RunState.CANCELLED, Intent.RESTART),
    ],
)
def test_launching_the_old_arm_finds_the_extended_run(arm: ResolvedArm, state: RunState, intent: Intent) -> None:
    """The identity is that of the launch: neither a second run nor a new generation comes of it."""
    same = identity(arm, 0, "c0de")
    known = KnownRun(arm.study, arm.arm, 0, run_id(same, 1), same, 1, state)
    plan = make_plan([arm], {arm.name: "c0de"}, [known], capacity=Capacity(1))
    assert [(run.intent, run.id, run.generation) for run in plan.runs] == [(intent, known.id, 1)]


def test_the_command_as_it_is_written_tells_one_run_from_another() -> None:
    """What {steps} becomes is no part of it, so an extended run is still found by its arm."""
    arm = command_arm(command=("python3", "-c", "pass", "--steps={steps}"))
    filled = [expand(arm.command or (), seed=0, run_dir="", arm_dir="", python="p", steps=n) for n in (10, 150)]
    assert [argv[-1] for argv in filled] == ["--steps=10", "--steps=150"]
    longer = from_json(with_steps(to_json(arm), 150))
    assert (longer.command, longer.steps) == (arm.command, 150)
    same = identity(arm, 0, "c0de")
    known = KnownRun(arm.study, arm.arm, 0, run_id(same, 1), same, 1, RunState.CANCELLED)
    (planned,) = make_plan([arm], {arm.name: "c0de"}, [known], capacity=Capacity(1)).runs
    assert (planned.intent, planned.id) == (Intent.RESTART, known.id)
    assert identity(dataclasses.replace(arm, command=("python3", "-c", "pass", "--steps=10")), 0, "c0de") != same


@pytest.mark.parametrize(
    ("argument", "takes"),
    [("{steps}", True), ("--n={seed}:{steps}", True), ("{{steps}}", False), ("{{{steps}}}", True), ("{seed}", False)],
)
def test_a_command_takes_its_steps_where_a_placeholder_is_filled_in(argument: str, takes: bool) -> None:
    assert takes_steps(("python3", argument, "x")) is takes
    argv = expand(("python3", argument), seed=3, run_dir="", arm_dir="", python="p", steps=77)
    assert ("77" in argv[1]) is takes
    if takes:
        with pytest.raises(BadPlaceholder, match="steps"):
            expand(("python3", argument), seed=3, run_dir="", arm_dir="", python="p")


def test_launching_again_keeps_the_longer_budget_and_takes_a_larger_one_of_the_arm() -> None:
    launched: dict[str, Any] = to_json(trainer_arm())
    assert keep_extension(launched, 100) is launched
    assert keep_extension(launched, 60) is launched
    assert keep_extension(launched, None) is launched
    kept = from_json(keep_extension(launched, 150))
    assert (kept.steps, kept.trainer and kept.trainer["steps"]) == (150, 150)
    assert document(kept, 0)["trainer"]["steps"] == 150
