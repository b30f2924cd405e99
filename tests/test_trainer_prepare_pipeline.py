"""Work in order: answers come in the order of the items, no further ahead than allowed, and it ends cleanly."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import closing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.prepare.pipeline import answers_in_order, in_order


@given(count=st.integers(0, 12), ahead=st.integers(1, 5))
def test_answers_keep_the_order_and_the_distance(count: int, ahead: int) -> None:
    begun: list[int] = []

    def begin(item: int) -> Future[int]:
        begun.append(item)
        promised: Future[int] = Future()
        promised.set_result(item * item)
        return promised

    for asked, (item, answer) in enumerate(in_order(range(count), begin, ahead)):
        assert (item, answer) == (asked, asked * asked)
        assert len(begun) == min(count, asked + ahead)
    assert begun == list(range(count))


def test_whoever_stops_asking_lets_nothing_else_begin() -> None:
    promised: list[Future[int]] = [Future() for _ in range(4)]
    promised[0].set_result(0)
    promised[1].set_running_or_notify_cancel()
    with closing(in_order(range(4), promised.__getitem__, 3)) as answers:
        assert next(answers) == (0, 0)
    assert [one.cancelled() for one in promised] == [False, False, True, False]
    assert not promised[3].done()


@settings(max_examples=15)
@given(items=st.lists(st.integers(), max_size=9), threads=st.integers(1, 4))
def test_what_is_read_is_computed_by_several_threads_in_order(items: Sequence[int], threads: int) -> None:
    found = list(answers_in_order(items, lambda item: item + 1, lambda read: read * 2, threads))
    assert found == [(item, (item + 1) * 2) for item in items]


@pytest.mark.parametrize("where", ["read", "compute"])
def test_an_error_comes_in_the_place_of_its_answer_and_ends_all(where: str) -> None:
    def refuse(value: int, here: str) -> int:
        if value == 3 and here == where:
            raise ValueError("three")
        return value

    read = answers_in_order(range(100), lambda item: refuse(item, "read"), lambda one: refuse(one, "compute"), 2)
    assert [next(read) for _ in range(3)] == [(0, 0), (1, 1), (2, 2)]
    with pytest.raises(ValueError, match="three"):
        next(read)
    assert not [one for one in threading.enumerate() if one.name.startswith(("read", "compute"))]
