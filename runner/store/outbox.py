"""Notices that wait to be told: written in the transaction of their event, so that none is lost and none invented.

Whoever sends them may die between the sending and the writing down, so a notice may arrive twice, never not at all:
its document carries a key (home id and event number) by which a receiver knows the second one.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, delete, func, insert, select, update

from runner.records import ENDED, RunState
from runner.store import tables
from runner.store.opening import driver_of, stored_document

MAX_REASON = 1000
BY_THE_TRAINER = "announced by the trainer"
"""The reason of events whose names a training process chose itself; nobody is woken up for those."""

_NOTICE_OF = {
    "warn": "warned", "verdict_only": "warned", "warning": "warned", "trouble": "warned",
    "hung": "hung", "quarantine": "quarantine", "report": "study_ended",
}  # fmt: skip
_STATES = frozenset(str(state) for state in ENDED)
_BY_MERIT = (*(state for state in RunState if state in ENDED), *(state for state in RunState if state not in ENDED))
_WRITTEN = "written to "
_MAY_PASS = frozenset({"failed", "lost", "preempted"})


@dataclass(frozen=True, slots=True)
class Waiting:
    """A notice to be sent: its event, the tries so far, what to tell, and to whom (blocks as in `notify:`)."""

    event: int
    tries: int
    document: Mapping[str, Any]
    targets: tuple[Mapping[str, Any], ...]


def notice_of(what: str, reason: str) -> str | None:
    """The word of `notify.on` for an event; None for those that nobody can ask for."""
    if reason == BY_THE_TRAINER:
        return None
    name = what.split("(")[0]
    return name if name in _STATES else _NOTICE_OF.get(name.rpartition(":")[2])


def announce(connection: Connection, event: int, what: str, reason: str, now: float) -> None:
    """Put an event (its number, `what` and `reason`) into the outbox when somebody asked to hear of its kind.

    Call it in the event's transaction. What a run was warned of before is not told again, whatever the numbers in it.
    """
    notice = notice_of(what, reason)
    if notice is None:
        return
    (run, study) = driver_of(connection).execute("SELECT run, study FROM events WHERE id = ?", (event,)).fetchone()
    if not any(_targets(connection, run, study, notice)):
        return
    row = connection.execute(select(tables.events).where(tables.events.c.id == event)).one()
    if notice in ("warned", "hung") and _was_told(connection, row, notice):
        return
    connection.execute(insert(tables.notifications).values(event=event, state="waiting", tries=0, changed=now))


def take_up(connection: Connection, home_id: str, but: Collection[int] = (), limit: int = 50) -> tuple[Waiting, ...]:
    """Notices that wait, oldest first, without the events in `but`."""
    notifications = tables.notifications
    rows = connection.execute(
        select(notifications.c.tries, tables.events)
        .join(tables.events, tables.events.c.id == notifications.c.event)
        .where(notifications.c.state == "waiting", notifications.c.event.not_in(but))
        .order_by(notifications.c.event)
        .limit(limit)
    ).all()
    return tuple(_waiting(connection, row, home_id) for row in rows)


def drop(connection: Connection, event: int) -> None:
    """Forget a notice that is not true any more, or that nobody wants to hear."""
    connection.execute(delete(tables.notifications).where(tables.notifications.c.event == event))


def note(connection: Connection, event: int, state: str, tries: int, said: str, now: float) -> None:
    """Remember what became of a try: `state` is waiting, sent or failed."""
    connection.execute(
        update(tables.notifications)
        .where(tables.notifications.c.event == event)
        .values(state=state, tries=tries, said=said, changed=now)
    )


def _waiting(connection: Connection, row: Row[Any], home_id: str) -> Waiting:
    """A notice without targets is to be dropped: a failure that was tried again at once wakes nobody up."""
    notice = notice_of(row.what, row.reason)
    document: dict[str, Any] = {
        "key": f"{home_id}/{row.id}",
        "home": home_id,
        "event": row.id,
        "time": row.time,
        "notice": notice,
        "what": row.what,
        "reason": row.reason[:MAX_REASON],
        "study": row.study,
        "run": None,
        "step": row.step,
    }
    is_stale = False
    text = f"{row.study or 'this home'}: {row.what}: {document['reason']}"
    if row.run is not None:
        run = connection.execute(select(tables.runs).where(tables.runs.c.run == row.run)).one()
        is_stale = notice in _MAY_PASS and run.state not in _STATES
        text = f"{run.study}/{run.arm}-s{run.seed}: {row.what}: {document['reason']}"
        attempt = row.attempt or _last_attempt(connection, row.run, row.id)
        step = row.step if row.step is not None else _last_step(connection, row.run)
        document |= {
            "study": run.study, "run": run.id, "arm": run.arm, "seed": run.seed, "attempt": attempt,
            "step": step, "steps_total": run.steps_total, "run_dir": run.run,
        }  # fmt: skip
    elif row.study is not None:
        document["runs"] = _states(connection, row.study)
        if notice == "study_ended":
            text = _ending(row.study, document["runs"], document["reason"])
    document["text"] = text
    targets = () if is_stale or notice is None else tuple(_targets(connection, row.run, row.study, notice))
    return Waiting(row.id, row.tries, document, targets)


def _targets(connection: Connection, run: str | None, study: str | None, notice: str) -> Iterator[Mapping[str, Any]]:
    """The different `notify` blocks that ask for a notice of an event: of its run, of its study, or of what is going
    on in the home."""
    values: tuple[str, ...] = ()
    if run is not None:
        condition, values = "run = ?", (run,)
    elif study:
        condition, values = "superseded_by IS NULL AND study = ?", (study,)
    else:
        ended = ", ".join(f"'{state}'" for state in sorted(_STATES))
        newest = "(SELECT max(launch) FROM runs)"
        condition = f"superseded_by IS NULL AND (state NOT IN ({ended}) OR launch = {newest})"
    query = f"SELECT arm_document FROM runs WHERE {condition} ORDER BY launch, seed, arm_order"
    found: list[Mapping[str, Any]] = []
    for (text,) in driver_of(connection).execute(query, values):
        notify = stored_document(text).get("notify")
        if notify and notice in notify["on"] and notify not in found:
            found.append(notify)
            yield notify


def _was_told(connection: Connection, event: Row[Any], notice: str) -> bool:
    events, notifications = tables.events, tables.notifications
    earlier = connection.execute(
        select(events.c.reason)
        .join(notifications, notifications.c.event == events.c.id)
        .where(events.c.run == event.run, events.c.what == event.what, events.c.id < event.id)
    ).scalars()
    same = _gist if notice == "warned" else str
    return any(same(reason) == same(event.reason) for reason in earlier)


def _gist(reason: str) -> str:
    """A sentence without its numbers."""
    return re.sub(r"[-+]?\d[\d.,e+-]*", "#", reason)


def _ending(study: str, states: Mapping[str, int], reason: str) -> str:
    """The end of a study for a person; `reason` is what the event of its report says."""
    counts = ", ".join(f"{states[state]} {state}" for state in _BY_MERIT if state in states) or "no runs"
    path = reason.removeprefix(_WRITTEN)
    if path != reason:
        return f"{study} ended: {counts}; report: {path}"
    return f"{study} ended: {counts}; report not written: {reason.removeprefix('not written: ')}"


def _last_attempt(connection: Connection, run: str, event: int) -> int | None:
    """The attempt that an event without a number is about: the newest at that time. None before the first."""
    query = "SELECT attempt FROM events WHERE run = ? AND id < ? AND attempt IS NOT NULL ORDER BY id DESC LIMIT 1"
    row = driver_of(connection).execute(query, (run, event)).fetchone()
    return None if row is None else int(row[0])


def _last_step(connection: Connection, run: str) -> int:
    series = tables.series
    return int(connection.execute(select(func.max(series.c.last_step)).where(series.c.run == run)).scalar() or 0)


def _states(connection: Connection, study: str) -> dict[str, int]:
    """How many runs of a study are in which state."""
    runs = tables.runs
    rows = connection.execute(
        select(runs.c.state, func.count())
        .where(runs.c.study == study, runs.c.superseded_by.is_(None))
        .group_by(runs.c.state)
        .order_by(runs.c.state)
    )
    return {row.state: row[1] for row in rows}
