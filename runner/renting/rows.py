"""Rented leases in the home's database: read at the start, written in the transaction of what is told of them."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence

from sqlalchemy import Connection

from runner.errors import HomeError
from runner.renting.leases import Change, Lease, document_of, lease_of
from runner.store import changes
from runner.store.opening import driver_of, stored_document

_READ = (
    "SELECT id, provider, label, host, state, slots_requested, created, released, proof, charged_usd, document "
    "FROM leases WHERE provider = ? AND document IS NOT NULL ORDER BY id"
)
_COLUMNS = ("id", "provider", "label", "host", "state", "slots_requested", "created_s", "released_s", "proof",
            "charged_usd")  # fmt: skip


def read_leases(connection: Connection, provider: str) -> tuple[Lease, ...]:
    """All leases that were ever rented from a provider, released ones too. Raises HomeError naming one whose document
    cannot be read: nothing is rented or given back on a guess."""
    return leases_in(driver_of(connection), provider)


def leases_in(driver: sqlite3.Connection, provider: str) -> tuple[Lease, ...]:
    """The same, for whoever reads a home with the driver alone."""
    found = []
    for *values, text in driver.execute(_READ, (provider,)):
        columns = dict(zip(_COLUMNS, values, strict=True))
        try:
            found.append(lease_of(stored_document(text), **{**columns, "proof": columns["proof"] or ""}))
        except (KeyError, TypeError, ValueError) as problem:
            raise HomeError(
                f"lease {columns['label']} ({columns['host'] or 'no machine known'}) has a document that this version "
                f"cannot read: {problem!r}; nothing was changed, the provider's own page shows what is rented"
            ) from problem
    return tuple(found)


def next_id(connection: Connection) -> int:
    """The number of the next lease: of all providers, for it stands in every label."""
    (largest,) = driver_of(connection).execute("SELECT coalesce(max(id), 0) FROM leases").fetchone()
    return int(largest) + 1


def add_lease(connection: Connection, lease: Lease) -> None:
    """The intent row, to be committed before the provider is asked."""
    driver_of(connection).execute(
        "INSERT INTO leases (id, provider, label, host, state, price_usd_per_h, slots_requested, created, document) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            lease.id, lease.provider, lease.label, lease.host, str(lease.state), lease.terms.prices.usd_per_h,
            lease.slots_requested, lease.created_s, json.dumps(changes.json_ready(document_of(lease))),
        ),
    )  # fmt: skip


def write_changes(connection: Connection, changed: Sequence[Change], now_s: float) -> None:
    """Leases as they are now, and what is told of them."""
    for change in changed:
        lease = change.lease
        driver_of(connection).execute(
            "UPDATE leases SET host = ?, state = ?, released = ?, proof = ?, charged_usd = ?, document = ? "
            "WHERE id = ?",
            (
                lease.host, str(lease.state), lease.released_s, lease.proof or None, lease.charged_usd,
                json.dumps(changes.json_ready(document_of(lease))), lease.id,
            ),
        )  # fmt: skip
        for told in change.told:
            study = lease.purse or None
            data = {"lease": lease.id, "want": lease.want}
            changes.add_event(connection, now_s, told.what, told.reason, study=study, data=data)
