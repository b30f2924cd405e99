"""When a route of the service may be asked again. Pure: the time comes in as a number, and chance as a function.

The service measures the time between two calls of one route, answers 429 below its threshold, and says nothing of
when to come back (no Retry-After). Each route is a lane of its own, with its own clock and its own backoff: whatever
happens to others never holds up a destroy. A lane takes one call at a time and its interval runs from the *end* of a
call, because the second call is then surely received an interval after the first, however slow the network was.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

MARGIN = 1.1
"""Our intervals are this much longer than the published thresholds."""

MOST_WAIT_S = 60.0
"""A longer wait after a 429 is never imposed; a service that wants more says so again."""

_LEAST_GUESS_S = 0.05
"""What a caller is told of a lane that is busy and has no threshold: nobody knows, but not "now"."""

_THRESHOLD = re.compile(r"threshold\s*[=:]\s*(\d{1,9}(?:\.\d{0,9})?)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Route:
    """One route of the service: what the limit is counted by.

    `threshold_s` is the published least time between two calls (0 = not published); `penalty_s` is the least wait
    after a 429 where the service punishes with more than its threshold.
    """

    method: str
    template: str
    threshold_s: float = 0.0
    penalty_s: float = 0.0


@dataclass(slots=True)
class _Lane:
    is_busy: bool = False
    free_at_s: float = float("-inf")
    learned_s: float = 0.0
    refusals: int = 0


class Spacing:
    """The lanes of one account. Not thread-safe: whoever shares it holds a lock around each call.

    `jitter` gives numbers from 0 to 1 for the backoff. `since_s`: the time at which every route counts as just asked,
    because a process before this one may have done so (None = nobody did).
    """

    def __init__(self, jitter: Callable[[], float], since_s: float | None = None) -> None:
        self._jitter = jitter
        self._since_s = since_s
        self._lanes: dict[Route, _Lane] = {}

    def wait_s(self, route: Route, now_s: float) -> float:
        """Seconds until the route may be asked; 0 = now. While a call is under way: its interval, as a guess."""
        lane = self._lane(route)
        if lane.is_busy:
            return max(_interval_s(route, lane), _LEAST_GUESS_S)
        return min(MOST_WAIT_S, max(0.0, lane.free_at_s - now_s))  # the sum and the difference may round up

    def begin(self, route: Route, now_s: float) -> None:
        """A call starts. Raises ValueError when it may not: `wait_s` was not asked, or not heeded."""
        wait_s = self.wait_s(route, now_s)
        if wait_s > 0.0:
            raise ValueError(f"{route.method} {route.template}: {wait_s:.3f} s too early")
        self._lane(route).is_busy = True

    def end(self, route: Route, now_s: float) -> None:
        """The call is over, with any answer but 429, or with none: the next may come an interval later."""
        lane = self._lane(route)
        lane.is_busy, lane.refusals = False, 0
        lane.free_at_s = now_s + _interval_s(route, lane)

    def refused(self, route: Route, now_s: float, said: str) -> float:
        """The answer was 429 with this text. Returns the seconds to wait: longer with each refusal in a row, never
        below the threshold that the text names, never above MOST_WAIT_S."""
        lane = self._lane(route)
        lane.learned_s = max(lane.learned_s, min(threshold_s(said) or 0.0, MOST_WAIT_S / MARGIN))
        least_s = max(_interval_s(route, lane), route.penalty_s * MARGIN, 1.0)
        # 2 ** 6 is above the cap whatever the threshold is; more would only grow a number.
        doubled_s = least_s * 2.0 ** min(lane.refusals, 6) * (1.0 + 0.5 * self._jitter())
        wait_s = min(MOST_WAIT_S, doubled_s)
        lane.is_busy, lane.refusals, lane.free_at_s = False, lane.refusals + 1, now_s + wait_s
        return wait_s

    def _lane(self, route: Route) -> _Lane:
        if route not in self._lanes:
            lane = self._lanes[route] = _Lane()
            if self._since_s is not None:
                lane.free_at_s = self._since_s + _interval_s(route, lane)
        return self._lanes[route]


def threshold_s(said: str) -> float | None:
    """The threshold in seconds that the text of a 429 names ("...: endpoint threshold=4.5"), or None."""
    found = _THRESHOLD.search(said)
    return float(found.group(1)) if found else None


def _interval_s(route: Route, lane: _Lane) -> float:
    return max(route.threshold_s, lane.learned_s) * MARGIN
