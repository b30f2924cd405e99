"""Train one run, from top to bottom: configuration, data, model, loop, end.

Step k means "after k optimizer steps". Smallest run on a CPU:

    python -m trainer train config.yaml --run-dir runs/try      # config.yaml: {seed: 0, trainer: {steps: 20}}
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from trainer import checkpoint
from trainer.control import Control, StopRequest
from trainer.data import open_source
from trainer.device import cap_threads, choose_device
from trainer.document import Document, load_document
from trainer.errors import EXIT_DONE, EXIT_STOPPED, UsageError
from trainer.model.nanodit import NanoDiT
from trainer.rules import is_validation_step
from trainer.session import Session, announce, open_session
from trainer.step import Learner, StepResult
from trainer.telemetry import Telemetry


def train(
    config_path: Path,
    run_dir: Path,
    attempt: int | None = None,
    resume: bool = False,
    stop_after: int | None = None,
    stop: StopRequest | None = None,
    from_step: int | None = None,
) -> int:
    """Train the run of `config_path` in `run_dir`; returns the exit code, 0 (all steps) or 75 (stopped on request).

    `attempt` defaults to one more than the last. `resume` continues from the newest complete checkpoint, or from that
    of `from_step`; newer ones are then set aside, not deleted. `stop_after` ends the process after that step.
    Raises ConfigError, DataError, UsageError and CheckpointError.
    """
    document = load_document(config_path, run=run_dir.resolve().name)
    stop = _listening() if stop is None else stop
    cap_threads()
    device = choose_device(document.config)
    _claim(config_path, run_dir, document, resume)
    source = open_source(document.config, document.seed)
    number = _next_attempt(run_dir) if attempt is None else attempt
    if from_step is not None:
        _go_back(run_dir, from_step, resume, number)
    with Telemetry(run_dir / f"attempt-{number}") as telemetry:
        session = open_session(document, run_dir, source, device, telemetry, Control(run_dir, number), stop)
        announce(session, number)
        step = _restore(session) if resume else 0
        _start_point(session, step)
        step = _loop(session, step, stop_after)
        return _end(session, step)


# ---- configuration ---------------------------------------------------------------------------------------------------


def _listening() -> StopRequest:
    stop = StopRequest()
    stop.listen()
    return stop


def _claim(config_path: Path, run_dir: Path, document: Document, resume: bool) -> None:
    """Make the run directory ours; refuse to train over another run."""
    steps = checkpoint.list_steps(run_dir)
    if steps and not resume:
        raise UsageError(
            f"{run_dir} holds checkpoints up to step {steps[-1]}; add --resume or choose another --run-dir"
        )
    (run_dir / "checkpoints").mkdir(parents=True, exist_ok=True)
    own = run_dir / "config.yaml"
    if not own.exists():
        shutil.copyfile(config_path, own)
    elif not own.samefile(config_path) and load_document(own, run=document.run) != document:
        raise UsageError(f"{own} differs from {config_path}; use it, or choose another --run-dir")


def _go_back(run_dir: Path, from_step: int, resume: bool, attempt: int) -> None:
    """Make the checkpoint of `from_step` the newest one."""
    steps = checkpoint.list_steps(run_dir)
    if not resume:
        raise UsageError("--from-step needs --resume")
    if from_step not in steps:
        kept = ", ".join(map(str, steps)) or "none"
        raise UsageError(f"--from-step {from_step}: {run_dir} has no checkpoint of that step; allowed: {kept}")
    checkpoint.set_aside(run_dir, after=from_step, attempt=attempt)


def _next_attempt(run_dir: Path) -> int:
    taken = [int(path.name[8:]) for path in run_dir.glob("attempt-*") if path.name[8:].isdigit()]
    return max(taken, default=0) + 1


# ---- model -----------------------------------------------------------------------------------------------------------


def _restore(session: Session) -> int:
    """Continue where the newest complete checkpoint ends; step 0 when there is none."""
    steps = checkpoint.list_steps(session.run_dir)
    step = steps[-1] if steps else 0
    if steps:
        checkpoint.require_same_run(checkpoint.read_state(session.run_dir, step), session.document)
        learner = session.learner
        optimizer, state = checkpoint.load(session.run_dir, step, _modules(learner), learner.device)
        learner.optimizer.load_state_dict(optimizer["optimizer"])
        learner.repa.load_state_dict(optimizer["repa"])
        session.meter.load_state_dict(optimizer["meter"])
        session.meter.train_s, session.meter.eval_s = state["train_s"], state["eval_s"]
        session.scores.restore(until=step)
    session.telemetry.event(step, "resumed", from_step=step)
    return step


# ---- loop ------------------------------------------------------------------------------------------------------------


def _start_point(session: Session, step: int) -> None:
    """Checkpoint and validation of the step from which this attempt starts, unless an earlier one left them."""
    _save(session, step)
    scored = step in session.scores and _validation_kind(session, step) is not None
    if step < session.config.steps and not scored:
        _validate(session, step)


def _loop(session: Session, step: int, stop_after: int | None) -> int:
    """Train until the last step or until somebody asks for a stop; the number of finished steps."""
    config = session.config
    while step < config.steps:
        _look_outside(session, step, stop_after)
        if session.stop:
            break
        started = time.perf_counter()
        result = session.learner.step(session.batches, step, session.stop)
        if result is None:
            break
        step += 1
        session.meter.add(result, time.perf_counter() - started)
        if step % config.log_every == 0 or step == config.steps:
            session.telemetry.metrics("train", step, session.meter.line())
        _announce_changes(session, step, result)
        if is_validation_step(config, step):
            _save(session, step)
            if step < config.steps:
                _validate(session, step)
    return step


def _look_outside(session: Session, step: int, stop_after: int | None) -> None:
    """Take in control.json and --stop-after."""
    wish = session.control.poll()
    if wish is not None:
        session.telemetry.event(step, "control_ack", seq=wish.seq, ignored=list(wish.ignored))
        if wish.stop:
            session.stop.ask("control.json")
    if stop_after is not None and step >= stop_after:
        session.stop.ask("--stop-after")


def _announce_changes(session: Session, step: int, result: StepResult) -> None:
    """Events for techniques that end with the update just made."""
    config = session.config
    if step == config.steps:
        return
    if step == config.routed_steps:
        session.telemetry.event(step, "routing_off")
    if result.repa_weight > 0 and session.learner.repa.weight(step) == 0:
        session.telemetry.event(step, "repa_off")


def _save(session: Session, step: int) -> None:
    """A complete checkpoint of `step`, unless it has one."""
    if checkpoint.folder(session.run_dir, step).exists():
        return
    learner, meter = session.learner, session.meter
    contents = checkpoint.Contents(
        modules=_modules(learner),
        optimizer={
            "optimizer": learner.optimizer.state_dict(),
            "repa": learner.repa.state_dict(),
            "meter": meter.state_dict(),
        },
        state={
            "step": step,
            "samples_seen": step * session.config.samples_per_step,
            "finite": learner.is_finite(),
            "train_s": meter.train_s,
            "eval_s": meter.eval_s,
            **checkpoint.describe(session.document, session.source.streams),
        },
    )
    checkpoint.save(session.run_dir, step, contents)
    session.telemetry.event(step, "checkpoint", finite=contents.state["finite"])


def _modules(learner: Learner) -> dict[str, torch.nn.Module]:
    """What a checkpoint stores, by file stem."""
    averages = {checkpoint.ema_name(half_life): model for half_life, model in learner.ema.models.items()}
    projector = {"projector": learner.modules["repa"]} if "repa" in learner.modules else {}
    return {"model": learner.model, **averages, **projector}


def _validate(session: Session, step: int) -> None:
    """Light validation of the current weights, then tidy up; left to the next attempt if a stop was asked for."""
    if session.stop:
        return
    weights = {"raw": session.learner.model, "ema": session.learner.ema.first}
    _score(session, step, lambda: session.validation.light(step, weights).metrics)
    _prune(session)


def _score(session: Session, step: int, run: Callable[[], Mapping[str, float]]) -> None:
    """Run one validation, count its time, and write down what is new."""
    started = time.perf_counter()
    metrics = run()
    session.meter.eval_s += time.perf_counter() - started
    session.telemetry.metrics("val", step, session.scores.unknown(step, metrics))
    session.scores.add(step, metrics)


def _prune(session: Session) -> None:
    """Remove checkpoints that nothing needs any more; the newest one and its scores are on disk by now."""
    session.telemetry.sync()
    keep = session.config.checkpoint.keep
    steps = checkpoint.list_steps(session.run_dir)
    kept = {*steps[-keep.last :], *keep.milestones}
    best = _best(session)
    checkpoint.prune(session.run_dir, kept if best is None else {*kept, best})


def _best(session: Session) -> int | None:
    """The best step among the checkpoints whose weights are finite."""
    steps = checkpoint.list_steps(session.run_dir)
    return session.scores.best([step for step in steps if checkpoint.read_state(session.run_dir, step)["finite"]])


# ---- end -------------------------------------------------------------------------------------------------------------


def _end(session: Session, step: int) -> int:
    """After the last step the full validations; after a stop a checkpoint."""
    _save(session, step)
    if step < session.config.steps or not _validate_fully(session, step):
        session.telemetry.event(step, "stopped", reason=session.stop.reason)
        return EXIT_STOPPED
    _prune(session)
    session.telemetry.event(step, "finished", best_step=_best(session))
    return EXIT_DONE


def _validate_fully(session: Session, step: int) -> bool:
    """Full validation of the last step, then of the best one; False if a stop was asked for before both were done."""
    learner = session.learner
    if not _full(session, step, lambda: {"raw": learner.model, "ema": learner.ema.first}):
        return False
    best = _best(session)
    return best in (None, step) or _full(session, best, lambda: _kept_weights(session, best))


def _full(session: Session, step: int, weights: Callable[[], dict[str, NanoDiT]]) -> bool:
    """Full validation of a step unless it has one; False if a stop was asked for. `weights` load only if needed."""
    if _validation_kind(session, step) == "full":
        return True
    if session.stop:
        return False
    _score(session, step, lambda: session.validation.full(step, weights(), session.config.sampler.native).metrics)
    return True


def _kept_weights(session: Session, step: int) -> dict[str, NanoDiT]:
    device = session.learner.device
    names = ("raw", "ema")
    return {name: checkpoint.load_for_evaluation(session.run_dir, step, name, device)[0] for name in names}


def _validation_kind(session: Session, step: int) -> str | None:
    """light or full for a complete validation of a step, else None."""
    meta = session.run_dir / "validation" / f"step_{step:06d}" / "meta.json"
    return json.loads(meta.read_bytes())["kind"] if meta.exists() else None
