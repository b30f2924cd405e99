"""Watches live attempts between rounds: gathers their signs, tells what changed, asks a hung one for its stacks."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from provisioning.base import Shell
from runner.ingest import Taken
from runner.liveness import HUNG, NEW_WORK, SILENT, Concern, Limits, Signs, Watch, gap_to_expect, health, observe
from runner.observe import read_json
from runner.records import STOPS, AttemptKind, Health, Policy, Severity
from runner.spec.models import ResolvedArm, from_json
from runner.store import changes
from runner.store.facts import StoredAttempt, StoredRun, read_run
from runner.store.opening import driver_of
from runner.store.session import Session
from runner.suspicion import RULES, action_on, is_shadow

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
        self._tell(run, attempt, before, concerns, arm.policy, signs.step)
        self._known[run.run, attempt.number] = watch, signs
        return SILENT in watch.standing

    def conclude(self, run: StoredRun, attempt: StoredAttempt) -> None:
        """The attempt has ended, and with it whatever was suspected of it."""
        known = self._known.pop((run.run, attempt.number), None)
        if known is not None and known[0].standing:
            policy = from_json(run.arm_document).policy
            self._tell(run, attempt, known[0], (), policy, known[1].step)

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

    def _tell(
        self,
        run: StoredRun,
        attempt: StoredAttempt,
        before: Watch,
        now: tuple[Concern, ...],
        policy: Policy,
        step: int,
    ) -> None:
        """Events of what is new, of what has lasted long enough to stop the attempt, and of what is over."""
        visible = tuple(one for one in now if not is_shadow(one.name, policy))
        names = {concern.name for concern in now}
        over = [name for name in before.standing if name not in names]
        new = [one for one in now if one.name not in before.standing]
        worse = [one for one in now if one.severity is Severity.ABORT and one.name not in before.grave]
        if not new and not over and not worse and (not visible or health(_judged(run), visible) == run.health):
            return
        with self._session.transaction() as connection:
            wanted = health(_judged(read_run(connection, run.run)), visible)  # this very round may have judged it

            def note(name: str, does: str, reason: str, data: Mapping[str, Any] | None = None) -> None:
                what = f"liveness:{name}:{does}" if does else f"liveness:{name}"
                changes.add_event(
                    connection, self._now(), what, reason, study=run.study, run=run.run, attempt=attempt.number,
                    data=data,
                )  # fmt: skip

            def quietly(name: str) -> str:
                return "shadow" if is_shadow(name, policy) else ""

            for one in new:
                note(one.name, quietly(one.name), one.summary, one.evidence)
            for one in worse:
                does = action_on(
                    one, policy, step=step, steps_total=run.steps_total, overridden=frozenset(run.overridden)
                )
                note(one.name, does, f"it has lasted long enough to stop the run for it: {one.summary}", one.evidence)
                if does in STOPS:
                    suspected = {"rule": RULES[one.name], "reason": one.summary}
                    changes.set_attempt(connection, run.run, attempt.number, suspected=suspected)
            for name in over:
                note(name, quietly(name), "over")
            if over and attempt.suspected is not None and attempt.suspected["rule"] in [RULES.get(one) for one in over]:
                changes.set_attempt(connection, run.run, attempt.number, suspected=None)
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
    document = read_json(shell, str(path))
    if is_control and document.get("attempt") != attempt:
        return None
    seq = document.get("seq")
    return seq if isinstance(seq, int) else None
