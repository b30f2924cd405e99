"""Work in order: the next items are read, several are computed at once, answers come in the items' order. No torch.

A batch is computed by one thread, whatever else happens, so its bits do not depend on how many are computed at once.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

AHEAD = 2
"""Items that are read before anybody can compute them."""
MOST_THREADS = 8

Item = TypeVar("Item")
Input = TypeVar("Input")
Answer = TypeVar("Answer")


def threads_of_machine() -> int:
    """Batches that a model on the CPU computes at once: one for each core that this process may use, at most 8."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MOST_THREADS, cores)


def answers_in_order(
    items: Sequence[Item], read: Callable[[Item], Input], compute: Callable[[Input], Answer], threads: int
) -> Iterator[tuple[Item, Answer]]:
    """Every item with what `compute` says of what `read` found; an exception of either is raised in its place.

    Whoever stops asking lets what has begun come to its end, and nothing else begins.
    """
    reader, computing = ThreadPoolExecutor(1, "read"), ThreadPoolExecutor(threads, "compute")
    pending: deque[tuple[Item, Future[Answer]]] = deque()
    following = iter(items)

    def begin_next() -> None:
        for item in following:
            found = reader.submit(read, item)
            pending.append((item, computing.submit(lambda found=found: compute(found.result()))))
            return

    try:
        for _ in range(threads + AHEAD):
            begin_next()
        while pending:
            item, answer = pending.popleft()
            yield item, answer.result()
            begin_next()
    finally:
        # The reader ends first in no case: what computes may wait for it.
        computing.shutdown(wait=True, cancel_futures=True)
        reader.shutdown(wait=True, cancel_futures=True)
