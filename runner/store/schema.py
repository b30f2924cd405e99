"""Brings a home's database to this version's schema before anybody reads or writes it.

What only looks (a status, a list of names) needs nothing heavier than this file: Alembic and SQLAlchemy are imported
only to create or to upgrade.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from runner.errors import HomeError
from runner.home import Home
from runner.lock import HomeLock, holder_pid
from runner.store.opening import REVISION, check_revision, read_only


def create_or_upgrade(home: Home, lock: HomeLock) -> None:
    """Bring the database to this version's schema. The caller holds the home's lock, proven by `lock`."""
    assert lock.acquire(), "the schema may only be touched under the home's lock"
    found = check_revision(home.database)
    if found == REVISION:
        return
    from runner.store.upgrade import upgrade

    try:
        if found is None:
            _create(home.database)
            return
        _back_up(home.database, home.database.with_suffix(f".before-{REVISION}.db"))
        upgrade(home.database, REVISION)
    except (sqlite3.Error, OSError) as error:
        raise HomeError(f"{home.database}: the database cannot be created or upgraded: {error}") from error
    home.database.chmod(0o600)


def make_readable(home: Home) -> None:
    """See to it that the database has this version's schema; an older one is upgraded under the home's lock.

    Raises HomeError naming the path when there is no database or it may not be upgraded now, StoreTooNew when it is
    newer than this program.
    """
    found = check_revision(home.database)
    if found is None:
        raise HomeError(
            f"{home.database}: there is no database here; start with `runner launch`, or name another --home"
        )
    if found != REVISION:
        _upgrade(home, found)


@contextmanager
def reading_rows(home: Home) -> Iterator[sqlite3.Connection]:
    """A read-only connection that sees one consistent state of the database; raises as `make_readable` does."""
    make_readable(home)
    connection: sqlite3.Connection | None = None
    try:
        connection = read_only(home.database)
        connection.execute("BEGIN")
        yield connection
    except sqlite3.Error as error:
        raise HomeError(f"{home.database}: the database cannot be read: {error}") from error
    finally:
        if connection is not None:
            connection.close()


def _upgrade(home: Home, found: str) -> None:
    """Carry an older database to this version's schema, unless somebody is at work in it or it may not be written."""
    problem = f"{home.database}: the database has revision {found}, this version needs {REVISION}"
    if not (os.access(home.root, os.W_OK | os.X_OK) and os.access(home.database, os.W_OK)):
        raise HomeError(
            f"{problem} and may not write here; read it as its owner, or copy {home.root} to a place of yours and "
            "name that with --home (nothing was changed)"
        )
    lock = HomeLock(home.lock)
    if not lock.acquire():
        raise HomeError(
            f"{problem}, and a controller is at work in it (pid {holder_pid(home.lock)}); wait until its runs have "
            "ended, or read it with the version that started them (nothing was changed)"
        )
    try:
        create_or_upgrade(home, lock)
    finally:
        lock.release()


def _create(path: Path) -> None:
    """Made beside and put in place whole: of a creation that is cut off, nothing stands under the database's name.

    SQLite would undo it, but only for one who may write; a reader would take the half for a damaged database.
    """
    from runner.store.upgrade import upgrade

    part = path.with_suffix(".part")
    for left in (part, Path(f"{part}-journal")):
        left.unlink(missing_ok=True)
    upgrade(part, REVISION)
    part.chmod(0o600)
    part.replace(path)


def _back_up(path: Path, copy: Path) -> None:
    """A whole copy, with what still stands in the write-ahead log of a controller that was killed."""
    part = copy.with_suffix(".part")
    part.unlink(missing_ok=True)
    with closing(read_only(path)) as source, closing(sqlite3.connect(part)) as target:
        source.backup(target)
    part.chmod(0o600)
    part.replace(copy)
