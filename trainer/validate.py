"""What a run is worth at a step: its validations and probes, the best step, and the checkpoints that still count."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping

from trainer import checkpoint
from trainer.model.nanodit import NanoDiT
from trainer.session import Session


def validate(session: Session, step: int) -> None:
    """Light validation of the current weights, then tidy up; left to the next attempt if a stop was asked for."""
    if session.stop:
        return
    _score(session, step, lambda: _light_and_probe(session, step))
    prune(session)


def validate_fully(session: Session, step: int) -> bool:
    """Full validation of the last step, then of the best one; False if a stop was asked for before both were done."""
    if not _full(session, step, lambda: _full_and_probe(session, step)):
        return False
    best = best_step(session)
    return best in (None, step) or _full(session, best, lambda: _full_of_kept(session, best))


def is_probe_step(session: Session, step: int) -> bool:
    """Whether control.json wants a probe of this step, and nobody wants a stop."""
    every = session.probe_every_steps
    return every is not None and step % every == 0 and not session.stop


def probe(session: Session, step: int) -> None:
    """A probe of the current weights. It is no validation: `scores` does not hear of it."""
    started = time.perf_counter()
    metrics = session.probe.run(step, _weights(session))
    session.meter.eval_s += time.perf_counter() - started
    session.telemetry.metrics("val", step, metrics)


def prune(session: Session) -> None:
    """Remove checkpoints that nothing needs any more; the newest one and its scores are on disk by now."""
    session.telemetry.sync()
    keep = session.config.checkpoint.keep
    steps = checkpoint.list_steps(session.run_dir)
    kept = {*steps[-keep.last :], *keep.milestones}
    best = best_step(session)
    checkpoint.prune(session.run_dir, kept if best is None else {*kept, best})


def best_step(session: Session) -> int | None:
    """The best step among the checkpoints whose weights are finite."""
    steps = checkpoint.list_steps(session.run_dir)
    return session.scores.best([step for step in steps if checkpoint.read_state(session.run_dir, step)["finite"]])


def validation_kind(session: Session, step: int) -> str | None:
    """light or full for a complete validation of a step, else None."""
    meta = session.run_dir / "validation" / f"step_{step:06d}" / "meta.json"
    return json.loads(meta.read_bytes())["kind"] if meta.exists() else None


def _light_and_probe(session: Session, step: int) -> dict[str, float]:
    weights = _weights(session)
    return {**session.validation.light(step, weights).metrics, **session.probe.run(step, weights)}


def _weights(session: Session) -> dict[str, NanoDiT]:
    """The models as they are now."""
    learner = session.learner.whole()
    return {"raw": learner.model, "ema": learner.ema.first}


def _score(session: Session, step: int, run: Callable[[], Mapping[str, float]]) -> None:
    """Run one validation, count its time, and write down what is new."""
    started = time.perf_counter()
    metrics = run()
    session.meter.eval_s += time.perf_counter() - started
    session.telemetry.metrics("val", step, session.scores.unknown(step, metrics))
    session.scores.add(step, metrics)


def _full(session: Session, step: int, run: Callable[[], Mapping[str, float]]) -> bool:
    """Full validation of a step unless it has one; False if a stop was asked for."""
    if validation_kind(session, step) == "full":
        return True
    if session.stop:
        return False
    _score(session, step, run)
    return True


def _full_and_probe(session: Session, step: int) -> dict[str, float]:
    weights = _weights(session)
    full = session.validation.full(step, weights, session.config.sampler.native)
    return {**full.metrics, **session.probe.run(step, weights)}


def _full_of_kept(session: Session, step: int) -> dict[str, float]:
    """Full validation of a kept checkpoint; when its step was trained it had its probe."""
    device, names = session.learner.device, ("raw", "ema")
    weights = {name: checkpoint.load_for_evaluation(session.run_dir, step, name, device)[0] for name in names}
    return session.validation.full(step, weights, session.config.sampler.native).metrics
