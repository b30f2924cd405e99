"""Work in order: the next items are read, several are computed at once, answers come in the items' order. No torch.

A batch is computed by one thread, whatever else happens, so its bits do not depend on how many are computed at once.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
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


def in_order(
    items: Iterable[Item], begin: Callable[[Item], Future[Answer]], ahead: int
) -> Generator[tuple[Item, Answer], None, None]:
    """Every item with the answer that `begin` promises, in the order of the items; an exception is raised in its place.

    At most `ahead` items have begun and are not asked for yet. Whoever stops asking lets what runs come to its end, and
    nothing else begins.
    """
    pending: deque[tuple[Item, Future[Answer]]] = deque()
    following = iter(items)
    try:
        while True:
            pending.extend((item, begin(item)) for item in islice(following, ahead - len(pending)))
            if not pending:
                return
            item, answer = pending.popleft()
            yield item, answer.result()
    finally:
        for _, waiting in pending:
            waiting.cancel()


def answers_in_order(
    items: Iterable[Item], read: Callable[[Item], Input], compute: Callable[[Input], Answer], threads: int
) -> Generator[tuple[Item, Answer], None, None]:
    """`in_order` of what `compute` says of what `read` found; several are computed at once, one is read at a time."""
    reader, computing = ThreadPoolExecutor(1, "read"), ThreadPoolExecutor(threads, "compute")

    def begin(item: Item) -> Future[Answer]:
        found = reader.submit(read, item)
        return computing.submit(lambda: compute(found.result()))

    try:
        yield from in_order(items, begin, threads + AHEAD)
    finally:
        # The reader ends first in no case: what computes may wait for it.
        computing.shutdown(wait=True, cancel_futures=True)
        reader.shutdown(wait=True, cancel_futures=True)
