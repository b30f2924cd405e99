"""Facts in, actions out, for what comes after a training and beside it: probes, final evaluations, autopsies."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.actions import EndAutopsy, Probe, Reap, Settle, Spawn, Start, Stop
from runner.failure import Exit
from runner.records import AttemptKind, RunState
from runner.run_facts import AttemptFacts, Phase, RunFacts
from runner.schedule import schedule, waits_for_room
from tests.test_runner_schedule import CPU0, CPU1, SHAPE, SLOTS, ended, on_slot, only, queued, stopped_by

EVALUATED = ended(0, kind=AttemptKind.EVALUATE, number=2)
OPENED = ended(0, kind=AttemptKind.AUTOPSY, number=3)


def test_a_training_is_asked_for_what_the_verdict_wants_and_only_once() -> None:
    warned = on_slot(probe_every_steps=50)
    assert warned.attempt is not None
    assert only(warned) == Probe("r", 1, 50)
    asked = replace(warned, attempt=replace(warned.attempt, probe_every_steps=50))
    assert schedule([asked], SLOTS) == ()
    assert only(replace(asked, probe_every_steps=25)) == Probe("r", 1, 25)
    assert only(replace(asked, probe_every_steps=None)) == Probe("r", 1, None)


def test_nobody_else_is_asked_and_a_stop_comes_first() -> None:
    warned = on_slot(probe_every_steps=50)
    assert schedule([replace(warned, is_trainer=False)], SLOTS) == ()
    assert schedule([replace(warned, state=RunState.STOPPING)], SLOTS) == ()
    assert only(replace(warned, abort=("regress", "worse"))) == Stop("r", 1, "worse", "regress")
    assert schedule([queued("q", probe_every_steps=50)], {SHAPE: ()}) == ()


def scored(**changes: Any) -> RunFacts:
    """An aborted run whose final evaluation has ended."""
    return replace(stopped_by("regress"), wants_autopsy=True, **{"attempt": EVALUATED, **changes})


def test_an_autopsy_follows_the_final_evaluation_on_the_same_slot() -> None:
    assert only(scored()) == Start("r", 3, AttemptKind.AUTOPSY, CPU0, resume=False)
    assert only(scored(attempt=replace(EVALUATED, exit=Exit(70, None, "exited")))).kind is AttemptKind.AUTOPSY
    assert only(replace(scored(), attempt=OPENED)) == Settle("r", RunState.ABORTED, "why", "regress")
    waiting = scored(attempt=replace(EVALUATED, release="waiting"))
    assert schedule([waiting, queued("next")], {SHAPE: (CPU0,)}) == ()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"stop_wanted": "by hand"}, "why (no autopsy: by hand)"),
        ({"autopsy_lacks": "its budget is used up"}, "why (no autopsy: its budget is used up)"),
        ({"attempt": replace(EVALUATED, release="quarantined")}, "slot was not given back in time)"),
        ({"wants_autopsy": False}, "why"),
    ],
)
def test_without_it_the_run_is_settled_and_says_why(changes: dict[str, Any], said: str) -> None:
    action = only(replace(scored(), **changes))
    assert isinstance(action, Settle)
    assert action.reason.endswith(said)
    assert (action.state, action.rule) == (RunState.ABORTED, "regress")


def test_a_spent_budget_is_no_reason_to_open_a_run_up() -> None:
    assert only(scored(stopping_rule="budget")) == Settle("r", RunState.ABORTED, "why", "budget")


def test_both_ends_are_told_and_neither_changes_the_rule() -> None:
    broken = scored(attempt=replace(OPENED, exit=Exit(None, 9, "deadline")), evaluation=Exit(70, None, "exited"))
    said = "why (its final evaluation ended with exit code 70) (its autopsy ended with"
    assert only(broken).reason.startswith(said)
    gone = only(scored(attempt=AttemptFacts(3, AttemptKind.AUTOPSY, Phase.GONE, CPU0, reported=True)))
    assert gone == Settle(
        "r", RunState.ABORTED, "why (its autopsy vanished before its end was written down)", "regress"
    )
    alive = scored(attempt=AttemptFacts(3, AttemptKind.AUTOPSY, Phase.LIVE, CPU0, reported=True))
    assert schedule([alive], SLOTS) == ()
    assert only(replace(alive, stop_wanted="by hand")) == Stop("r", 3, "by hand", "regress")


def asked(state: RunState = RunState.FINISHED, attempt: AttemptFacts | None = None, **changes: Any) -> RunFacts:
    """A run of two attempts, of which a person wants an autopsy as the third."""
    return replace(
        queued("r", state=state), attempt=attempt or ended(0, number=2), autopsy_attempt=3, **changes
    )  # fmt: skip


@pytest.mark.parametrize("state", [RunState.FINISHED, RunState.ABORTED, RunState.CANCELLED, RunState.QUEUED])
def test_one_that_was_asked_for_waits_for_a_slot_whatever_the_run_is(state: RunState) -> None:
    wanted = asked(state, has_checkpoint=True)
    assert only(wanted) == Start("r", 3, AttemptKind.AUTOPSY, CPU0, resume=False)
    assert schedule([on_slot(), wanted], {SHAPE: (CPU0,)}) == ()
    assert schedule([replace(wanted, budget="spent")], SLOTS) != ()
    lacking = replace(wanted, autopsy_lacks="its budget is used up")
    assert schedule([lacking], SLOTS) == (EndAutopsy("r", 3, "it was not begun: its budget is used up", ok=False),)


def test_its_process_is_looked_after_as_any_other() -> None:
    alive = AttemptFacts(3, AttemptKind.AUTOPSY, Phase.LIVE, CPU0, reported=True)
    assert only(asked(attempt=replace(alive, phase=Phase.INTENDED))) == Spawn("r", 3)
    assert only(asked(attempt=replace(alive, orphaned=True))) == Reap("r", 3)
    assert schedule([asked(attempt=alive, abort=("regress", "x"), probe_every_steps=5)], SLOTS) == ()
    assert only(asked(attempt=alive, stop_wanted="by hand")) == Stop("r", 3, "by hand")
    assert schedule([asked(attempt=replace(alive, stop_sent=True), stop_wanted="by hand")], SLOTS) == ()
    assert only(asked(attempt=OPENED)) == EndAutopsy("r", 3, "done", ok=True)
    for phase, word in ((Phase.GONE, "vanished"), (Phase.SILENT, "no sign of life")):
        over = only(asked(attempt=replace(alive, phase=phase)))
        assert (over.ok, word in over.reason) == (False, True)


def test_a_run_that_is_queued_again_meanwhile_waits_for_its_autopsy() -> None:
    alive = AttemptFacts(3, AttemptKind.AUTOPSY, Phase.LIVE, CPU0, reported=True)
    again = asked(RunState.QUEUED, alive)
    assert schedule([again, queued("next")], SLOTS) == (Start("next", 1, AttemptKind.TRAIN, CPU1, resume=False),)
    assert waits_for_room([again], SLOTS) == {"r": "its autopsy comes first"}


@given(
    st.sampled_from([RunState.FINISHED, RunState.ABORTED, RunState.QUEUED]),
    st.sampled_from(list(Phase)),
    st.integers(2, 3),
    st.sampled_from([None, "by hand"]),
    st.sampled_from(["", "its budget is used up"]),
    st.sampled_from([None, "spent"]),
)
def test_whatever_happens_an_asked_autopsy_only_begins_lives_or_ends(
    state: RunState, phase: Phase, number: int, stop: str | None, lacks: str, budget: str | None
) -> None:
    exit_ = Exit(0, None, "exited") if phase is Phase.ENDED else None
    kind = AttemptKind.AUTOPSY if number == 3 else AttemptKind.TRAIN
    attempt = AttemptFacts(number, kind, phase, CPU0, reported=True, exit=exit_)
    run = asked(state, attempt, stop_wanted=stop, autopsy_lacks=lacks, budget=budget, has_checkpoint=True)
    actions = schedule([run, queued("next", (0, 9, 0, 0))], {SHAPE: (CPU0,)})
    mine = [action for action in actions if action.run == "r"]
    assert len(mine) <= 1
    assert all(isinstance(action, Start | Spawn | Stop | EndAutopsy) for action in mine)
    starts = [action for action in actions if isinstance(action, Start)]
    assert len(starts) <= 1
    holds = number == 3 and phase in (Phase.INTENDED, Phase.LIVE)
    if holds:
        assert starts == []
