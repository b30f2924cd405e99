"""Facts in, actions out: placing, stopping, settling, and never two runs on one slot."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioning.base import Slot
from runner.failure import Exit, Failure
from runner.records import AttemptKind, RunState
from runner.schedule import (
    AttemptFacts,
    MarkRunning,
    Order,
    Phase,
    Reap,
    Retry,
    Revive,
    RunFacts,
    Settle,
    Shape,
    Spawn,
    Start,
    StartTogether,
    Stop,
    conflicts,
    schedule,
    waits_for_room,
)

SHAPE = Shape(0, 1)
CPU0, CPU1 = Slot("cpu0", (0,)), Slot("cpu1", (1,))
SLOTS = {SHAPE: (CPU0, CPU1)}
FOR_GOOD = Failure("config", False, "batch must be positive")
MAY_PASS = Failure("nccl", True, "the peer went away")


def queued(name: str, order: Order = (0, 1, 0, 0), **changes: Any) -> RunFacts:
    return replace(RunFacts(name, order, RunState.QUEUED, True, SHAPE, steps_total=100), **changes)


def on_slot(state: RunState = RunState.RUNNING, attempt: AttemptFacts | None = None, **changes: Any) -> RunFacts:
    facts = attempt or AttemptFacts(1, AttemptKind.TRAIN, Phase.LIVE, CPU0, reported=True)
    return replace(queued("r", state=state, attempt=facts, last_step=40), **changes)


def ended(code: int | None = 0, signal: int | None = None, cause: str = "exited", **changes: Any) -> AttemptFacts:
    facts = AttemptFacts(
        1, AttemptKind.TRAIN, Phase.ENDED, CPU0, reported=True, exit=Exit(code, signal, cause), failure=FOR_GOOD
    )
    return replace(facts, **changes)


def only(run: RunFacts) -> Any:
    (action,) = schedule([run], SLOTS)
    return action


def test_the_queue_is_filled_in_launch_seed_arm_order_and_the_rest_waits() -> None:
    runs = [
        queued("c", (0, 1, 1, 0)),
        queued("b", (0, 1, 0, 1)),
        queued("a", (0, 1, 0, 0)),
        queued("late", (0, 2, 0, 0)),
    ]
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


def scoring(**changes: Any) -> RunFacts:
    """An aborted run whose last evaluation is alive."""
    alive = AttemptFacts(2, AttemptKind.EVALUATE, Phase.LIVE, CPU0, reported=True)
    return replace(stopped_by("explosion"), attempt=alive, **changes)


def test_only_a_person_ends_the_last_evaluation_and_the_run_keeps_why_it_was_aborted() -> None:
    wanted = scoring(stop_wanted="by hand")
    assert only(wanted) == Stop("r", 2, "by hand", "explosion")
    assert schedule([scoring(budget="spent", abort=("regress", "x"))], SLOTS) == ()
    assert schedule([replace(wanted, attempt=replace(wanted.attempt, stop_sent=True))], SLOTS) == ()
    cut = ended(None, 15, "stopped", kind=AttemptKind.EVALUATE, number=2, stop_sent=True)
    said = "why (its final evaluation ended with killed by SIGTERM)"
    assert only(replace(wanted, attempt=cut)) == Settle("r", RunState.ABORTED, said, "explosion")


def test_a_training_that_is_being_stopped_is_not_stopped_again_by_anybody() -> None:
    stopping = on_slot(RunState.STOPPING, stop_wanted="by hand", stopping_rule="explosion", budget="spent")
    assert schedule([stopping], SLOTS) == ()


def test_a_stop_before_the_last_evaluation_skips_it() -> None:
    wanted = replace(stopped_by("explosion"), stop_wanted="by hand")
    said = "why (no final evaluation: by hand)"
    assert only(wanted) == Settle("r", RunState.ABORTED, said, "explosion")


def test_a_last_evaluation_waits_for_its_slot_and_is_left_out_when_that_is_not_given_back() -> None:
    stopped = stopped_by("explosion")
    waiting = replace(stopped, attempt=replace(stopped.attempt, release="waiting"))
    assert schedule([waiting], SLOTS) == ()
    kept = only(replace(stopped, attempt=replace(stopped.attempt, release="quarantined")))
    assert kept.state is RunState.ABORTED
    assert "its slot was not given back" in kept.reason


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
        (ended(78), "config", "exit code 78 at step 40: batch must be positive"),
        (ended(None, 9, "killed", failure=MAY_PASS), "nccl", "SIGKILL at step 40: the peer went away; no retries"),
    ],
)
def test_every_other_end_is_a_failure_with_its_class(attempt: AttemptFacts, rule: str, words: str) -> None:
    action = only(on_slot(attempt=attempt))
    assert isinstance(action, Settle)
    assert (action.state, action.rule) == (RunState.FAILED, rule)
    assert words in action.reason


def test_only_what_may_pass_is_tried_again_and_only_as_often_as_allowed() -> None:
    passing = on_slot(attempt=ended(1, failure=MAY_PASS), retries_left=1)
    assert only(passing) == Retry("r", RunState.FAILED, "exit code 1 at step 40: the peer went away", "nccl")
    assert isinstance(only(replace(passing, retries_left=0)), Settle)
    assert isinstance(only(replace(passing, stop_wanted="by hand")), Settle)
    assert isinstance(only(on_slot(attempt=ended(78), retries_left=2)), Settle)


def test_a_command_is_finished_by_exit_code_zero() -> None:
    assert only(on_slot(attempt=ended(0), is_trainer=False)).state is RunState.FINISHED


def test_an_attempt_that_vanished_is_lost_and_tried_again_because_it_is_proven_gone() -> None:
    gone = AttemptFacts(2, AttemptKind.TRAIN, Phase.GONE, CPU0, reported=True)
    action = only(on_slot(attempt=gone))
    assert isinstance(action, Settle)
    assert (action.state, action.rule) == (RunState.LOST, "vanished")
    again = only(on_slot(attempt=gone, retries_left=1))
    assert isinstance(again, Retry)
    assert (again.state, again.rule) == (RunState.LOST, "vanished")


def test_an_attempt_that_only_fell_silent_is_lost_and_never_started_twice() -> None:
    silent = AttemptFacts(1, AttemptKind.TRAIN, Phase.SILENT, CPU0, reported=True)
    action = only(on_slot(attempt=silent, retries_left=2))
    assert isinstance(action, Settle)
    assert (action.state, action.rule) == (RunState.LOST, "silent")
    lost = on_slot(RunState.LOST, silent, reports_again=True)
    assert schedule([lost, queued("next")], {SHAPE: (CPU0,)}) == (Revive("r", 1),)
    assert schedule([replace(lost, reports_again=False)], SLOTS) == ()
    exited = on_slot(RunState.LOST, ended(0), reports_again=True, last_step=100)  # its end came to light
    assert schedule([exited, queued("next")], {SHAPE: (CPU0,)}) == (Revive("r", 1),)


def test_a_budget_that_is_used_up_stops_what_runs_and_cancels_what_waits() -> None:
    assert only(on_slot(budget="2.0 of 2 h used")) == Stop("r", 1, "2.0 of 2 h used", "budget")
    assert only(queued("q", budget="spent")) == Settle("q", RunState.CANCELLED, "spent", "budget")
    stopped = on_slot(
        RunState.STOPPING,
        ended(75, cause="stopped", stop_sent=True),
        stopping_rule="budget",
        stopping_reason="spent",
        has_checkpoint=True,
    )
    assert only(stopped) == Start("r", 2, AttemptKind.EVALUATE, CPU0, resume=False)


def test_a_process_without_its_supervisor_gets_another_one() -> None:
    orphan = AttemptFacts(1, AttemptKind.TRAIN, Phase.LIVE, CPU0, reported=True, orphaned=True)
    assert only(on_slot(attempt=orphan, stop_wanted="by hand")) == Reap("r", 1)
    assert schedule([on_slot(attempt=orphan), queued("next")], {SHAPE: (CPU0,)}) == (Reap("r", 1),)


def names(action: object) -> list[str]:
    assert isinstance(action, StartTogether)
    return [start.run for start in action.starts]


def test_higher_priority_goes_first() -> None:
    actions = schedule([queued("early"), queued("urgent", (-5, 2, 0, 0))], {SHAPE: (CPU0,)})
    assert [action.run for action in actions] == ["urgent"]


def test_a_wave_starts_together_or_not_at_all_and_is_not_overtaken() -> None:
    wave = [queued("a", (0, 2, 0, 0), wave=0), queued("b", (0, 2, 0, 1), wave=0)]
    later = queued("c", (0, 3, 0, 0))
    busy = on_slot()
    assert schedule([busy, *wave, later], SLOTS) == ()
    (together,) = schedule([*wave, later], SLOTS)
    assert names(together) == ["a", "b"]


def test_a_wave_that_no_longer_fits_starts_as_far_as_it_fits() -> None:
    wave = [queued(name, (0, 2, 0, place), wave=0) for place, name in enumerate("abc")]
    (together,) = schedule(wave, SLOTS)
    assert names(together) == ["a", "b"]
    (single,) = schedule(wave, {SHAPE: (CPU1,)})
    assert isinstance(single, Start)


def test_a_wave_that_must_be_whole_waits_for_a_lost_slot() -> None:
    wave = [queued(name, (0, 2, 0, place), wave=0, needs_whole_wave=True) for place, name in enumerate("ab")]
    assert schedule(wave, {SHAPE: (CPU1,)}) == ()
    (together,) = schedule(wave, SLOTS)
    assert names(together) == ["a", "b"]


def test_a_wave_that_cannot_fit_keeps_nothing_back_from_others() -> None:
    wave = [queued(name, (0, 2, 0, place), wave=0, needs_whole_wave=True) for place, name in enumerate("abc")]
    (other,) = schedule([*wave, queued("other", (0, 3, 0, 0))], SLOTS)
    assert isinstance(other, Start)
    assert other.run == "other"


def test_a_stop_before_anything_was_spawned_needs_no_process() -> None:
    intended = AttemptFacts(1, AttemptKind.TRAIN, Phase.INTENDED, CPU0)
    staging = on_slot(RunState.STAGING, intended, stop_wanted="by hand")
    assert only(staging) == Settle("r", RunState.CANCELLED, "by hand")
    assert only(replace(staging, state=RunState.STARTING)) == Spawn("r", 1)


def test_an_aborted_run_whose_evaluation_vanished_is_not_trained_again() -> None:
    gone = AttemptFacts(2, AttemptKind.EVALUATE, Phase.GONE, CPU0, reported=True)
    run = on_slot(RunState.STOPPING, gone, stopping_rule="explosion", stopping_reason="why", retries_left=2)
    action = only(run)
    assert isinstance(action, Settle)
    assert (action.state, action.rule) == (RunState.ABORTED, "explosion")


def test_waves_of_one_launch_keep_their_order() -> None:
    first = [queued(name, (0, 2, 0, place), wave=0) for place, name in enumerate("ab")]
    second = [queued(name, (0, 2, 1, place), wave=1) for place, name in enumerate("cd")]
    (together,) = schedule([*second, *first], SLOTS)
    assert names(together) == ["a", "b"]
    running = on_slot()
    assert schedule([running, *second], SLOTS) == ()


def test_slots_conflict_by_gpu_and_by_cores_that_nobody_shares() -> None:
    gpu = Slot("gpu0", (0,), ("GPU-a",), (0,))
    assert conflicts(gpu, Slot("both", (0, 1), ("GPU-a", "GPU-b"), (0, 1)))
    assert not conflicts(gpu, Slot("gpu1", (1,), ("GPU-b",), (1,)))
    assert not conflicts(gpu, CPU0)
    assert conflicts(CPU0, Slot("wide0", (0, 1)))
    assert not conflicts(Slot("cpu0", (0,), shares_cores=True), Slot("cpu2", (0,), shares_cores=True))


def share(host: str, number: int) -> Slot:
    return Slot(f"cpu{number}", (number,), host=host)


TWO_HOSTS = {SHAPE: (share("a", 0), share("a", 1), share("b", 0), share("b", 1))}


def wave_of(count: int, **changes: Any) -> list[RunFacts]:
    return [queued(f"w{place}", (0, 2, 0, place), wave=0, **changes) for place in range(count)]


def on(name: str, slot: Slot) -> RunFacts:
    attempt = AttemptFacts(1, AttemptKind.TRAIN, Phase.LIVE, slot, reported=True)
    return replace(on_slot(attempt=attempt), run=name)


def hosts_of(actions: Any) -> list[str]:
    return [start.slot.host for action in actions for start in getattr(action, "starts", (action,))]


def test_slots_of_two_hosts_have_nothing_in_common() -> None:
    assert not conflicts(share("a", 0), share("b", 0))
    assert conflicts(share("a", 0), share("a", 0))
    assert not conflicts(Slot("gpu0", (), ("GPU-1",), (0,), host="a"), Slot("gpu0", (), ("GPU-1",), (0,), host="b"))
    assert (str(share("a", 0)), str(CPU0)) == ("a:cpu0", "cpu0")


def test_a_wave_goes_to_one_host_that_can_hold_it() -> None:
    assert hosts_of(schedule(wave_of(2), TWO_HOSTS)) == ["a", "a"]
    assert hosts_of(schedule([on("x", share("a", 1)), *wave_of(2)], TWO_HOSTS)) == ["b", "b"]


def test_a_wave_waits_for_a_host_that_could_hold_it_and_lets_others_use_the_rest() -> None:
    busy = [on("x", share("a", 1)), on("y", share("b", 1))]
    assert schedule([*busy, *wave_of(2)], TWO_HOSTS) == ()
    (other,) = schedule([*busy, *wave_of(2), queued("later", (0, 3, 0, 0))], TWO_HOSTS)
    assert isinstance(other, Start)
    assert (other.run, other.slot.host) == ("later", "b")


def test_a_wave_that_no_host_can_hold_is_spread_unless_it_must_be_whole() -> None:
    assert sorted(hosts_of(schedule(wave_of(3), TWO_HOSTS))) == ["a", "a", "b"]
    assert schedule(wave_of(3, needs_whole_wave=True), TWO_HOSTS) == ()
    assert "room for 2" in waits_for_room(wave_of(3, needs_whole_wave=True), TWO_HOSTS)["w0"]


def test_runs_alone_fill_one_host_after_the_other() -> None:
    runs = [queued(f"r{place}", (0, 1, 0, place)) for place in range(5)]
    assert hosts_of(schedule(runs, TWO_HOSTS)) == ["a", "a", "b", "b"]


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
                failure=draw(st.sampled_from([FOR_GOOD, MAY_PASS])) if phase is Phase.ENDED else None,
            )
        runs.append(
            queued(
                f"r{index}",
                (0, 1, index % 2, index),
                state=state,
                attempt=attempt,
                last_step=draw(st.sampled_from([0, 100])),
                has_checkpoint=draw(st.booleans()),
                stop_wanted=draw(st.sampled_from([None, "by hand"])),
                wave=draw(st.sampled_from([None, 0])) if state is RunState.QUEUED else None,
                retries_left=draw(st.integers(0, 1)),
                abort=draw(st.sampled_from([None, ("explosion", "x")])),
                stopping_rule=draw(st.sampled_from(["", "explosion"])) if state is RunState.STOPPING else "",
            )
        )
    return runs


@given(worlds())
def test_no_two_runs_ever_share_a_slot_and_nobody_gets_two_orders(runs: list[RunFacts]) -> None:
    actions = schedule(runs, SLOTS)
    assert actions == schedule(runs, SLOTS)
    starts = [
        start
        for action in actions
        for start in (action.starts if isinstance(action, StartTogether) else (action,))
        if isinstance(start, Start) and start.kind is AttemptKind.TRAIN
    ]
    others = [action.run for action in actions if not isinstance(action, Start | StartTogether)]
    ordered = others + [start.run for start in starts]
    assert len(set(ordered)) == len(ordered)
    settled = {action.run for action in actions if isinstance(action, Settle | Retry)}
    held = [
        run.attempt.slot.name
        for run in runs
        if run.attempt and run.state is not RunState.QUEUED and run.run not in settled
    ]
    given_out = [start.slot.name for start in starts]
    assert len(held + given_out) == len(set(held + given_out))
    waiting = [run for run in runs if run.state is RunState.QUEUED and not run.stop_wanted]
    free = 2 - len(held)
    if all(run.wave is None for run in waiting):
        assert len(given_out) == min(len(waiting), free)
    # A slot stays empty only while a wave waits for another one.
    if free == 2 and waiting:
        assert given_out
