"""Which notices nobody heard. Asked by the status too, so it needs the driver alone."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Untold:
    """How many notices were given up, how many wait after a try that failed, and what the newest of both `said`.

    `changed` is when that was, in seconds since the epoch; None when there are none.
    """

    given_up: int = 0
    waiting: int = 0
    said: str = ""
    changed: float | None = None


def untold(driver: sqlite3.Connection, since: float) -> Untold:
    """What a home could not tell: all that wait after a failure, and what was given up at `since` or later (seconds
    since the epoch)."""
    is_untold = "((state = 'failed' AND changed >= :since) OR (state = 'waiting' AND tries > 0))"
    values = {"since": since}
    counts = dict(driver.execute(f"SELECT state, count(*) FROM notifications WHERE {is_untold} GROUP BY state", values))
    newest = driver.execute(
        f"SELECT said, changed FROM notifications WHERE {is_untold} ORDER BY changed DESC, event DESC LIMIT 1", values
    ).fetchone()
    return Untold(counts.get("failed", 0), counts.get("waiting", 0), *(newest or ("", None)))


def given_up(driver: sqlite3.Connection, study: str) -> int:
    """How many notices of a study (its exact name), or of its runs, were given up. Those of the home belong to none."""
    (count,) = driver.execute(
        "SELECT count(*) FROM notifications JOIN events ON events.id = notifications.event "
        "WHERE notifications.state = 'failed' "
        "AND coalesce(events.study, (SELECT study FROM runs WHERE runs.run = events.run)) = ?",
        (study,),
    ).fetchone()
    return int(count)
