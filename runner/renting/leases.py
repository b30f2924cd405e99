"""One rented machine as the controller knows it: frozen values, their legal moves, and their JSON.

intended ──▶ owned ──▶ released          intended: a row with a label of its own was committed before anybody was
    └──────────────────────▲             asked; something may or may not exist under that label
                                         owned: the provider said that it exists, and what its number is
                                         released: the provider said that nothing exists under the label any more
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from typing import Any

from provisioning.base import Handle, Request
from runner.renting.money import (
    Bill,
    Meter,
    Terms,
    meter_json,
    outlook_usd,
    terms_from_json,
    terms_json,
)


class State(StrEnum):
    """What the row of a lease says."""

    INTENDED = "intended"
    OWNED = "owned"
    RELEASED = "released"


LEGAL = {
    State.INTENDED: frozenset({State.INTENDED, State.OWNED, State.RELEASED}),
    State.OWNED: frozenset({State.OWNED, State.RELEASED}),
    State.RELEASED: frozenset({State.RELEASED}),
}

REQUESTED, CREATED, LOADING, RUNNING, REACHABLE = "requested", "created", "loading", "running", "reachable"
HALTED, OFFLINE, FAILED, GONE = "halted", "offline", "failed", "gone"
BOOT_STAGES = (REQUESTED, CREATED, LOADING, RUNNING, REACHABLE)
"""The stages of a start, in their order; REACHABLE is its end."""


@dataclass(frozen=True, slots=True)
class Want:
    """Somebody needs one machine. `key` is unique among wants and stays the same over restarts.

    `purse` is whose money it is (a study); `max_usd` is the most that all leases of the purse may ever cost together,
    None = no limit.
    """

    key: str
    request: Request
    purse: str
    max_usd: float | None = None


@dataclass(frozen=True, slots=True)
class Lease:
    """One row. `want` is whose machine it is; `terms` is what was agreed on, `order` what the provider was told.

    `stage` is what the provider last said (one of the stages above), first at `stage_since_s`, last at `seen_s`;
    `watched_s` is how long it was seen so: of a silence only a part counts, so that nobody is accused by it.
    `fit_s` is when the machine was found fit for runs (None: not yet, or no longer), `was_ready` whether it ever was.
    `leaving` says why no run may be there any more although what is on it is still to come home ('' = one may).
    `because` says why it is being given back ('' = it is kept); `is_fault`: its machine failed us and is remembered.
    `unsure_s` is since when nobody knows whether anything exists under the label (None: that is known), `absences` how
    many complete lists since then did not have it. `max_usd` bounds the whole purse.
    """

    id: int
    provider: str
    label: str
    want: str
    purse: str
    terms: Terms
    ttl_end_s: float
    created_s: float
    meter: Meter
    state: State = State.INTENDED
    host: str = ""
    machine: str = ""
    gpus: int = 0
    max_usd: float | None = None
    offer_id: str = ""
    order: Mapping[str, Any] = field(default_factory=dict)
    slots_requested: int | None = None
    stage: str = ""
    stage_since_s: float = 0.0
    watched_s: float = 0.0
    why: str = ""
    seen_s: float = 0.0
    fit_s: float | None = None
    was_ready: bool = False
    leaving: str = ""
    because: str = ""
    is_fault: bool = False
    unsure_s: float | None = None
    absences: int = 0
    failed_s: float | None = None
    released_s: float | None = None
    proof: str = ""
    charged_usd: float | None = None
    charges_asked: int = 0

    @property
    def is_open(self) -> bool:
        """Whether something may exist that is paid for."""
        return self.state is not State.RELEASED

    @property
    def is_ready(self) -> bool:
        """Whether runs may be on it now."""
        return self.state is State.OWNED and self.fit_s is not None and not self.because

    @property
    def is_kept(self) -> bool:
        """Whether it exists and is not being given back."""
        return self.state is State.OWNED and not self.because

    @property
    def handle(self) -> Handle:
        """Our hold on it, for the verbs of its provider."""
        return Handle(self.provider, self.label, self.host)

    @property
    def bill(self) -> Bill:
        """What it cost so far, by our meter and by the provider."""
        return Bill(self.meter.usd(self.terms.prices), self.charged_usd)

    def until(self, now_s: float) -> Lease:
        """With its meter read at a later time."""
        return replace(self, meter=self.meter.until(now_s)) if self.state is State.OWNED else self

    def bound_usd(self, now_s: float) -> float:
        """What it costs its purse at most: the bill of one that is over, the outlook of one that is not."""
        if not self.is_open:
            return self.bill.usd
        return outlook_usd(self.meter, self.terms, self.ttl_end_s, now_s)

    def moved(self, state: State) -> Lease:
        """In another state. An illegal move is our own mistake and raises AssertionError."""
        assert state in LEGAL[self.state], f"lease {self.id}: {self.state} -> {state} is no legal move"
        return replace(self, state=state)


@dataclass(frozen=True, slots=True)
class Told:
    """Something that a person should read in the history: a short name and a sentence."""

    what: str
    reason: str


@dataclass(frozen=True, slots=True)
class Change:
    """A lease as it is now, and what is to be told of it."""

    lease: Lease
    told: tuple[Told, ...] = ()


_COLUMNS = frozenset(
    {"id", "provider", "label", "host", "state", "slots_requested", "created_s", "released_s", "proof", "charged_usd"}
)
_KEPT = tuple(one.name for one in fields(Lease) if one.name not in _COLUMNS)


def document_of(lease: Lease) -> dict[str, Any]:
    """What the row keeps as JSON: everything that has no column of its own."""
    document = {name: getattr(lease, name) for name in _KEPT}
    return {**document, "terms": terms_json(lease.terms), "meter": meter_json(lease.meter), "order": dict(lease.order)}


def lease_of(document: Mapping[str, Any], **columns: Any) -> Lease:
    """A lease out of its row. Raises KeyError or ValueError for a document that this version did not write."""
    values = {name: document[name] for name in _KEPT}
    values["terms"] = terms_from_json(document["terms"])
    values["meter"] = Meter(**document["meter"])
    return Lease(**{**values, **columns, "state": State(columns["state"])})
