"""What the provider says that machines have cost, after they were given back."""

from __future__ import annotations

from dataclasses import replace

from sqlalchemy import Connection

from runner.renting.book import Book
from runner.renting.lanes import ASK, Answer, Calls, Waits
from runner.renting.leases import Change, Lease
from runner.renting.market import Market
from runner.renting.money import Bill
from runner.store.opening import driver_of, stored_document

AFTER_S = (60.0, 3900.0)
"""A bill is asked for so long after a release: what was charged at once, and once more when an hour has been closed."""

BEFORE_S = 3600.0
"""The span that is asked for begins so much before the oldest of the machines: two clocks need not agree."""

MOST_TRIES, LATER_S = 6, 3600.0
"""After so many errors in a row, a minute of them, a bill is left for so long: a key may be allowed no bills at all."""

FORGET_S = 30 * 86400.0
"""No controller begins to ask for a bill that is so old: the account may be closed, and its key still be set."""


class Bills:
    """Asks for the charges of released machines, a few times each; no machine waits for it."""

    def __init__(self, book: Book, market: Market, calls: Calls, waits: Waits) -> None:
        self._book = book
        self._market = market
        self._calls = calls
        self._waits = waits
        self._batch: dict[int, int] = {}
        self._span_s = (0.0, 0.0)
        self._tries = 0

    def due_s(self) -> float:
        """When the next bill may be asked for; infinite when all are known."""
        if self._batch:
            return self._waits.due_s("charges")
        return max(min((_due_s(one) for one in self._book.all()), default=float("inf")), self._waits.due_s("charges"))

    def hand_over(self, now_s: float) -> bool:
        """Ask for one page of charges; false: nothing is due."""
        if self._waits.due_s("charges") > now_s:
            return False
        if not self._batch:
            due = [one for one in self._book.all() if _due_s(one) <= now_s]
            if not due:
                return False
            # All pages are of the same span.
            self._batch = {one.id: one.charges_asked for one in due}
            self._span_s = min(one.created_s for one in due) - BEFORE_S, now_s
        handles, (from_s, to_s) = [self._book.leases[number].handle for number in self._batch], self._span_s
        self._calls.begin(ASK, lambda: self._market.charges(handles, from_s, to_s), self._on_charges)
        return True

    def _on_charges(self, answer: Answer) -> None:
        if answer.error is not None:
            self._tries += 1
            self._waits.after("charges", answer.now_s, answer.error)
            if self._tries % MOST_TRIES == 0:
                self._waits.at("charges", answer.now_s + LATER_S)
            return
        self._tries = 0
        self._waits.well("charges")
        if answer.result is None:  # there are more pages
            return
        asked = [(self._book.leases[number], times) for number, times in self._batch.items()]
        self._batch = {}
        self._book.write(
            [
                Change(replace(one, charged_usd=answer.result.get(one.label, one.charged_usd), charges_asked=times + 1))
                for one, times in asked
            ]
        )


def bill_of(lease: Lease) -> Bill:
    """What a machine cost so far. What is charged may grow until the last reading."""
    return replace(lease.bill, is_whole=_is_whole(lease.charges_asked))


def as_counted(lease: Lease) -> Lease:
    """As a lease counts against its purse: with a bill that is not below our own meter until the last reading."""
    bill = bill_of(lease)
    return lease if bill.charged_usd is None else replace(lease, charged_usd=bill.bound_usd)


def unread(connection: Connection, now_s: float) -> set[str]:
    """The providers of machines that were given back and whose bills were not read for the last time; what is older
    than a month is not asked for any more."""
    query = "SELECT provider, document FROM leases WHERE released > ? AND host != '' AND document IS NOT NULL"
    rows = driver_of(connection).execute(query, (now_s - FORGET_S,)).fetchall()
    return {name for name, text in rows if not _is_whole(stored_document(text).get("charges_asked", 0))}


def _is_whole(charges_asked: int) -> bool:
    return charges_asked >= len(AFTER_S)


def _due_s(lease: Lease) -> float:
    if lease.released_s is None or not lease.host or _is_whole(lease.charges_asked):
        return float("inf")
    return lease.released_s + AFTER_S[lease.charges_asked]
