"""Carries a database from any older revision to a given one with Alembic."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import create_engine, event
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool

from runner.errors import HomeError
from runner.store.opening import BUSY_TIMEOUT_S


def upgrade(database: Path, revision: str) -> None:
    """Create the file if needed and run every migration up to `revision`, all in one transaction.

    Raises HomeError naming the path when the disk does not take it.
    """
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    engine = create_engine("sqlite://", creator=lambda: _connect(database), poolclass=NullPool)
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    try:
        with engine.begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, revision)
    except OperationalError as error:
        raise HomeError(f"{database}: the database cannot be created or upgraded: {error.orig}") from error
    finally:
        engine.dispose()


def _connect(database: Path) -> sqlite3.Connection:
    """Left to itself the driver begins no transaction for a change of tables, and a kill would leave half of it."""
    connection = sqlite3.connect(database, timeout=BUSY_TIMEOUT_S)
    connection.isolation_level = None
    return connection
