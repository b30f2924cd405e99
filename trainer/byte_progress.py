"""Progress of bytes that travel: a bar with rate and time left on a terminal, a line now and then anywhere else.

No torch. It may be told of bytes by several threads.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LINE_EVERY_S = 30.0

Advance = Callable[[int], None]
"""Says that so many more bytes are there."""


@contextmanager
def byte_bar(what: str, total: int, done: int = 0, now: Callable[[], float] = time.monotonic) -> Iterator[Advance]:
    """Show on stderr how far `what` is; `done` of `total` bytes were there already."""
    from rich.console import Console  # not for whoever only wants to know how large something is
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines(what, total, done, now)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True))
    with Progress(*columns, TransferSpeedColumn(), TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task(what, total=total, completed=done)
        yield lambda count: progress.advance(task, count)


def in_words(count: int) -> str:
    """Bytes as a person reads them."""
    size, unit = float(count), "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{count:,} bytes" if unit == "bytes" else f"{size:,.1f} {unit}"


def _lines(what: str, total: int, done: int, now: Callable[[], float]) -> Advance:
    begun = told = now()
    count, lock = done, threading.Lock()

    def advance(more: int) -> None:
        nonlocal count, told
        with lock:
            count += more
            if now() - told < LINE_EVERY_S:
                return
            told = now()
            rate = max(0, count - done) / max(told - begun, 1e-9)
        left = f", {(total - count) / rate:,.0f} s left" if rate else ""
        line = f"{what}: {in_words(count)} of {in_words(total)}, {in_words(int(rate))}/s{left}"
        print(line, file=sys.stderr, flush=True)

    return advance
