"""Opening a home's database: creating it, upgrading it, reading it, and refusing one that is newer than this program.

SQLite in WAL mode. Alembic is imported only to create or upgrade; every other opening compares one string.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DatabaseError, OperationalError
from sqlalchemy.pool import NullPool

from runner.errors import HomeError, StoreTooNew
from runner.home import Home
from runner.lock import HomeLock

REVISION = "0002"
KNOWN_REVISIONS = ("0001", "0002")  # oldest first
BUSY_TIMEOUT_S = 5.0


def revision(path: Path) -> str | None:
    """The schema revision of a database file, None when there is no file or it is still empty."""
    if not path.exists() or path.stat().st_size == 0:
        return None
    try:
        connection = _read_only(path)
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


def create_or_upgrade(home: Home, lock: HomeLock) -> None:
    """Bring the database to this version's schema. The caller holds the home's lock, proven by `lock`."""
    assert lock.acquire(), "the schema may only be touched under the home's lock"
    found = check_revision(home.database)
    if found == REVISION:
        return
    if found is not None:
        shutil.copy2(home.database, home.database.with_suffix(f".before-{REVISION}.db"))
    from runner.store.upgrade import upgrade

    try:
        upgrade(home.database, REVISION)
    except (OperationalError, sqlite3.Error, OSError) as error:
        raise HomeError(f"{home.database}: the database cannot be created or upgraded: {error}") from error
    home.database.chmod(0o600)


def open_writer(path: Path) -> Engine:
    """An engine whose transactions take the write lock at once, so that a check inside one stays true until commit."""
    engine = create_engine("sqlite://", creator=lambda: _read_write(path), poolclass=NullPool, json_deserializer=_loads)
    event.listen(engine, "connect", _enter_wal)
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    return engine


@contextmanager
def reading(home: Home) -> Iterator[Connection]:
    """A read-only connection that sees one consistent state of the database.

    Raises HomeError naming the path when there is no database, StoreTooNew when it is newer than this program.
    """
    if check_revision(home.database) is None:
        raise HomeError(
            f"{home.database}: there is no database here; start with `runner launch`, or name another --home"
        )
    engine = create_engine(
        "sqlite://", creator=lambda: _read_only(home.database), poolclass=NullPool, json_deserializer=_loads
    )
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    try:
        with engine.connect() as connection:
            yield connection
    except (OperationalError, DatabaseError) as error:
        raise HomeError(f"{home.database}: the database cannot be read: {error.orig}") from error
    finally:
        engine.dispose()


@lru_cache(maxsize=512)
def _loads(text: str) -> Any:
    """Documents of arms are read in every round and hardly ever change; what is returned is shared."""
    return json.loads(text)


def _read_write(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(f"file:{quote(str(path))}?mode=rw", uri=True, timeout=BUSY_TIMEOUT_S)
    connection.isolation_level = None  # SQLAlchemy's begin event decides when a transaction starts
    return connection


def _read_only(path: Path) -> sqlite3.Connection:
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


def _connect(path: Path, options: str) -> sqlite3.Connection:
    connection = sqlite3.connect(f"file:{quote(str(path))}?{options}", uri=True, timeout=BUSY_TIMEOUT_S)
    connection.isolation_level = None
    return connection


def _enter_wal(connection: sqlite3.Connection, _record: object) -> None:
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    connection.execute("PRAGMA foreign_keys=ON")
