"""What commands ask of the controller: rows that only commands insert, answered in a table that only it writes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, insert, select
from sqlalchemy.exc import OperationalError

from runner.errors import HomeError
from runner.home import Home
from runner.store import tables
from runner.store.database import open_writer


@dataclass(frozen=True, slots=True)
class Request:
    """One wish of a person: kind launch, stop, resume, extend or autopsy."""

    id: int
    kind: str
    payload: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a request."""

    accepted: bool
    message: str


def ask(home: Home, kind: str, payload: Mapping[str, Any]) -> int:
    """Insert a request and return its number. Raises HomeError naming the path when the disk does not take it."""
    engine = open_writer(home.database)
    try:
        with engine.begin() as connection:
            result = connection.execute(
                insert(tables.requests).values(time=time.time(), kind=kind, payload=dict(payload))
            )
            assert result.inserted_primary_key is not None
            return int(result.inserted_primary_key[0])
    except OperationalError as error:
        raise HomeError(f"{home.database}: the request cannot be written: {error.orig}") from error
    finally:
        engine.dispose()


def pending(connection: Connection) -> tuple[Request, ...]:
    """Requests without an answer, oldest first."""
    rows = connection.execute(
        select(tables.requests)
        .outerjoin(tables.answers, tables.answers.c.request == tables.requests.c.id)
        .where(tables.answers.c.request.is_(None))
        .order_by(tables.requests.c.id)
    )
    return tuple(Request(row.id, row.kind, row.payload) for row in rows)


def read_answer(connection: Connection, request: int) -> Answer | None:
    """The answer to a request, None while there is none."""
    row = connection.execute(select(tables.answers).where(tables.answers.c.request == request)).one_or_none()
    return None if row is None else Answer(row.accepted, row.message)
