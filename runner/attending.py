"""Watches live attempts between rounds: gathers their signs, tells what changed, asks a hung one for its stacks."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from pathlib import Path

from provisioning.base import Shell
from runner.ingest import Taken
from runner.liveness import HUNG, NEW_WORK, SILENT, Concern, Limits, Signs, Watch, gap_to_expect, health, observe
from runner.records import AttemptKind, Health
from runner.spec.models import ResolvedArm
from runner.store import changes
from runner.store.facts import StoredAttempt, StoredRun, read_run
from runner.store.opening import driver_of
from runner.store.session import Session

TIMES = 2000  # of stored points, from which the usual pauses of a run are learned
EVERY_S = 2.0  # between two looks at one attempt; what matters here lasts minutes


def heard(signs: Signs, taken: Taken, arm: ResolvedArm) -> Signs:
    """The signs with what was read just now in them. Blocks hold points alone, many at a time."""
    for steps, _times, columns in taken.blocks:
        signs = replace(
            signs,
            records=signs.records + len(steps),
            step=max(signs.step, *steps),
            has_stepped=signs.has_stepped or _trains(columns, arm),
            announced="",
            validations=signs.validations + _scores(columns, arm) * len(steps),
        )
    for record in taken.records:
        event = str((record.event or {}).get("event", ""))
        scores, trains = _scores(record.values, arm), _trains(record.values, arm)
        seq = (record.event or {}).get("seq") if event == "control_ack" else None
        signs = replace(
            signs,
            records=signs.records + 1,
            step=max(signs.step, record.step),
            has_stepped=signs.has_stepped or trains,
            announced=event,
            validations=signs.validations + scores,
            work=signs.work + (event in NEW_WORK),
            acknowledged_seq=seq if isinstance(seq, int) else signs.acknowledged_seq,
        )
    return signs


def _scores(names: Iterable[str], arm: ResolvedArm) -> bool:
    primary = None if arm.primary is None else arm.primary.metric
    return any(name == primary or name.startswith("val") for name in names)


def _trains(names: Collection[str], arm: ResolvedArm) -> bool:
    return bool(names) and (arm.command is not None or any(name.startswith("train/") for name in names))


class Attend:
    """Memory of live attempts. A new controller begins with an empty one."""

    def __init__(self, session: Session, now: Callable[[], float], monotonic: Callable[[], float]) -> None:
        self._session = session
        self._now = now
        self._monotonic = monotonic
        self._known: dict[tuple[str, int], tuple[Watch, Signs]] = {}

    def begin(self, run: StoredRun, attempt: StoredAttempt, arm: ResolvedArm) -> None:
        """Learn what an earlier controller stored of an attempt that is new to us; before anything is added to it."""
        if (run.run, attempt.number) not in self._known:
            self._known[run.run, attempt.number] = self._of(run, attempt, arm)

    def hear(self, run: StoredRun, attempt: StoredAttempt, taken: Taken, arm: ResolvedArm) -> None:
        """Take in what was just stored."""
        watch, signs = self._of(run, attempt, arm)
        self._known[run.run, attempt.number] = watch, heard(signs, taken, arm)

    def __call__(
        self, run: StoredRun, attempt: StoredAttempt, arm: ResolvedArm, shell: Shell, folder: Path, is_visible: bool
    ) -> bool:
        """One round of one live attempt; says whether it is silent."""
        before, signs = self._of(run, attempt, arm)
        if before.seen is not None and self._monotonic() - before.seen.monotonic_s < EVERY_S:
            return SILENT in before.standing
        if before.seen is None:
            before = replace(before, dump_seq=_seq(shell, folder / "dump.json", attempt.number, is_control=False) or 0)
        signs = replace(
            signs,
            monotonic_s=self._monotonic(),
            heartbeat=shell.stamp(str(folder / "heartbeat")),
            is_visible=is_visible,
            control_seq=_seq(shell, folder.parent / "control.json", attempt.number, is_control=True),
        )
        watch, concerns = observe(before, signs)
        if watch.dump_seq != before.dump_seq:
            shell.write(str(folder / "dump.json"), json.dumps({"seq": watch.dump_seq}).encode())
        self._tell(run, attempt, before.standing, concerns)
        self._known[run.run, attempt.number] = watch, signs
        return SILENT in watch.standing

    def conclude(self, run: StoredRun, attempt: StoredAttempt) -> None:
        """The attempt has ended, and with it whatever was suspected of it."""
        known = self._known.pop((run.run, attempt.number), None)
        if known is not None and known[0].standing:
            self._tell(run, attempt, known[0].standing, ())

    def forget(self, run: str, attempt: int) -> None:
        """Nobody will ask about the attempt any more."""
        self._known.pop((run, attempt), None)

    def _of(self, run: StoredRun, attempt: StoredAttempt, arm: ResolvedArm) -> tuple[Watch, Signs]:
        known = self._known.get((run.run, attempt.number))
        if known is not None:
            return known
        names, times, step = self._stored(run.run, attempt.number)
        watch = Watch(
            AttemptKind(attempt.kind),
            is_trainer=arm.command is None,
            steps_total=run.steps_total,
            standing=_standing(run, attempt),
            unbeaten_s=Limits().silent_s if attempt.phase == SILENT else 0.0,
            longest_gap_s=gap_to_expect(times),
        )
        trains = bool(names) if arm.command is not None else any(name.startswith("train/") for name in names)
        return watch, Signs(self._monotonic(), step=step, has_stepped=trains)

    def _stored(self, run: str, attempt: int) -> tuple[list[str], list[float], int]:
        """What an earlier controller stored of this attempt: the names, the newest times of the fullest series, the
        newest step."""
        with self._session.reading() as connection:
            driver = driver_of(connection)
            query = "SELECT id, name, last_step FROM series WHERE run = ? AND attempt = ? ORDER BY points DESC"
            found = driver.execute(query, (run, attempt)).fetchall()
            if not found:
                return [], [], 0
            newest = "SELECT time FROM points WHERE series = ? ORDER BY step DESC LIMIT ?"
            times = [time for (time,) in driver.execute(newest, (found[0][0], TIMES))]
        return [name for _, name, _ in found], times, max(step for _, _, step in found)

    def _tell(self, run: StoredRun, attempt: StoredAttempt, before: tuple[str, ...], now: tuple[Concern, ...]) -> None:
        names = {concern.name for concern in now}
        over = [name for name in before if name not in names]
        new = [concern for concern in now if concern.name not in before]
        if not new and not over and (not now or health(_judged(run), now) == run.health):
            return
        with self._session.transaction() as connection:
            wanted = health(_judged(read_run(connection, run.run)), now)  # this very round may have judged it
            for concern in new:
                changes.add_event(
                    connection, self._now(), f"liveness:{concern.name}", concern.summary, study=run.study, run=run.run,
                    attempt=attempt.number, data=concern.evidence,
                )  # fmt: skip
            for name in over:
                changes.add_event(
                    connection, self._now(), f"liveness:{name}", "over", study=run.study, run=run.run,
                    attempt=attempt.number,
                )  # fmt: skip
            changes.set_run(connection, run.run, health=wanted)


def _judged(run: StoredRun) -> Health:
    return Health(run.verdict["health"]) if run.verdict else Health.OK


def _standing(run: StoredRun, attempt: StoredAttempt) -> tuple[str, ...]:
    """What an earlier controller found and what holds until the contrary is seen."""
    if attempt.phase == SILENT:
        return (SILENT,)
    return (HUNG,) if run.health == Health.HUNG else ()


def _seq(shell: Shell, path: Path, attempt: int, *, is_control: bool) -> int | None:
    """The seq of a file of ours; a control.json that was written for another attempt has none."""
    data = shell.read(str(path))
    document = json.loads(data) if data else {}
    if is_control and document.get("attempt") != attempt:
        return None
    seq = document.get("seq")
    return seq if isinstance(seq, int) else None
