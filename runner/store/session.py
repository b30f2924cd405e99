"""The controller's door to the database: transactions that only the present holder of the home can commit."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Connection, insert, select, update
from sqlalchemy.exc import OperationalError

from runner.errors import Fenced, HomeError
from runner.store import tables
from runner.store.database import open_writer


class Session:
    """Writes on behalf of one controller. Opening one fences off every earlier one of the same home."""

    def __init__(self, database: Path, *, pid: int, now: float) -> None:
        self._database = database
        self._engine = open_writer(database)
        with self._engine.begin() as connection:
            self.home_id = _home_id(connection, now)
            self.epoch = _next_epoch(connection, pid, now)

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """One short write transaction. Raises Fenced when another controller took over, HomeError on a full disk."""
        try:
            with self._engine.begin() as connection:
                self._check_epoch(connection)
                yield connection
        except OperationalError as error:
            raise HomeError(f"{self._database}: the database cannot be written: {error.orig}") from error

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """One consistent state, for decisions; not fenced, because nothing is written."""
        with self._engine.begin() as connection:
            yield connection

    def close(self) -> None:
        """Let go of the database."""
        self._engine.dispose()

    def _check_epoch(self, connection: Connection) -> None:
        epoch = connection.execute(select(tables.controller.c.epoch)).scalar_one()
        if epoch != self.epoch:
            raise Fenced(f"{self._database}: another controller took over this home (epoch {epoch}, ours {self.epoch})")


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
