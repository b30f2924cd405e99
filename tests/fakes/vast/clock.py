"""Time of the fake, in seconds since 1970: told by a test, or following the real clock for use by hand."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

START_S = 1_800_000_000.0


class VirtualClock:
    """Stands still until it is told to move. Safe to use from several threads."""

    def __init__(self, now_s: float = START_S) -> None:
        self._now_s = now_s
        self._lock = threading.Lock()

    def __call__(self) -> float:
        """The time, in seconds since 1970."""
        with self._lock:
            return self._now_s

    def advance(self, by_s: float) -> float:
        """Move on by so many seconds (>= 0) and say the new time. Raises ValueError for a step back."""
        if by_s < 0:
            raise ValueError(f"time does not go back: {by_s} s")
        with self._lock:
            self._now_s += by_s
            return self._now_s


class FollowingClock:
    """Runs `factor` times as fast as the real clock, from `start_s` on."""

    def __init__(
        self, factor: float = 1.0, start_s: float | None = None, real: Callable[[], float] = time.monotonic
    ) -> None:
        if factor <= 0:
            raise ValueError(f"the factor must be above 0, not {factor}")
        self._factor, self._real = factor, real
        self._start_s = time.time() if start_s is None else start_s
        self._began = real()

    def __call__(self) -> float:
        """The time, in seconds since 1970."""
        return self._start_s + (self._real() - self._began) * self._factor

    def skip(self, by_s: float) -> None:
        """Move on by so many seconds (>= 0) at once."""
        self._start_s += by_s
