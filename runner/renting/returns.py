"""Giving machines back, in a lane of its own, until the provider has proved each of them gone. Never given up."""

from __future__ import annotations

from provisioning.base import AuthenticationFailed, Handle, RateLimited
from runner.renting import decide
from runner.renting.book import Book
from runner.renting.lanes import RELEASE, Answer, Calls, Waits
from runner.renting.leases import Lease, Told
from runner.renting.market import Market
from runner.renting.watch import Watch

TOLD_AFTER_S = 120.0
"""A release that is not proven after so long is told of; the usual ones of a busy service are not."""


class Returns:
    """Releases what is to be given back: leases, and whatever else carries this home's name."""

    def __init__(self, book: Book, market: Market, calls: Calls, waits: Waits, watch: Watch) -> None:
        self._book = book
        self._market = market
        self._calls = calls
        self._waits = waits
        self._watch = watch
        self._first_s: dict[int, float] = {}

    def due_s(self) -> float:
        """When something may be asked for again; infinite when nothing is to be given back."""
        hosts = [*(one.host for one in self._book.to_release()), *(handle.host for handle in self._watch.extras)]
        return min((self._waits.due_s("release", ("release", host)) for host in hosts), default=float("inf"))

    def hand_over(self, now_s: float) -> bool:
        """Ask for the one that has waited longest; false: nothing is due."""
        due = [(self._waits.due_s("release", ("release", one.host)), one.id) for one in self._book.to_release()]
        if due and min(due)[0] <= now_s:
            self._release(self._book.leases[min(due)[1]], now_s)
            return True
        for handle in self._watch.extras:
            if self._waits.due_s("release", ("release", handle.host)) <= now_s:
                self._release_extra(handle)
                return True
        return False

    def _release(self, lease: Lease, now_s: float) -> None:
        self._first_s.setdefault(lease.id, now_s)
        self._calls.begin(
            RELEASE, lambda: self._market.release(lease.handle), lambda answer: self._on_release(lease, answer)
        )

    def _release_extra(self, handle: Handle) -> None:
        self._calls.begin(RELEASE, lambda: self._market.release(handle), lambda answer: self._on_extra(handle, answer))

    def _on_release(self, asked: Lease, answer: Answer) -> None:
        lease, first_s = self._book.leases[asked.id], self._first_s[asked.id]
        if answer.error is None:
            self._book.well(("release", lease.id), f"{lease.label} ({lease.host}) is given back now")
            self._book.well("key", f"{self._book.provider} takes our key again")
            del self._first_s[lease.id]
            if lease.host == asked.host:
                self._book.write([decide.after_release(lease, answer.result, first_s, answer.now_s)])
            return
        self._later(lease.handle, answer)
        is_usual = isinstance(answer.error, RateLimited | AuthenticationFailed)
        if not is_usual and answer.now_s - first_s > TOLD_AFTER_S:
            reason = f"{lease.label} ({lease.host}) is not given back yet, asked again until it is: {answer.error}"
            self._book.tell_once(("release", lease.id), reason)

    def _on_extra(self, handle: Handle, answer: Answer) -> None:
        if answer.error is not None:
            self._later(handle, answer)
            return
        why = self._watch.extras.pop(handle, "")
        self._book.tell(Told("released", f"{handle.label} ({handle.host}): {why}; {answer.result.proof}"))

    def _later(self, handle: Handle, answer: Answer) -> None:
        assert answer.error is not None
        if isinstance(answer.error, AuthenticationFailed):
            self._book.tell_once(
                "key", f"{self._book.provider} refuses our key, asked again until it works: {answer.error}"
            )
        is_lane = isinstance(answer.error, RateLimited)
        self._waits.after("release" if is_lane else ("release", handle.host), answer.now_s, answer.error)
