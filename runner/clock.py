"""The clocks of the edges, behind one small protocol so that a test decides what time it is."""

from __future__ import annotations

import select
import time
from collections.abc import Collection
from typing import Protocol


class Clock(Protocol):
    """Wall time for records, monotonic time for durations, and waiting. All in seconds."""

    def now(self) -> float:
        """Seconds since the epoch."""
        ...

    def monotonic(self) -> float:
        """Seconds that never run backwards."""
        ...

    def wait(self, seconds: float, descriptors: Collection[int] = ()) -> frozenset[int]:
        """Wait so long, or until one of the file descriptors is readable; returns those that are."""
        ...


class SystemClock:
    """The machine's clocks."""

    def now(self) -> float:
        """Seconds since the epoch."""
        return time.time()

    def monotonic(self) -> float:
        """Seconds that never run backwards."""
        return time.monotonic()

    def wait(self, seconds: float, descriptors: Collection[int] = ()) -> frozenset[int]:
        """Wait for real; a signal handler that runs in between does not end the waiting."""
        poll = select.poll()
        for descriptor in descriptors:
            poll.register(descriptor, select.POLLIN)
        return frozenset(descriptor for descriptor, _ in poll.poll(seconds * 1000))
