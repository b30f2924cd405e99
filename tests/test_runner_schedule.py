"""Facts in, actions out: placing, stopping, settling, and never two runs on one slot."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioning.base import Slot
from runner.records import AttemptKind, RunState
from runner.schedule import (
    AttemptFacts,
    Exit,
    MarkRunning,
    Phase,
    RunFacts,
    Settle,
    Spawn,
    Start,
    Stop,
    conflicts,
    schedule,
)

SHAPE = (0, 1, 0.0)
CPU0, CPU1 = Slot("cpu0", (0,)), Slot("cpu1", (1,))
SLOTS = {SHAPE: (CPU0, CPU1)}


def queued(name: str, order: tuple[int, int, int] = (1, 0, 0), **changes: Any) -> RunFacts:
    return replace(RunFacts(name, order, RunState.QUEUED, True, SHAPE, steps_total=100), **changes)


def on_slot(state: RunState = RunState.RUNNING, attempt: AttemptFacts | None = None, **changes: Any) -> RunFacts:
    facts = attempt or AttemptFacts(1, AttemptKind.TRAIN, Phase.LIVE, CPU0, reported=True)
    return replace(queued("r", state=state, attempt=facts, last_step=40), **changes)


def ended(code: int | None = 0, signal: int | None = None, cause: str = "exited", **changes: Any) -> AttemptFacts:
    facts = AttemptFacts(1, AttemptKind.TRAIN, Phase.ENDED, CPU0, reported=True, exit=Exit(code, signal, cause))
    return replace(facts, **changes)


def only(run: RunFacts) -> Any:
    (action,) = schedule([run], SLOTS)
    return action


def test_the_queue_is_filled_in_launch_seed_arm_order_and_the_rest_waits() -> None:
    runs = [queued("c", (1, 1, 0)), queued("b", (1, 0, 1)), queued("a", (1, 0, 0)), queued("late", (2, 0, 0))]
    actions = schedule(runs, SLOTS)
    assert [(action.run, action.slot.name) for action in actions if isinstance(action, Start)] == [
        ("a", "cpu0"),
        ("b", "cpu1"),
    ]


def test_a_slot_that_is_settled_in_this_round_takes_the_next_run_at_once() -> None:
    done = on_slot(attempt=ended(), last_step=100)
    actions = schedule([done, queued("next")], {SHAPE: (CPU0,)})
    assert actions == (
        Settle("r", RunState.FINISHED, "all 100 steps done"),
        Start("next", 1, AttemptKind.TRAIN, CPU0, resume=False),
    )


def test_a_new_attempt_continues_from_a_checkpoint_under_the_next_number() -> None:
    before = ended(code=1, number=3)
    action = only(queued("r", attempt=before, has_checkpoint=True))
    assert action == Start("r", 4, AttemptKind.TRAIN, CPU0, resume=True)


def test_an_intended_attempt_is_carried_through_and_holds_its_slot() -> None:
    intended = AttemptFacts(1, AttemptKind.TRAIN, Phase.INTENDED, CPU0)
    actions = schedule([on_slot(RunState.STAGING, intended), queued("other")], {SHAPE: (CPU0,)})
    assert actions == (Spawn("r", 1),)


def test_a_process_that_was_seen_makes_the_run_running() -> None:
    assert only(on_slot(RunState.STARTING)) == MarkRunning("r")


def test_an_abort_verdict_stops_once_with_its_rule_and_reason() -> None:
    run = on_slot(abort=("explosion", "loss 9 times its start"))
    assert only(run) == Stop("r", 1, "loss 9 times its start", "explosion")
    told = replace(run, state=RunState.STOPPING, attempt=replace(run.attempt, stop_sent=True))
    assert schedule([told], SLOTS) == ()


def test_a_person_comes_before_the_judge() -> None:
    assert only(on_slot(stop_wanted="by hand", abort=("explosion", "x"))) == Stop("r", 1, "by hand")
    assert only(queued("q", stop_wanted="by hand")) == Settle("q", RunState.CANCELLED, "by hand")


def stopped_by(rule: str) -> RunFacts:
    """A run that was stopped for a rule, saved, and has ended."""
    saved = ended(75, cause="stopped", stop_sent=True)
    return on_slot(RunState.STOPPING, saved, stopping_rule=rule, stopping_reason="why", has_checkpoint=True)


def test_an_aborted_trainer_run_is_scored_on_its_slot_before_it_is_settled() -> None:
    stopped = stopped_by("explosion")
    assert only(stopped) == Start("r", 2, AttemptKind.EVALUATE, CPU0, resume=False)
    scored = replace(stopped, attempt=ended(0, kind=AttemptKind.EVALUATE, number=2))
    assert only(scored) == Settle("r", RunState.ABORTED, "why", "explosion")
    broken = replace(scored, attempt=ended(70, kind=AttemptKind.EVALUATE, number=2))
    assert "exit code 70" in only(broken).reason
    assert only(broken).state is RunState.ABORTED
    assert only(replace(stopped, is_trainer=False)) == Settle("r", RunState.ABORTED, "why", "explosion")


def test_a_process_on_other_gpus_than_its_slot_s_is_stopped_and_failed() -> None:
    astray = AttemptFacts(1, AttemptKind.TRAIN, Phase.LIVE, CPU0, reported=True, wrong_gpus="it sees GPU-b, not GPU-a")
    assert only(on_slot(attempt=astray)) == Stop("r", 1, "it sees GPU-b, not GPU-a", "wrong_gpu")
    assert only(stopped_by("wrong_gpu")) == Settle("r", RunState.FAILED, "why", "wrong_gpu")


def test_a_stop_that_came_too_late_leaves_a_finished_run_finished() -> None:
    run = on_slot(RunState.STOPPING, ended(0, stop_sent=True), last_step=100, stopping_rule="explosion")
    assert only(run).state is RunState.FINISHED


def test_a_person_s_stop_ends_cancelled_without_scoring() -> None:
    run = on_slot(
        RunState.STOPPING, ended(75, cause="stopped", stop_sent=True), stop_wanted="by hand", has_checkpoint=True
    )
    assert only(run) == Settle("r", RunState.CANCELLED, "by hand")


@pytest.mark.parametrize(
    ("attempt", "rule", "words"),
    [
        (ended(0), "incomplete", "exit code 0 at step 40 of 100"),
        (ended(78, last_words="batch must be positive"), "config", "batch must be positive"),
        (ended(65), "data", "exit code 65"),
        (ended(70), "internal", "exit code 70"),
        (ended(3), "exit 3", "exit code 3"),
        (ended(None, 9, "killed"), "killed", "SIGKILL"),
        (ended(exit=Exit(None, None, "spawn_failed", "no such file")), "spawn_failed", "no such file"),
    ],
)
def test_every_other_end_is_a_failure_with_its_class(attempt: AttemptFacts, rule: str, words: str) -> None:
    action = only(on_slot(attempt=attempt))
    assert (action.state, action.rule) == (RunState.FAILED, rule)
    assert words in action.reason


def test_a_command_is_finished_by_exit_code_zero_and_other_codes_stand_for_themselves() -> None:
    assert only(on_slot(attempt=ended(0), is_trainer=False)).state is RunState.FINISHED
    assert only(on_slot(attempt=ended(78), is_trainer=False)).rule == "exit 78"


def test_an_attempt_that_vanished_is_lost() -> None:
    gone = AttemptFacts(2, AttemptKind.TRAIN, Phase.GONE, CPU0, reported=True)
    action = only(on_slot(attempt=gone))
    assert (action.state, action.rule) == (RunState.LOST, "vanished")


def test_slots_conflict_by_gpu_and_by_cores_that_nobody_shares() -> None:
    gpu = Slot("gpu0", (0,), ("GPU-a",), (0,))
    assert conflicts(gpu, Slot("both", (0, 1), ("GPU-a", "GPU-b"), (0, 1)))
    assert not conflicts(gpu, Slot("gpu1", (1,), ("GPU-b",), (1,)))
    assert not conflicts(gpu, CPU0)
    assert conflicts(CPU0, Slot("wide0", (0, 1)))
    assert not conflicts(Slot("cpu0", (0,), shares_cores=True), Slot("cpu2", (0,), shares_cores=True))


@st.composite
def worlds(draw: st.DrawFn) -> list[RunFacts]:
    runs = []
    slots = [CPU0, CPU1]
    for index in range(draw(st.integers(0, 6))):
        state = draw(st.sampled_from([RunState.QUEUED, RunState.STARTING, RunState.RUNNING, RunState.STOPPING]))
        attempt = None
        if state is not RunState.QUEUED:
            if not slots:
                continue
            phase = draw(st.sampled_from(list(Phase)))
            code = draw(st.sampled_from([0, 1, 75, None]))
            attempt = AttemptFacts(
                1,
                AttemptKind.TRAIN,
                phase,
                slots.pop(),
                stop_sent=state is RunState.STOPPING,
                reported=draw(st.booleans()),
                exit=Exit(code, None if code is not None else 9, "exited") if phase is Phase.ENDED else None,
            )
        runs.append(
            queued(
                f"r{index}",
                (1, index % 2, index),
                state=state,
                attempt=attempt,
                last_step=draw(st.sampled_from([0, 100])),
                has_checkpoint=draw(st.booleans()),
                stop_wanted=draw(st.sampled_from([None, "by hand"])),
                abort=draw(st.sampled_from([None, ("explosion", "x")])),
                stopping_rule=draw(st.sampled_from(["", "explosion"])) if state is RunState.STOPPING else "",
            )
        )
    return runs


@given(worlds())
def test_no_two_runs_ever_share_a_slot_and_nobody_gets_two_orders(runs: list[RunFacts]) -> None:
    actions = schedule(runs, SLOTS)
    assert actions == schedule(runs, SLOTS)
    assert len({action.run for action in actions}) == len(actions)
    settled = {action.run for action in actions if isinstance(action, Settle)}
    held = [
        run.attempt.slot.name
        for run in runs
        if run.attempt and run.state is not RunState.QUEUED and run.run not in settled
    ]
    given_out = [
        action.slot.name for action in actions if isinstance(action, Start) and action.kind is AttemptKind.TRAIN
    ]
    assert len(held + given_out) == len(set(held + given_out))
    waiting = [run for run in runs if run.state is RunState.QUEUED and not run.stop_wanted]
    assert len(given_out) == min(len(waiting), 2 - len(held))
