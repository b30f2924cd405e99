"""Gathers what `schedule` must know of one open run: its row, its latest attempt, its curves' end, its budget."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from runner.autopsies import CHECKPOINTS_NEEDED
from runner.failure import Exit, Failure, classify
from runner.home import Home
from runner.observe import checkpoints
from runner.places import Places
from runner.records import ON_A_SLOT, STOPS, AttemptKind, RunState
from runner.rescue import may_rescue
from runner.run_facts import AttemptFacts, Phase, RunFacts, shape_of
from runner.spec.models import ResolvedArm, from_json
from runner.store import history
from runner.store.facts import StoredAttempt, StoredRun
from runner.store.session import Session

LEAST_AUTOPSY_S = 1.0
"""With less of the budget left, nothing is begun."""

_REPORTS = (Phase.LIVE, Phase.ENDED)


class Situation:
    """Reads only. `budget` tells the reason why a run's budget is used up, None while it is not; `left_s` the seconds
    that are left of it for the end, None without a limit; `is_orphaned` whether an attempt lives without its
    supervisor; `bound_to` the host that its files are on while they are nowhere else, '' for none."""

    def __init__(
        self,
        session: Session,
        home: Home,
        places: Places,
        budget: Callable[[StoredRun], str | None],
        is_orphaned: Callable[[str, int], bool],
        left_s: Callable[[StoredRun], float | None] = lambda _run: None,
        bound_to: Callable[[str], str] = lambda _run: "",
    ) -> None:
        self._session = session
        self._home = home
        self._places = places
        self._budget = budget
        self._is_orphaned = is_orphaned
        self._left_s = left_s
        self._bound_to = bound_to
        self._arms: dict[str, tuple[Mapping[str, Any], ResolvedArm]] = {}
        self._unstarted: dict[str, tuple[StoredRun, RunFacts]] = {}

    def __call__(self, run: StoredRun) -> RunFacts:
        """The run as it stands."""
        facts = self._look(run)
        if run.attempt is None:
            self._unstarted[run.run] = (run, facts)
        return facts

    def unchanged(self, run: StoredRun) -> RunFacts | None:
        """What was found before of a run that never started, if it holds still: there may be hundreds in the queue."""
        known = self._unstarted.get(run.run)
        if known is None or known[0] is not run or run.initial_checkpoint is not None:
            return None  # what another run's checkpoint is bound to changes with that run
        return known[1] if known[1].budget == self._budget(run) else None

    def _look(self, run: StoredRun) -> RunFacts:
        arm = self._arm(run)
        last_step, attempt = self._attempt(run, arm)
        verdict = run.verdict or {}
        stopping_rule, stopping_reason = self._stopping(run)
        has_autopsy = run.autopsy_attempt is not None
        return RunFacts(
            run=run.run,
            order=(-run.priority, run.launch, run.seed, run.arm_order),
            state=run.state,
            is_trainer=arm.command is None,
            shape=shape_of(arm.resources, run.provider, self._host(run)),
            steps_total=run.steps_total,
            last_step=last_step,
            attempt=attempt,
            abort=_abort(run),
            stop_wanted=run.stop_wanted,
            budget=self._budget(run),
            wave=None if has_autopsy else run.wave,  # nobody waits for an autopsy, and it waits for nobody
            needs_whole_wave=arm.resources.colocate == "require" and not has_autopsy,
            retries_left=max(0, arm.retries - run.retries_used),
            reports_again=run.state is RunState.LOST and attempt is not None and attempt.phase in _REPORTS,
            stopping_rule=stopping_rule,
            stopping_reason=stopping_reason,
            has_checkpoint=run.attempt is not None and self._has_checkpoint(run),
            probe_every_steps=verdict.get("probe_every_steps"),
            wants_autopsy=arm.command is None and arm.policy.autopsy_s > 0,
            autopsy_lacks=self._autopsy_lacks(run),
            evaluation=self._evaluation(run),
            autopsy_attempt=run.autopsy_attempt,
            may_rescue=may_rescue(arm, stopping_rule),
        )

    def _host(self, run: StoredRun) -> str:
        """The host that what it begins with is on while that is nowhere else."""
        origin = run.initial_checkpoint
        return self._bound_to(run.run) or ("" if origin is None else self._bound_to(origin["run"]))

    def forget(self, names: Collection[str]) -> None:
        """Keep in memory only what belongs to these runs."""
        self._arms = {name: known for name, known in self._arms.items() if name in names}
        self._unstarted = {name: known for name, known in self._unstarted.items() if name in names}

    def _arm(self, run: StoredRun) -> ResolvedArm:
        known = self._arms.get(run.run)
        # The store hands out one object for one text, so the same object is the same arm.
        if known is None or known[0] is not run.arm_document:
            known = self._arms[run.run] = (run.arm_document, from_json(run.arm_document))
        return known[1]

    def _attempt(self, run: StoredRun, arm: ResolvedArm) -> tuple[int, AttemptFacts | None]:
        """(last step of the run, its latest attempt)."""
        attempt = run.attempt
        if attempt is None:
            return 0, None
        with self._session.reading() as connection:
            last_step = history.last_step(connection, run.run)
            gpus = history.reported_gpus(connection, run.run, attempt.number) if attempt.slot.gpu_uuids else None
        ended = None if attempt.exit is None else _exit(attempt.exit)
        failure = None
        if ended is not None and run.state in ON_A_SLOT:
            memory_mib = self._places.by_lease(attempt.lease).shell.memory_mib()
            failure = _failure(attempt, ended, arm.command is None, last_step, memory_mib)
        return last_step, AttemptFacts(
            number=attempt.number,
            kind=AttemptKind(attempt.kind),
            phase=Phase(attempt.phase),
            slot=attempt.slot,
            stop_sent=attempt.stop_reason is not None,
            reported=attempt.phase != Phase.INTENDED and attempt.identity is not None,
            exit=ended,
            failure=failure,
            wrong_gpus=_wrong_gpus(attempt, gpus),
            orphaned=self._is_orphaned(run.run, attempt.number),
            release=self._places.release_state(run.run, attempt.number),
            probe_every_steps=attempt.probe_every_steps,
        )

    def _stopping(self, run: StoredRun) -> tuple[str, str]:
        """(rule, reason) of the stop that a run is in. One that fell silent in it and came back is `running` again."""
        if run.state is RunState.STOPPING:
            return run.rule, run.reason
        attempt = run.attempt
        if attempt is None or run.state not in ON_A_SLOT:
            return "", ""
        if attempt.stop_reason is None and attempt.kind == AttemptKind.TRAIN:
            return "", ""
        with self._session.reading() as connection:
            return history.newest_stop(connection, run.run)

    def _has_checkpoint(self, run: StoredRun) -> bool:
        return run.state in (RunState.QUEUED, RunState.STOPPING) and self._checkpoints(run) > 0

    def _autopsy_lacks(self, run: StoredRun) -> str:
        """What an autopsy that would begin now cannot do without; '' when nothing is missing, or none is due."""
        attempt = run.attempt
        if attempt is None:
            return ""
        is_next = run.state is RunState.STOPPING and attempt.kind == AttemptKind.EVALUATE
        if not is_next and (run.autopsy_attempt is None or attempt.number >= run.autopsy_attempt):
            return ""
        left_s = self._left_s(run)
        if left_s is not None and left_s < LEAST_AUTOPSY_S:
            return "its budget is used up"
        kept = self._checkpoints(run)
        return "" if kept >= CHECKPOINTS_NEEDED else f"it needs two checkpoints, and {kept} is kept"

    def _evaluation(self, run: StoredRun) -> Exit | None:
        """How the final evaluation ended that the autopsy of a run being stopped came after."""
        attempt = run.attempt
        if attempt is None or attempt.kind != AttemptKind.AUTOPSY or run.state not in ON_A_SLOT:
            return None
        with self._session.reading() as connection:
            ended = history.evaluation_before(connection, run.run, attempt.number)
        return None if ended is None else _exit(ended)

    def _checkpoints(self, run: StoredRun) -> int:
        assert run.attempt is not None
        shell = self._places.by_lease(run.attempt.lease).shell
        return len(checkpoints(shell, self._home.root / run.run))


def _abort(run: StoredRun) -> tuple[str, str] | None:
    """(rule, reason) of what the judge, or else the look at its process, lets stop a run."""
    verdict = run.verdict or {}
    suspected = None if run.attempt is None else run.attempt.suspected
    found = verdict if verdict.get("action") in STOPS else suspected
    return None if found is None else (found["rule"], found["reason"])


def _wrong_gpus(attempt: StoredAttempt, gpus: Sequence[str] | None) -> str:
    wanted = attempt.slot.gpu_uuids
    if not gpus or not wanted or set(gpus) == set(wanted):
        return ""
    return f"it sees {', '.join(gpus)}, not {', '.join(wanted)}"


def _exit(record: Mapping[str, Any]) -> Exit:
    return Exit(record.get("code"), record.get("signal"), record.get("cause", ""), record.get("error") or "")


def _failure(attempt: StoredAttempt, ended: Exit, is_trainer: bool, last_step: int, memory_mib: float) -> Failure:
    record = attempt.exit or {}
    before = attempt.resumed_from or 0
    return classify(
        ended,
        is_trainer=is_trainer,
        tail=record.get("tail", ""),
        steps_done=last_step - before,
        steps_before=before,
        max_rss_mib=record.get("max_rss_mib"),
        host_memory_mib=memory_mib,
        gpu_memory_mib=attempt.slot.vram_mib or None,
    )
