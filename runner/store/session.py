"""The controller's door to the database: transactions that only the present holder of the home can commit."""

from __future__ import annotations

import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Connection, insert, select, update
from sqlalchemy.exc import OperationalError

from runner.errors import Fenced, HomeError
from runner.store import tables
from runner.store.database import open_writer
from runner.store.opening import driver_of


class Session:
    """Writes on behalf of one controller, over one connection. Opening one fences off every earlier one of the home.

    Raises HomeError naming the path when the database may not be written.
    """

    def __init__(self, database: Path, *, pid: int, now: float) -> None:
        self._database = database
        self._engine = open_writer(database)
        try:
            self._connection = self._engine.connect()
            self._inode = database.stat().st_ino
            self._writing = False
            with self._connection.begin():
                self.home_id = _home_id(self._connection, now)
                self.epoch = _next_epoch(self._connection, pid, now)
        except (OperationalError, sqlite3.OperationalError) as error:
            self._engine.dispose()
            raise self._not_written(error) from error

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """One short write transaction. Raises Fenced when another controller took over, HomeError on a full disk or a
        home that was replaced.

        Inside another one it is a part of that: on an error this part is undone, and nothing is final before the outer
        one ends. So whoever must have a row on disk before an act may not be called inside another transaction.
        """
        try:
            if self._writing:
                with _part(driver_of(self._connection)):
                    yield self._connection
                return
            assert not self._connection.in_transaction(), "a transaction may not begin while something is being read"
            self._check_place()
            with self._connection.execution_options(begin="BEGIN IMMEDIATE").begin():
                self._writing = True
                self._check_epoch(self._connection)
                yield self._connection
        except (OperationalError, sqlite3.OperationalError) as error:
            raise self._not_written(error) from error
        finally:
            self._writing = self._connection.in_transaction() and self._writing

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """One consistent state, for decisions; not fenced, because nothing is written. Inside a transaction it sees
        what that has written so far."""
        if self._connection.in_transaction():
            yield self._connection
            return
        with self._connection.execution_options(begin="BEGIN").begin():
            yield self._connection

    def close(self) -> None:
        """Let go of the database."""
        self._connection.close()
        self._engine.dispose()

    def _not_written(self, error: OperationalError | sqlite3.OperationalError) -> HomeError:
        cause = error.orig if isinstance(error, OperationalError) else error
        return HomeError(f"{self._database}: the database cannot be written: {cause}")

    def _check_place(self) -> None:
        """An open file lives on after it was deleted, and what is written then is lost."""
        try:
            inode = self._database.stat().st_ino
        except FileNotFoundError:
            inode = 0
        if inode != self._inode:
            raise HomeError(f"{self._database}: the database was deleted or replaced; nothing more is written to it")

    def _check_epoch(self, connection: Connection) -> None:
        (epoch,) = driver_of(connection).execute("SELECT epoch FROM controller").fetchone()
        if epoch != self.epoch:
            raise Fenced(f"{self._database}: another controller took over this home (epoch {epoch}, ours {self.epoch})")


@contextmanager
def _part(driver: sqlite3.Connection) -> Iterator[None]:
    """A savepoint: an error undoes what was written since."""
    driver.execute("SAVEPOINT part")
    is_done = False
    try:
        yield
        is_done = True
    finally:
        if driver.in_transaction:  # a full disk ends the whole transaction by itself
            if not is_done:
                driver.execute("ROLLBACK TO part")
            driver.execute("RELEASE part")


def _home_id(connection: Connection, now: float) -> str:
    found = connection.execute(select(tables.home.c.home_id)).scalar_one_or_none()
    if found is None:
        found = uuid.uuid4().hex[:12]
        connection.execute(insert(tables.home).values(id=1, home_id=found, created=now))
    return str(found)


def _next_epoch(connection: Connection, pid: int, now: float) -> int:
    epoch = connection.execute(select(tables.controller.c.epoch)).scalar_one_or_none()
    if epoch is None:
        connection.execute(insert(tables.controller).values(id=1, epoch=1, pid=pid, started=now))
        return 1
    connection.execute(update(tables.controller).values(epoch=epoch + 1, pid=pid, started=now))
    return int(epoch) + 1
