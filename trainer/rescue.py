"""Begins a run with a checkpoint of another one: same model, data, seed and step numbers, and maybe another recipe.

Draws, data order and schedules need only the step, so nothing else has to be taken along. With the same recipe the run
goes on as the other one would have, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Size, Tensor

from trainer import checkpoint
from trainer.document import Document
from trainer.errors import ConfigError, UsageError
from trainer.session import Session, stored_modules
from trainer.step import Learner


@dataclass(frozen=True, slots=True)
class Origin:
    """A complete checkpoint of another run whose weights are finite; `state` is the content of its state.json."""

    run_dir: Path
    step: int
    state: Mapping[str, Any]


def find_origin(run_dir: Path, step: int, document: Document) -> Origin:
    """The checkpoint of `step` in the other run's directory, for a run of `document`.

    Raises UsageError when there is none, when its weights are not finite or when it lies behind the last step, and
    ConfigError when it holds another model, other data or another seed.
    """
    if step > document.config.steps:
        raise UsageError(f"--from-step {step}: the run has {document.config.steps} steps only")
    if step not in checkpoint.list_steps(run_dir):
        raise UsageError(f"--from-step {step}: {run_dir} has no checkpoint of that step; {_kept(run_dir)}")
    state = checkpoint.read_state(run_dir, step)
    if not state["finite"]:
        raise UsageError(f"--from-step {step}: the weights in {run_dir} are not finite there; {_kept(run_dir)}")
    checkpoint.require_same_model(state, document)
    return Origin(run_dir, step, state)


def take_over(session: Session, origin: Origin) -> int:
    """Fill a new session from the checkpoint of another run and say so; the step from which it goes on.

    An average with a half-life that the other run lacks begins as a copy of the weights. Optimizer and alignment
    projector keep their state where it fits, else they begin anew. The seconds so far are those it took to get there.
    Raises ConfigError when the conditions have another width or length, CheckpointError for a damaged file.
    """
    learner, state = session.learner, origin.state
    _require_same_streams(session, state)
    kept = _kept_modules(learner, origin)
    optimizer, _ = checkpoint.load(origin.run_dir, origin.step, kept, learner.device)
    _begin_averages(learner, kept)
    for auxiliary in learner.auxiliaries:
        # The others remember only which weights they look through, and this run may look through other ones.
        if auxiliary.name == "repa" and "repa" in optimizer and _goes_on(state["config"], learner, kept):
            auxiliary.load_state_dict(optimizer[auxiliary.name])
    fits = fits_optimizer(learner, optimizer["optimizer"])
    if fits:
        _keep_optimizer(learner, optimizer)
    session.meter.load_state_dict(optimizer["meter"])
    learner.scaling.load_state_dict(optimizer.get("scaling", {}))
    session.meter.train_s, session.meter.eval_s = state["train_s"], state["eval_s"]
    session.telemetry.event(
        origin.step,
        "rescued",
        from_run=origin.run_dir.resolve().name,
        from_step=origin.step,
        optimizer="kept" if fits else "fresh",
        anew=[stem for stem in stored_modules(learner) if stem not in kept],
    )
    return origin.step


def fits_optimizer(learner: Learner, saved: Mapping[str, Any]) -> bool:
    """Whether a stored state belongs to the same optimizers over the same groups of parameters of the same shapes."""
    own = learner.optimizer.state_dict()
    if saved.keys() != own.keys():
        return False
    names, parameters = learner.optimizer.members, dict(learner.modules.named_parameters())
    for name, optimizer in own.items():
        if _members(saved[name]) != _members(optimizer):
            return False
        for index, moments in saved[name]["state"].items():
            shape = parameters[names[name][index]].shape
            tensors = (value for value in moments.values() if isinstance(value, Tensor) and value.dim())
            if any(not _covers(tensor.shape, shape) for tensor in tensors):
                return False
    return True


def _covers(state: Size, parameter: Size) -> bool:
    """Whether state of this shape belongs to a parameter of that shape: as large, or one number for all of a row."""
    return len(state) == len(parameter) and all(size in (1, full) for size, full in zip(state, parameter, strict=True))


def _kept(run_dir: Path) -> str:
    """`allowed: 0, 4; not finite: 8`."""
    steps: dict[bool, list[str]] = {True: [], False: []}
    for step in checkpoint.list_steps(run_dir):
        steps[checkpoint.read_state(run_dir, step)["finite"]].append(str(step))
    allowed = f"allowed: {', '.join(steps[True]) or 'none'}"
    return allowed + (f"; not finite: {', '.join(steps[False])}" if steps[False] else "")


def _require_same_streams(session: Session, state: Mapping[str, Any]) -> None:
    """The same configuration has other widths where the data in its folder have changed."""
    now = checkpoint.describe(session.document, session.source.streams)["streams"]
    if now != state["streams"]:
        raise ConfigError(f"the checkpoint was trained with other conditions: {state['streams']}, not {now}")


def _kept_modules(learner: Learner, origin: Origin) -> dict[str, Any]:
    """What both runs store, by file stem: always the model, averages of equal half-life, a projector that fits."""
    found = {}
    for stem, module in stored_modules(learner).items():
        if not (checkpoint.folder(origin.run_dir, origin.step) / f"{stem}.safetensors").exists():
            continue
        if stem == "projector":
            shapes = {name: tensor.shape for name, tensor in module.state_dict().items()}
            stored = checkpoint.read_weights(origin.run_dir, origin.step, stem)
            if shapes != {name: tensor.shape for name, tensor in stored.items()}:
                continue
        found[stem] = module
    return found


def _begin_averages(learner: Learner, kept: Mapping[str, Any]) -> None:
    for half_life, average in learner.ema.models.items():
        if checkpoint.ema_name(half_life) not in kept:
            average.load_state_dict(learner.model.state_dict())


def _goes_on(config: Mapping[str, Any], learner: Learner, kept: Mapping[str, Any]) -> bool:
    """Whether the alignment of the other run goes on: a stop that one rule decided says nothing where another does."""
    return "projector" in kept and config["repa"]["stop"]["kind"] == learner.config.repa.stop.kind


def _keep_optimizer(learner: Learner, optimizer: Mapping[str, Any]) -> None:
    """Moments from the checkpoint, rates, betas and weight decay from this run: torch would restore those, too."""
    own = learner.optimizer.state_dict()
    saved = optimizer["optimizer"]
    learner.optimizer.load_state_dict(
        {name: {"state": saved[name]["state"], "param_groups": own[name]["param_groups"]} for name in own}
    )
    if "indicators" in optimizer:
        learner.recorder.load_state_dict(optimizer["indicators"])


def _members(optimizer: Mapping[str, Any]) -> list[list[int]]:
    return [group["params"] for group in optimizer["param_groups"]]
