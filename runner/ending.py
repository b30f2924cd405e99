"""What the end of an attempt means for its run, and what comes next on its slot. Pure.

After an abort a trainer run is scored in full, and then an autopsy compares its best checkpoint with the last, all on
the slot that it still holds. Neither changes why the run was stopped.
"""

from __future__ import annotations

from runner.actions import Action, EndAutopsy, Retry, Settle, Start
from runner.failure import Exit, describe_exit
from runner.records import AttemptKind, RunState
from runner.run_facts import BUDGET, WRONG_GPU, AttemptFacts, Phase, RunFacts
from runner.suspicion import RULE_NAMES


def after_end(run: RunFacts, attempt: AttemptFacts) -> Action | None:
    """An attempt ended with an exit record: judge it by what was asked of it."""
    assert attempt.exit is not None
    if attempt.kind is AttemptKind.AUTOPSY:
        return _settle_stopped(run, _evaluation_note(run.evaluation) + _autopsy_note(attempt.exit))
    if attempt.kind is AttemptKind.EVALUATE:
        return _after_evaluation(run, attempt, _evaluation_note(attempt.exit))
    if (attempt.exit.code == 0 and attempt.exit.cause == "exited") or _is_complete(run, attempt.exit):
        return _settle_zero(run)
    if attempt.stop_sent:
        return _after_stop(run, attempt)
    return _settle_failed(run, attempt)


def _is_complete(run: RunFacts, ended: Exit) -> bool:
    return ended.code == 0 and run.steps_total is not None and run.last_step >= run.steps_total


def _settle_zero(run: RunFacts) -> Settle:
    if run.is_trainer and run.steps_total is not None and run.last_step < run.steps_total:
        reason = f"exit code 0 at step {run.last_step} of {run.steps_total}"
        return Settle(run.run, RunState.FAILED, reason, "incomplete")
    if run.last_step == 0:
        return Settle(run.run, RunState.FINISHED, "exit code 0, and no metric of it was ever read")
    if run.steps_total is not None and run.last_step < run.steps_total:
        return Settle(
            run.run, RunState.FINISHED, f"exit code 0; its last step was {run.last_step} of {run.steps_total}"
        )
    return Settle(run.run, RunState.FINISHED, f"all {run.steps_total or run.last_step} steps done")


def _after_stop(run: RunFacts, attempt: AttemptFacts) -> Action | None:
    """A stop that we asked for has happened; an aborted trainer run is scored in full while its slot is still held."""
    if run.is_trainer and run.stopping_rule not in ("", WRONG_GPU) and run.has_checkpoint:
        if run.stop_wanted:
            return _settle_stopped(run, f" (no final evaluation: {run.stop_wanted})")
        if attempt.release == "waiting":
            return None
        if attempt.release == "quarantined":
            return _settle_stopped(run, " (no final evaluation: its slot was not given back in time)")
        return Start(run.run, attempt.number + 1, AttemptKind.EVALUATE, attempt.slot, resume=False)
    return _settle_stopped(run, "")


def _after_evaluation(run: RunFacts, attempt: AttemptFacts, note: str) -> Action | None:
    """A run that a detector stopped is opened up on the slot that it holds; one whose budget is spent is not."""
    if not run.wants_autopsy or run.stopping_rule in ("", BUDGET, *RULE_NAMES):  # no checkpoint says why a process hung
        return _settle_stopped(run, note)
    why_not = run.stop_wanted or run.autopsy_lacks
    if not why_not and attempt.release == "waiting":
        return None
    if not why_not and attempt.release == "quarantined":
        why_not = "its slot was not given back in time"
    if why_not:
        return _settle_stopped(run, f"{note} (no autopsy: {why_not})")
    return Start(run.run, attempt.number + 1, AttemptKind.AUTOPSY, attempt.slot, resume=False)


def after_asked_autopsy(run: str, attempt: AttemptFacts) -> EndAutopsy:
    """What became of an autopsy that a person asked for, once its process is over or out of sight."""
    if attempt.phase is Phase.SILENT:
        return EndAutopsy(run, attempt.number, "it gives no sign of life and cannot be seen from here", ok=False)
    if attempt.exit is None:
        return EndAutopsy(run, attempt.number, "its process vanished before its end was written down", ok=False)
    if attempt.exit.code == 0:
        return EndAutopsy(run, attempt.number, "done", ok=True)
    return EndAutopsy(run, attempt.number, f"it ended with {describe_exit(attempt.exit)}", ok=False)


def _settle_stopped(run: RunFacts, note: str) -> Settle:
    if run.stopping_rule == WRONG_GPU:
        return Settle(run.run, RunState.FAILED, run.stopping_reason, WRONG_GPU)
    if run.stopping_rule:
        why_not = (run.stop_wanted or run.budget) if run.may_rescue else None
        note += f" (no rescue: {why_not})" if why_not else ""
        rescue = run.may_rescue and not why_not
        return Settle(run.run, RunState.ABORTED, run.stopping_reason + note, run.stopping_rule, rescue)
    return Settle(run.run, RunState.CANCELLED, (run.stop_wanted or run.stopping_reason) + note)


def _evaluation_note(ended: Exit | None) -> str:
    return "" if ended is None or ended.code == 0 else f" (its final evaluation ended with {describe_exit(ended)})"


def _autopsy_note(ended: Exit) -> str:
    return "" if ended.code == 0 else f" (its autopsy ended with {describe_exit(ended)})"


def _settle_failed(run: RunFacts, attempt: AttemptFacts) -> Settle | Retry:
    assert attempt.exit is not None
    assert attempt.failure is not None
    failure = attempt.failure
    reason = f"{describe_exit(attempt.exit)} at step {run.last_step}: {failure.says}"
    if failure.is_transient and run.retries_left > 0 and not run.stop_wanted:
        return Retry(run.run, RunState.FAILED, reason, failure.name)
    if failure.is_transient and not run.stop_wanted:
        reason += "; no retries are left"
    return Settle(run.run, RunState.FAILED, reason, failure.name)


def settle_gone(run: RunFacts, attempt: AttemptFacts) -> Settle | Retry:
    """No exit record. Only what is proven gone is started again: two processes must never share a run."""
    if attempt.phase is Phase.SILENT:
        reason = f"attempt {attempt.number} gives no sign of life and cannot be seen from here"
        return Settle(run.run, RunState.LOST, f"{reason} (last step {run.last_step})", "silent")
    if run.state is RunState.STOPPING and run.stopping_rule:
        what = "autopsy" if attempt.kind is AttemptKind.AUTOPSY else "process"
        note = _evaluation_note(run.evaluation)
        return _settle_stopped(run, f"{note} (its {what} vanished before its end was written down)")
    reason = f"attempt {attempt.number} and its supervisor are gone and left no exit record (last step {run.last_step})"
    if run.stop_wanted or run.retries_left <= 0:
        return Settle(run.run, RunState.LOST, reason, "vanished")
    return Retry(run.run, RunState.LOST, reason, "vanished")
