"""Progress of long work: a bar with rate and time left on a terminal, a line now and then anywhere else. No torch."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

LINE_EVERY_S = 30.0

Advance = Callable[[int], None]
"""Says that so many more images are done."""


class _Rate(ProgressColumn):
    """Images per second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.1f}/s")


@contextmanager
def bar(what: str, total: int, done: int = 0, now: Callable[[], float] = time.monotonic) -> Iterator[Advance]:
    """Show how far `what` is, on stderr; `done` of `total` images were there already."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield from _lines(what, total, done, now)
        return
    columns = (TextColumn("{task.description:<9}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(what, total=total, completed=done)
        yield lambda count: progress.advance(task, count)


def _lines(what: str, total: int, done: int, now: Callable[[], float]) -> Iterator[Advance]:
    begun = told = now()
    count = done

    def advance(more: int) -> None:
        nonlocal count, told
        count += more
        if now() - told >= LINE_EVERY_S:
            told = now()
            rate = (count - done) / max(told - begun, 1e-9)
            left = f", {(total - count) / rate:,.0f} s left" if rate else ""
            print(f"{what}: {count:,} of {total:,}, {rate:,.1f}/s{left}", file=sys.stderr, flush=True)

    yield advance
