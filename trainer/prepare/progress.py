"""Progress of long work: a bar with rate and time left on a terminal, a line now and then anywhere else. No torch."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

LINE_EVERY_S = 30.0

Advance = Callable[[int], None]
"""Says that so many more images are done."""


class _Rate(ProgressColumn):
    """Images per second since the beginning, and the time that is left at this rate. Images come batch by batch, all of
    one in a moment, so the last moments say nothing."""

    def render(self, task: Task) -> Text:
        here, elapsed_s = task.completed - task.fields["done"], task.elapsed
        if not here or not elapsed_s:
            return Text("")
        rate = here / elapsed_s
        left = timedelta(seconds=round((task.remaining or 0.0) / rate))
        return Text(f"{rate:,.1f}/s" if task.finished else f"{rate:,.1f}/s, {left} left")


@contextmanager
def bar(what: str, total: int, done: int = 0, now: Callable[[], float] = time.monotonic) -> Iterator[Advance]:
    """Show how far `what` is, on stderr; `done` of `total` images were there already."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield from _lines(what, total, done, now)
        return
    columns = (TextColumn("{task.description:<9}"), BarColumn(), MofNCompleteColumn(), _Rate())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(what, total=total, completed=done, done=done)
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
