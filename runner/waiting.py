"""Tells people why runs wait: slots that are withheld, machines that are silent, room that a wave lacks."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence

from runner.places import Places
from runner.records import RunState
from runner.run_facts import RunFacts
from runner.store import changes
from runner.store.session import Session

_AMOUNT = re.compile(r"[\d,]+ MiB|[\d.]+ (?:s|min|h|%)\b")


class Waiting:
    """What was said of waiting runs; said again when it changes."""

    def __init__(self, session: Session, places: Places, now: Callable[[], float]) -> None:
        self._session = session
        self._places = places
        self._now = now
        self._gists: dict[str, str] = {}

    def tell(self, facts: Sequence[RunFacts], room: Mapping[str, str], rented: Mapping[str, str]) -> list[str]:
        """One round; `room` says why runs cannot start on the hosts as they are, `rented` why there is no machine for
        them yet. Returns the runs that it told of."""
        if not (self._places.withheld() or room or rented or any(self._gists.values())):
            return []
        told = []
        for fact in facts:
            if fact.state is not RunState.QUEUED:
                continue
            there = rented.get(fact.run, "")
            reason = there or "; ".join(self._reasons(fact, room))
            # Amounts that change are no news, nor is every word of a machine that starts.
            gist = there.partition(":")[0] if there else re.sub(_AMOUNT, "", reason)
            if gist == self._gists.get(fact.run, ""):
                continue
            self._gists[fact.run] = gist
            told.append(fact.run)
            said = f"waits: {reason}" if reason else "every slot of its kind may be used again"
            with self._session.transaction() as connection:
                changes.set_run(connection, fact.run, reason=said)
                changes.add_event(connection, self._now(), "waiting", said, run=fact.run)
        return told

    def _reasons(self, fact: RunFacts, room: Mapping[str, str]) -> list[str]:
        reasons = [str(one) for one in self._places.withheld(fact.shape)]
        if reasons and fact.shape.host:
            reasons.append(f"its files are on {fact.shape.host}: it goes on there, or elsewhere once they are here")
        return [*reasons, room[fact.run]] if fact.run in room else reasons

    def forget(self, names: Collection[str]) -> None:
        """Keep in memory only what belongs to these runs."""
        self._gists = {run: gist for run, gist in self._gists.items() if run in names}
