"""Opens a database file with the standard library alone: its revision, and connections that read or write."""

from __future__ import annotations

import json
import sqlite3
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote

from runner.errors import HomeError, StoreTooNew

if TYPE_CHECKING:
    from sqlalchemy import Connection

REVISION = "0004"
KNOWN_REVISIONS = ("0001", "0002", "0003", "0004")  # oldest first
BUSY_TIMEOUT_S = 5.0

KNOWN_DOCUMENTS = 4096
"""Stored JSON documents kept parsed: several for each of some hundred live runs, read in every round."""


def revision(path: Path) -> str | None:
    """The schema revision of a database file, None when there is no file or it is still empty."""
    if not path.exists() or path.stat().st_size == 0:
        return None
    try:
        connection = read_only(path)
    except sqlite3.Error as error:
        raise HomeError(f"{path}: the database cannot be opened: {error}") from error
    try:
        row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    except sqlite3.OperationalError as error:
        if "no such table" in str(error):
            raise HomeError(f"{path}: this database was not made by runner; it is left as it is") from error
        raise HomeError(f"{path}: the database cannot be read: {error}") from error
    except sqlite3.DatabaseError as error:
        raise HomeError(f"{path}: this is not a database or it is damaged ({error}); it is left as it is") from error
    finally:
        connection.close()
    return None if row is None else str(row[0])


def check_revision(path: Path) -> str | None:
    """The revision of a database this program can handle (None = none yet); raises StoreTooNew for a newer one."""
    found = revision(path)
    if found is not None and found not in KNOWN_REVISIONS:
        raise StoreTooNew(
            f"{path}: the database has revision {found}, this version knows up to {REVISION}; "
            "install the newer version again, or choose another home with --home (nothing was changed)"
        )
    return found


def read_only(path: Path) -> sqlite3.Connection:
    """A connection that cannot write, also where nobody may write."""
    connection = _connect(path, "mode=ro")
    try:
        connection.execute("SELECT 1 FROM sqlite_master").fetchone()
    except sqlite3.OperationalError:
        connection.close()
        log = Path(f"{path}-wal")
        if log.exists() and log.stat().st_size > 0:
            raise
        # A read-only folder: without a write-ahead log the file is all there is, and nobody can change it.
        connection = _connect(path, "immutable=1")
    return connection


def read_write(path: Path) -> sqlite3.Connection:
    """A connection to a database that exists; whoever uses it says when a transaction begins."""
    connection = _connect(path, "mode=rw")
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    connection.execute("PRAGMA foreign_keys=ON")
    return connection


def driver_of(connection: Connection) -> sqlite3.Connection:
    """The driver's own connection, inside the same transaction: for the few places where every microsecond counts."""
    assert connection.in_transaction(), "a bare statement would be a transaction of its own"
    return cast("sqlite3.Connection", connection.connection.dbapi_connection)


def stored_document(text: str | None) -> Any:
    """What a JSON column holds, None for NULL. Documents of arms are read again and again and hardly ever change, so
    what is returned is shared: the same object for the same text, and nobody may change it."""
    return None if text is None else _parsed(text)


@lru_cache(maxsize=KNOWN_DOCUMENTS)
def _parsed(text: str) -> Any:
    return json.loads(text)


def _connect(path: Path, options: str) -> sqlite3.Connection:
    connection = sqlite3.connect(f"file:{quote(str(path))}?{options}", uri=True, timeout=BUSY_TIMEOUT_S)
    connection.isolation_level = None
    return connection
