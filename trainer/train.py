"""Train one run, from top to bottom: configuration, data, model, loop, end.

Step k means "after k optimizer steps". Smallest run on a CPU:

    python -m trainer train config.yaml --run-dir runs/try      # config.yaml: {seed: 0, trainer: {steps: 20}}
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from trainer import checkpoint
from trainer.control import Control, StopRequest, Wish
from trainer.data import open_source
from trainer.device import cap_threads, keep_freed_memory
from trainer.distributed.following import follow, share_beginning
from trainer.distributed.launch import open_team
from trainer.distributed.team import Processes, Team
from trainer.document import Document, load_document
from trainer.errors import EXIT_DONE, EXIT_STOPPED, UsageError
from trainer.precision.means import require_means
from trainer.rescue import Origin, find_origin, take_over
from trainer.rules import is_validation_step
from trainer.session import Session, announce, open_session, stored_modules
from trainer.step import StepResult
from trainer.telemetry import Telemetry
from trainer.validate import best_step, is_probe_step, probe, prune, validate, validate_fully, validation_kind


def train(
    config_path: Path,
    run_dir: Path,
    attempt: int | None = None,
    resume: bool = False,
    stop_after: int | None = None,
    stop: StopRequest | None = None,
    from_step: int | None = None,
    from_run: Path | None = None,
    processes: int | None = None,
) -> int:
    """Train the run of `config_path` in `run_dir`; returns the exit code, 0 (all steps) or 75 (stopped on request).

    `attempt` defaults to one more than the last. `resume` continues from the newest complete checkpoint, or from that
    of `from_step`; newer ones are then set aside, not deleted. `from_run` is the directory of another run with whose
    checkpoint of `from_step` this one begins. `stop_after` ends the process after that step. `processes` train
    together, this one leads; None means one, or those of which torchrun says that this one belongs to them.
    Raises ConfigError, DataError, UsageError and CheckpointError.
    """
    _check_options(resume, from_step, from_run)
    document = load_document(config_path, run=run_dir.resolve().name)
    stop = _listening() if stop is None else stop
    cap_threads()
    argv = ["train", str(config_path), "--run-dir", str(run_dir)]
    with open_team(document.config, processes, argv) as team:
        if team.device.type == "cpu":
            keep_freed_memory()
        require_means(document.config, team.device)
        if isinstance(team, Processes) and not team.is_leader:
            return follow(document, run_dir, team, stop)
        begin = Beginning(attempt, resume, from_step, from_run, stop_after)
        return team.end(lead(config_path, run_dir, document, team, stop, begin))


@dataclass(frozen=True, slots=True)
class Beginning:
    """Where an attempt starts and where it ends before its time; as `train` says."""

    attempt: int | None = None
    resume: bool = False
    from_step: int | None = None
    from_run: Path | None = None
    stop_after: int | None = None


def lead(config_path: Path, run_dir: Path, document: Document, team: Team, stop: StopRequest, begin: Beginning) -> int:
    """Train as the process that decides and writes; the exit code. Raises what `train` raises."""
    from_step, from_run = begin.from_step, begin.from_run
    _refuse_to_train_over(run_dir, begin.resume)
    origin = None if from_run is None or from_step is None else find_origin(from_run, from_step, document)
    _claim(config_path, run_dir, document)
    source = open_source(document.config, document.seed)
    number = _next_attempt(run_dir) if begin.attempt is None else begin.attempt
    if from_step is not None and begin.resume:
        _go_back(run_dir, from_step, number)
    with Telemetry(run_dir / f"attempt-{number}") as telemetry:
        control = Control(run_dir, number)
        session = open_session(document, run_dir, source, team.device, telemetry, control, stop, team)
        with session.batches:
            announce(session, number)
            step = _first_step(session, begin.resume, origin)
            share_beginning(session.learner)
            _start_point(session, step)
            step = _loop(session, step, begin.stop_after)
            return _end(session, step)


# ---- configuration ---------------------------------------------------------------------------------------------------


def _listening() -> StopRequest:
    stop = StopRequest()
    stop.listen()
    return stop


def _check_options(resume: bool, from_step: int | None, from_run: Path | None) -> None:
    """Refuse options that contradict each other."""
    if from_run is not None and resume:
        raise UsageError("--from-run begins a run and --resume continues one; allowed: one of them")
    if from_run is not None and from_step is None:
        raise UsageError("--from-run needs --from-step, the step of the checkpoint to begin with")
    if from_step is not None and from_run is None and not resume:
        raise UsageError("--from-step needs --resume or --from-run")


def _refuse_to_train_over(run_dir: Path, resume: bool) -> None:
    """A run with checkpoints is continued or left alone."""
    steps = checkpoint.list_steps(run_dir)
    if steps and not resume:
        raise UsageError(
            f"{run_dir} holds checkpoints up to step {steps[-1]}; add --resume or choose another --run-dir"
        )


def _claim(config_path: Path, run_dir: Path, document: Document) -> None:
    """Make the run directory ours."""
    (run_dir / "checkpoints").mkdir(parents=True, exist_ok=True)
    own = run_dir / "config.yaml"
    if not own.exists():
        shutil.copyfile(config_path, own)
    elif not own.samefile(config_path) and load_document(own, run=document.run) != document:
        raise UsageError(f"{own} differs from {config_path}; use it, or choose another --run-dir")


def _go_back(run_dir: Path, from_step: int, attempt: int) -> None:
    """Make the checkpoint of `from_step` the newest one."""
    steps = checkpoint.list_steps(run_dir)
    if from_step not in steps:
        kept = ", ".join(map(str, steps)) or "none"
        raise UsageError(f"--from-step {from_step}: {run_dir} has no checkpoint of that step; allowed: {kept}")
    checkpoint.set_aside(run_dir, after=from_step, attempt=attempt)


def _next_attempt(run_dir: Path) -> int:
    taken = [int(path.name[8:]) for path in run_dir.glob("attempt-*") if path.name[8:].isdigit()]
    return max(taken, default=0) + 1


# ---- model -----------------------------------------------------------------------------------------------------------


def _first_step(session: Session, resume: bool, origin: Origin | None) -> int:
    """The step from which this attempt goes on, everything filled with what belongs to it."""
    if origin is not None:
        return take_over(session, origin)
    return _restore(session) if resume else 0


def _restore(session: Session) -> int:
    """Continue where the newest complete checkpoint ends; step 0 when there is none."""
    steps = checkpoint.list_steps(session.run_dir)
    step = steps[-1] if steps else 0
    if steps:
        checkpoint.require_same_run(checkpoint.read_state(session.run_dir, step), session.document)
        learner = session.learner
        optimizer, state = checkpoint.load(session.run_dir, step, stored_modules(learner), learner.device)
        learner.optimizer.load_state_dict(optimizer["optimizer"])
        for auxiliary in learner.auxiliaries:
            auxiliary.load_state_dict(optimizer[auxiliary.name])
        session.meter.load_state_dict(optimizer["meter"])
        if "indicators" in optimizer:  # a checkpoint from before there were any
            learner.recorder.load_state_dict(optimizer["indicators"])
        learner.scaling.load_state_dict(optimizer.get("scaling", {}))
        session.meter.train_s, session.meter.eval_s = state["train_s"], state["eval_s"]
        session.scores.restore(until=step)
    session.telemetry.event(step, "resumed", from_step=step)
    return step


# ---- loop ------------------------------------------------------------------------------------------------------------


def _start_point(session: Session, step: int) -> None:
    """Checkpoint and validation of the step from which this attempt starts, unless an earlier one left them."""
    _save(session, step)
    scored = step in session.scores and validation_kind(session, step) is not None
    if step < session.config.steps and not scored:
        validate(session, step)


def _loop(session: Session, step: int, stop_after: int | None) -> int:
    """Train until the last step or until somebody asks for a stop; the number of finished steps."""
    config = session.config
    while step < config.steps:
        _look_outside(session, step, stop_after)
        if session.stop:
            break
        result = advance(session, step)
        if result is None:
            break
        step += 1
        _announce_rejected(session, step)
        if step < session.config.steps:
            _announce_changes(session, step, result)
        if is_validation_step(config, step):
            _save(session, step)
            if step < config.steps:
                validate(session, step)
        elif is_probe_step(session, step):
            probe(session, step)
    return step


def advance(session: Session, step: int) -> StepResult | None:
    """Make the update that follows `step` finished steps and log it if that is due; None if a stop was asked for."""
    started = time.perf_counter()
    result = session.learner.step(session.batches, step, session.stop)
    if result is None:
        return None
    session.meter.add(result, time.perf_counter() - started)
    if (step + 1) % session.config.log_every == 0 or step + 1 == session.config.steps:
        session.telemetry.metrics("train", step + 1, session.meter.line() | session.batches.metrics())
    return result


def _look_outside(session: Session, step: int, stop_after: int | None) -> None:
    """Take in control.json and --stop-after."""
    wish = session.control.poll()
    if wish is not None:
        session.probe_every_steps = wish.probe_every_steps
        session.telemetry.event(step, "control_ack", seq=wish.seq, ignored=_left_undone(session, wish))
        if wish.stop:
            session.stop.ask("control.json")
    if stop_after is not None and step >= stop_after:
        session.stop.ask("--stop-after")


def _left_undone(session: Session, wish: Wish) -> list[str]:
    """The keys of a wish that change nothing here."""
    impossible = wish.probe_every_steps is not None and not session.probe.ids
    return [*wish.ignored, *(["probe_every_steps"] if impossible else [])]


def _announce_rejected(session: Session, step: int) -> None:
    """Events for samples that were found to be broken when the update just made wanted them."""
    for name, reason in session.batches.newly_rejected():
        session.telemetry.event(step, "rejected", name=name, reason=reason)


def _announce_changes(session: Session, step: int, result: StepResult) -> None:
    """Events for techniques that end, and sizes of images that change, with the update just made, if more follow."""
    config = session.config
    if step == config.routed_steps:
        session.telemetry.event(step, "routing_off")
    if config.size_at(step) != config.size_at(step - 1):
        session.telemetry.event(step, "resolution", size=config.size_at(step))
    for auxiliary in session.learner.auxiliaries:
        if result.weights.get(auxiliary.name, 0.0) > 0 and auxiliary.weight(step) == 0:
            session.telemetry.event(step, f"{auxiliary.name}_off")


def _save(session: Session, step: int) -> None:
    """A complete checkpoint of `step`, unless it has one."""
    if checkpoint.folder(session.run_dir, step).exists():
        return
    learner, meter = session.learner.whole(), session.meter
    contents = checkpoint.Contents(
        modules=stored_modules(learner),
        optimizer={
            "optimizer": learner.optimizer.state_dict(),
            "meter": meter.state_dict(),
            "indicators": learner.recorder.state_dict(),
            "scaling": learner.scaling.state_dict(),
            **{auxiliary.name: auxiliary.state_dict() for auxiliary in learner.auxiliaries},
        },
        state={
            "step": step,
            "samples_seen": step * session.config.samples_per_step,
            "finite": learner.is_finite(),
            "train_s": meter.train_s,
            "eval_s": meter.eval_s,
            **checkpoint.describe(session.document, session.source.streams, session.encoding),
        },
    )
    checkpoint.save(session.run_dir, step, contents)
    session.telemetry.event(step, "checkpoint", finite=contents.state["finite"])


# ---- end -------------------------------------------------------------------------------------------------------------


def _end(session: Session, step: int) -> int:
    """After the last step the full validations; after a stop a checkpoint."""
    _save(session, step)
    if step < session.config.steps or not validate_fully(session, step):
        session.telemetry.event(step, "stopped", reason=session.stop.reason)
        return EXIT_STOPPED
    prune(session)
    session.telemetry.event(step, "finished", best_step=best_step(session))
    return EXIT_DONE
