"""How often a run is judged: a matter of cost alone, because a verdict does not depend on it."""

from __future__ import annotations

from collections.abc import Callable

JUDGING_SHARE = 0.05
"""The part of one core that judging may take, shared by the runs that live."""


class Pace:
    """When to judge again. How often the judge looks never changes what it concludes, only how soon it is known, and a
    look costs more the longer a run is: so all of them together get a fixed share of a core, and a run that writes
    steadily waits for its turn. The end of an attempt and a value that is not finite do not wait.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._not_before_s: dict[tuple[str, int], float] = {}
        self._news: dict[tuple[str, int], bool] = {}  # what the judge has not seen yet, and whether it can wait
        self._broken: dict[tuple[str, int], frozenset[str]] = {}

    def news(self, run: str, attempt: int, not_finite: frozenset[str]) -> None:
        """Something was stored that the judge has not seen; the first bad value of a metric is urgent."""
        key = (run, attempt)
        broken = self._broken.get(key, frozenset())
        self._news[key] = self._news.get(key, False) or not not_finite <= broken
        self._broken[key] = broken | not_finite

    def is_due(self, run: str, attempt: int, at_end: bool) -> bool:
        """Whether to judge now. An attempt that this controller has not judged yet may hold what nobody judged."""
        key = (run, attempt)
        if key not in self._not_before_s:
            return True
        return key in self._news and (at_end or self._news[key] or self._monotonic() >= self._not_before_s[key])

    def judged(self, run: str, attempt: int, cost_s: float, live: int) -> None:
        """A run was judged, which took `cost_s`, while so many runs live."""
        self._news.pop((run, attempt), None)
        self._not_before_s[run, attempt] = self._monotonic() + cost_s * live / JUDGING_SHARE

    def forget(self, run: str, attempt: int) -> None:
        """The attempt is over."""
        for known in (self._news, self._not_before_s, self._broken):
            known.pop((run, attempt), None)
