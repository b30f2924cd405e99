"""Who carries out a verb while the controller goes on: one call at a time in each lane, and when to ask again.

Releases have a lane of their own, so that no search and no slow machine ever holds one up.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

from provisioning.base import ProvisioningError, RateLimited

Lane = Literal["ask", "look", "release"]
ASK: Lane = "ask"
LOOK: Lane = "look"
RELEASE: Lane = "release"

Submit = Callable[[Lane, Callable[[], Any]], "Future[Any]"]
"""Has a call carried out in a lane, at once or soon."""

FIRST_WAIT_S = 2.0
MOST_WAIT_S = 60.0


class LaneThreads:
    """One thread for each lane. `close` waits for nothing: a call under way ends with its own deadline."""

    def __init__(self) -> None:
        self._threads = {lane: ThreadPoolExecutor(1, f"renting-{lane}") for lane in (ASK, LOOK, RELEASE)}

    def __call__(self, lane: Lane, call: Callable[[], Any]) -> Future[Any]:
        """Put a call into its lane."""
        return self._threads[lane].submit(call)

    def close(self) -> None:
        """Begin nothing more."""
        for threads in self._threads.values():
            threads.shutdown(wait=False, cancel_futures=True)


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a verb: its error, which is one of its provider's or a ValueError (None: it went well), or its
    result. It was handed over at `asked_s`, and what came is applied at `now_s`."""

    error: ProvisioningError | ValueError | None
    result: Any
    asked_s: float
    now_s: float


@dataclass(frozen=True, slots=True)
class _Call:
    lane: Lane
    asked_s: float
    future: Future[Any]
    apply: Callable[[Answer], None]


class Calls:
    """What is under way, at most one call a lane. `clock` is in seconds since the epoch."""

    def __init__(self, submit: Submit, clock: Callable[[], float]) -> None:
        self._submit = submit
        self._clock = clock
        self._under_way: dict[Lane, _Call] = {}

    def is_free(self, lane: Lane) -> bool:
        """Whether the lane takes a call now."""
        return lane not in self._under_way

    @property
    def any_under_way(self) -> bool:
        """Whether something has not been answered."""
        return bool(self._under_way)

    def begin(self, lane: Lane, verb: Callable[[], Any], apply: Callable[[Answer], None]) -> None:
        """Hand a verb over; what becomes of it is applied by `apply_answers`."""
        assert self.is_free(lane), f"{lane} is taken"
        self._under_way[lane] = _Call(lane, self._clock(), self._submit(lane, verb), apply)

    def apply_answers(self) -> None:
        """Apply what has been answered since the last time. Raises what is no error of a provider."""
        for call in [call for call in self._under_way.values() if call.future.done()]:
            del self._under_way[call.lane]
            error = call.future.exception()
            if error is not None and not isinstance(error, ProvisioningError | ValueError):
                raise error
            result = None if error is not None else call.future.result()
            call.apply(Answer(error, result, call.asked_s, self._clock()))


@dataclass
class Waits:
    """When something may be asked again: after an error twice as late as the time before, up to a minute; after being
    asked to slow down as late as was said."""

    _due_s: dict[Any, float] = field(default_factory=dict)
    _tries: dict[Any, int] = field(default_factory=dict)

    def due_s(self, *keys: Any) -> float:
        """The first moment at which all of these may be asked."""
        return max((self._due_s.get(key, float("-inf")) for key in keys), default=float("-inf"))

    def at(self, key: Any, due_s: float) -> None:
        """Not before then."""
        self._due_s[key] = due_s

    def after(self, key: Any, now_s: float, error: Exception) -> None:
        """Later, because this went wrong."""
        wait_s = getattr(error, "wait_s", None) if isinstance(error, RateLimited) else None
        if wait_s is None:
            tries = self._tries.get(key, 0)
            self._tries[key] = tries + 1
            wait_s = wait_after(tries)
        self._due_s[key] = now_s + wait_s + 0.01

    def well(self, key: Any) -> None:
        """It went well: the next error is the first one again."""
        self._tries.pop(key, None)
        self._due_s.pop(key, None)


def wait_after(tries: int) -> float:
    """Seconds to wait after so many errors in a row before this one: 2, 4, 8 … 60."""
    return min(MOST_WAIT_S, FIRST_WAIT_S * 2.0 ** min(tries, 10))
