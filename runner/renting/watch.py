"""When the provider's list is read, when a list began that says that something is not there, and what should not be
there at all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from provisioning.base import Handle
from runner.renting.decide import Limits
from runner.renting.leases import Lease, State
from runner.renting.market import Market

WATCH_S = 10.0
"""Between two lists while something starts, is given back, or is unknown: as the provider's own machine test polls."""

STEADY_S = 60.0
"""Between two lists while all machines run: an outbid one is noticed within that."""

PAGE_S = 1.15
"""Between two pages of one list: the published spacing of the route, and a tenth."""

SILENCE_S = 30.0
"""Between two questions at most, while no answer comes."""

DOUBT_S = 600.0
"""How long a home with nothing rented still looks for machines, after it was ever unknown whether one was made."""

SILENT_AFTER_S = 300.0
"""After so long without a list a person is told."""


class Watch:
    """What the loop knows of the provider's lists."""

    def __init__(self, market: Market, prefix: str, started_s: float, limits: Limits) -> None:
        self._market = market
        self._prefix = prefix
        self._limits = limits
        self.sentinel = f"{prefix}0"
        """A label that no lease ever has: it is absent exactly when a list is complete."""
        self.listed_s = started_s
        """The list that is being read began no earlier: the last complete one was asked for then."""
        self.due_s = started_s
        self.foreign: tuple[Handle, ...] = ()
        self.extras: dict[Handle, str] = {}
        """What carries our home's prefix and is no open lease's, and why it is to be given back."""
        self._swept = False
        self._doubt_s = float("-inf")
        self._silences = 0
        self._silent_since_s: float | None = None
        self.problem = ""
        """Why there has been no list for long; '' while they come."""

    def doubt(self, now_s: float) -> None:
        """It is, or was just, unknown whether something was made."""
        self._doubt_s = now_s

    def sweep(self, now_s: float) -> None:
        """Look once more at all that the account holds."""
        self._swept = False
        self.due_s = now_s

    @property
    def is_swept(self) -> bool:
        """Whether a complete list was read since the start, or since the last `sweep`."""
        return self._swept

    def is_needed(self, open_leases: Sequence[Lease], now_s: float) -> bool:
        """Whether a list must be read at all."""
        return bool(open_leases or self.extras) or not self._swept or now_s < self._doubt_s + DOUBT_S

    def failed(self, why: str, now_s: float) -> None:
        """A question was not answered, or not allowed."""
        self._silences += 1
        if self._silent_since_s is None:
            self._silent_since_s = now_s
        if now_s - self._silent_since_s >= SILENT_AFTER_S:
            self.problem = why

    def seen(self, is_complete: bool, why: str, asked_s: float, now_s: float, leases: Iterable[Lease]) -> None:
        """A page came, the last one of a list when it is complete; or none did."""
        if not is_complete:
            self.failed(why, now_s)
            # More pages come one by one; after a few of them it is rather an answer that does not come.
            self.due_s = now_s + min(SILENCE_S, PAGE_S * max(1.0, 1.3 ** (self._silences - 4)))
            return
        known = tuple(leases)
        self.listed_s = asked_s
        self._silences, self._silent_since_s, self.problem = 0, None, ""
        self._swept = True
        self._find_extras(known, now_s)
        settled = all(one.is_ready or not one.is_open for one in known) and not self.extras
        self.due_s = now_s + (STEADY_S if settled else WATCH_S)

    def soon(self, now_s: float) -> None:
        """Something has changed that the next list is to show."""
        self.due_s = min(self.due_s, now_s + PAGE_S)

    def _find_extras(self, leases: Sequence[Lease], now_s: float) -> None:
        # A list may lag: what was proved gone a moment ago may still be in it.
        known = [
            one.label
            for one in leases
            if one.is_open or (one.released_s is not None and now_s < one.released_s + self._limits.quiet_s)
        ]
        found = self._market.strangers(self._prefix, known)
        if found is not None:
            self.foreign = found.foreign
            for handle in found.ours:
                if handle.label.startswith(self._prefix):
                    self.extras.setdefault(handle, "it carries this home's label, and no lease of this home holds it")
        for lease in leases:
            if lease.state is State.OWNED:
                for handle in self._market.duplicates(lease.label, lease.host):
                    self.extras.setdefault(handle, f"it is a second machine under one label; {lease.host} is kept")
