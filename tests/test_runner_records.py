"""Runs move only along the drawn lines, and what ended comes back only in the ways that are named."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from runner.records import ENDED, MOVES, ON_A_SLOT, RunState, is_legal

STATES = st.sampled_from(list(RunState))


def test_every_state_has_its_moves_and_is_waiting_on_a_slot_or_ended() -> None:
    assert set(MOVES) == set(RunState)
    assert ENDED | ON_A_SLOT | {RunState.QUEUED} == set(RunState)
    assert not ENDED & ON_A_SLOT


@given(st.lists(STATES, min_size=1, max_size=40))
def test_random_walks_keep_the_promises(wishes: list[RunState]) -> None:
    state = RunState.QUEUED
    for wish in wishes:
        if not is_legal(state, wish):
            continue
        if state in ENDED:
            assert wish is RunState.QUEUED or (state is RunState.LOST and wish is RunState.RUNNING)
        if wish is RunState.RUNNING:
            assert state in (RunState.STARTING, RunState.LOST)
        if wish is RunState.ABORTED:
            assert state in (RunState.STARTING, RunState.RUNNING, RunState.STOPPING)
        state = wish


def test_every_state_can_be_reached_and_every_open_one_can_end() -> None:
    reached, frontier = {RunState.QUEUED}, [RunState.QUEUED]
    while frontier:
        for following in MOVES[frontier.pop()]:
            if following not in reached:
                reached.add(following)
                frontier.append(following)
    assert reached == set(RunState)
    for state in ON_A_SLOT:
        assert MOVES[state] & ENDED
