"""A home's database through SQLAlchemy: one connection that writes, or one consistent state to read.

SQLite in WAL mode. Every opening compares one string with this version's revision (runner.store.schema).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DatabaseError, OperationalError
from sqlalchemy.pool import NullPool, StaticPool

from runner.errors import HomeError
from runner.home import Home
from runner.store.opening import REVISION, check_revision, driver_of, read_only, read_write, revision, stored_document
from runner.store.schema import create_or_upgrade, make_readable

__all__ = ["REVISION", "check_revision", "create_or_upgrade", "driver_of", "open_writer", "reading", "revision"]


def open_writer(path: Path) -> Engine:
    """An engine with one connection, whose transactions take the write lock at once, so that a check inside one stays
    true until commit. A transaction with the execution option `begin` = "BEGIN" only reads."""
    engine = create_engine(
        "sqlite://", creator=lambda: read_write(path), poolclass=StaticPool, json_deserializer=stored_document
    )
    event.listen(engine, "begin", _begin)
    return engine


@contextmanager
def reading(home: Home) -> Iterator[Connection]:
    """A read-only connection that sees one consistent state of the database.

    Raises HomeError naming the path when there is no database, StoreTooNew when it is newer than this program. One of
    an older version is upgraded first (runner.store.opening).
    """
    make_readable(home)
    engine = create_engine(
        "sqlite://", creator=lambda: read_only(home.database), poolclass=NullPool, json_deserializer=stored_document
    )
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    try:
        with engine.connect() as connection, connection.begin():
            yield connection
    except (OperationalError, DatabaseError) as error:
        raise HomeError(f"{home.database}: the database cannot be read: {error.orig}") from error
    except sqlite3.Error as error:
        raise HomeError(f"{home.database}: the database cannot be read: {error}") from error
    finally:
        engine.dispose()


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql(connection.get_execution_options().get("begin", "BEGIN IMMEDIATE"))
