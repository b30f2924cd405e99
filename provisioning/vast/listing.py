"""The list of all instances of the account, read page by page: what proves that something is there, or is not.

One reader serves whoever asks, from any thread. Only a list that is complete, and that was begun after what it is asked
about, says that something is not there; a single record says that it is.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from provisioning.vast.api import VastApi
from provisioning.vast.errors import CallRefused, NoAnswer
from provisioning.vast.models import Instance, Listing

OLDEST_S = 300.0
"""A list that was begun so long ago, and was held up, is begun anew: its first pages are no news any more."""


@dataclass(frozen=True, slots=True)
class Listed:
    """What was read: instances by number, whether that is all there are, and when the first page was asked for
    (seconds, monotonic)."""

    instances: Mapping[int, Instance]
    is_complete: bool
    begun_s: float

    def under(self, label: str) -> tuple[Instance, ...]:
        """The instances with exactly this label whose contract is not over, oldest number first."""
        return tuple(one for one in self.living() if one.label == label)

    def living(self) -> Iterator[Instance]:
        """All instances whose contract is not over, by number."""
        return (one for _, one in sorted(self.instances.items()) if not one.is_unloaded)


class ListReader:
    """Reads the list. `monotonic` never runs backwards."""

    def __init__(self, api: VastApi, monotonic: Callable[[], float]) -> None:
        self._api = api
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._partial = Listing.empty()
        self._begun_s = 0.0
        self._round = 0
        self._latest: Listed | None = None
        self._seen: dict[int, Instance] = {}

    def step(self) -> Listed:
        """Read one page; what this list holds with it.

        Raises TooEarly, AuthenticationFailed, or NoAnswer: then the page is asked for again next time.
        """
        with self._lock:
            if self._monotonic() - self._begun_s > OLDEST_S:
                self._partial = Listing.empty()
            partial, asked_in = self._partial, self._round
            if not partial.tokens:
                self._begun_s = self._monotonic()
            begun_s = self._begun_s
        try:
            page = self._api.instances(partial.after_token)
            read = partial.with_page(page)
        except (CallRefused, ValueError) as problem:
            self.restart()
            raise NoAnswer(f"the list is begun again: {problem}") from None
        with self._lock:
            if asked_in != self._round or self._partial is not partial:
                return Listed({}, False, begun_s)  # of what was made meanwhile this page cannot speak
            self._seen |= {one.instance_id: one for one in page.instances}
            found = Listed(read.instances, read.is_complete, begun_s)
            self._partial = Listing.empty() if read.is_complete else read
            if read.is_complete:
                self._seen, self._latest = dict(read.instances), found
            return found

    def restart(self) -> None:
        """Begin a new list, and forget what was read of this one: something has just been made."""
        with self._lock:
            self._partial = Listing.empty()
            self._round += 1

    def latest(self) -> Listed | None:
        """The last complete list."""
        with self._lock:
            return self._latest

    def seen(self) -> Listed:
        """What was seen last of each, pages of an unfinished list included: for looking up what is there."""
        with self._lock:
            return Listed(dict(self._seen), False, self._begun_s)
