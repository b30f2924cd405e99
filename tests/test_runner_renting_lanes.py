"""When something is asked again, and who waits for whom."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioning.base import NotYetReleased, ProvisioningError
from provisioning.vast.errors import TooEarly
from runner.renting.book import SteadyClock
from runner.renting.lanes import ASK, MOST_WAIT_S, RELEASE, Answer, Calls, LaneThreads, Waits, wait_after


def test_each_error_in_a_row_waits_longer_up_to_a_minute() -> None:
    waits, found = Waits(), []
    for _ in range(8):
        waits.after("release", 100.0, NotYetReleased("no"))
        found.append(round(waits.due_s("release") - 100.0))
    assert found == [2, 4, 8, 16, 32, 60, 60, 60]
    waits.well("release")
    assert waits.due_s("release") == float("-inf")
    waits.after("release", 100.0, NotYetReleased("no"))
    assert round(waits.due_s("release") - 100.0) == 2


def test_being_told_how_long_to_wait_is_no_failure() -> None:
    waits = Waits()
    for _ in range(5):
        waits.after("create", 0.0, TooEarly("PUT", 4.95, was_sent=False))
    assert waits.due_s("create") == pytest.approx(4.96)
    waits.after("create", 0.0, ProvisioningError("no"))
    assert round(waits.due_s("create")) == 2


@given(st.integers(0, 10_000))
def test_no_wait_is_longer_than_a_minute(tries: int) -> None:
    assert 0.0 < wait_after(tries) <= MOST_WAIT_S


def test_all_of_several_waits_count() -> None:
    waits = Waits()
    waits.at("create", 5.0)
    waits.at(("create", 1), 9.0)
    assert waits.due_s("create", ("create", 1)) == 9.0
    assert waits.due_s("never asked") == float("-inf")


def test_a_lane_takes_one_call_and_gives_its_answer_once() -> None:
    futures: list[Future[Any]] = []

    def submit(_lane: str, verb: Callable[[], Any]) -> Future[Any]:
        futures.append(Future())
        return futures[-1]

    calls, found = Calls(submit, lambda: 7.0), list[Answer]()
    calls.begin(ASK, lambda: 1, found.append)
    assert not calls.is_free(ASK)
    assert calls.is_free(RELEASE)
    with pytest.raises(AssertionError, match="taken"):
        calls.begin(ASK, lambda: 2, found.append)
    calls.apply_answers()
    assert found == []
    futures[0].set_result(1)
    calls.apply_answers()
    calls.apply_answers()
    assert found == [Answer(None, 1, 7.0, 7.0)]
    assert not calls.any_under_way


def test_threads_of_one_lane_do_not_hold_up_another() -> None:
    lanes, let_go = LaneThreads(), threading.Event()
    try:
        slow = lanes(ASK, lambda: let_go.wait(30))
        assert lanes(RELEASE, lambda: "gone").result(10) == "gone"
        assert not slow.done()
    finally:
        let_go.set()
        lanes.close()


@given(st.lists(st.tuples(st.floats(-1e6, 1e6), st.floats(0.0, 1e5)), max_size=20))
def test_a_steady_clock_never_gives_time_back(moves: list[tuple[float, float]]) -> None:
    wall, monotonic = [1e9], [0.0]
    clock = SteadyClock(lambda: wall[0], lambda: monotonic[0], 0.0)
    began_s = last_s = clock()
    for jump_s, passed_s in moves:
        wall[0] += jump_s
        monotonic[0] += passed_s
        now_s = clock()
        assert now_s >= last_s + passed_s - 1e-3
        last_s = now_s
    assert last_s - began_s >= monotonic[0] - 1e-3 * (len(moves) + 1)
