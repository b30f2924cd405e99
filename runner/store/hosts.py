"""The machines that a home reaches over ssh: those of the newest list, and older ones that something may still run on.

How a machine is reached is stored; keys are the paths of their files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection

from provisioning.ssh_host import SshHost
from runner.errors import UsageError
from runner.store.leases import held
from runner.store.opening import driver_of, stored_document


def store_hosts(connection: Connection, documents: Sequence[Mapping[str, Any]]) -> None:
    """Take these machines as the newest list. Raises UsageError when one that we hold is reached in another way now."""
    known, _ = read_hosts(connection)
    in_use = {lease.host for lease in held(connection, "ssh")}
    for document in documents:
        host = SshHost.from_json(document)
        before = next((one for one in known if one.name == host.name), host)
        if host.name in in_use and before != host:
            raise UsageError(
                f"host {host.name} is in use as {before.place} and cannot become {host.place} now; give it another "
                "name, or wait until its runs have ended (nothing was started)"
            )
    driver = driver_of(connection)
    driver.execute("UPDATE hosts SET listed = 0")
    driver.executemany(
        "REPLACE INTO hosts (name, document, listed) VALUES (?, ?, 1)",  # in the order of the list
        [(one["name"], json.dumps(dict(one))) for one in documents],
    )


def read_hosts(connection: Connection) -> tuple[tuple[SshHost, ...], frozenset[str]]:
    """All machines, and the names of those in the newest list."""
    rows = driver_of(connection).execute("SELECT document, listed FROM hosts ORDER BY rowid").fetchall()
    hosts = tuple(SshHost.from_json(stored_document(document)) for document, _ in rows)
    return hosts, frozenset(host.name for host, (_, listed) in zip(hosts, rows, strict=True) if listed)


def host_document(host: SshHost) -> dict[str, Any]:
    """A machine as JSON values."""
    return asdict(host)
