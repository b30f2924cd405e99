"""Checkpoints: complete or absent, never half. `checkpoints/step_000500/` in the run directory holds

    model.safetensors          the weights
    ema_<half-life>.safetensors  one fp32 average per half-life
    projector.safetensors      the alignment projector, if there is one
    optimizer.pt               state of optimizer, loss window and alignment (plain containers, read with weights_only)
    state.json                 step, seed, configuration, recipes of stored features, cumulative times; written last

A folder is written under a temporary name, flushed to disk and renamed. Random draws need only the step, so a resumed
run continues bit for bit.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import shutil
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from trainer.config import TrainerConfig, filled
from trainer.data.sample import StreamShapes
from trainer.data.set_record import SetRecord
from trainer.document import Document, load_document
from trainer.errors import CheckpointError, ConfigError, UsageError
from trainer.model.nanodit import NanoDiT
from trainer.objective.prediction import empty_model

_STEP_NAME = re.compile(r"step_(\d{6,})")
_UNFINISHED = ".unfinished-"
# A run may be resumed with other values here: they change what is kept, not what is computed.
_FREE_KEYS = ("activation_checkpointing", "checkpoint", "device", "distributed", "indicators", "log_every")
_FREE_INNER_KEYS = ("data.workers",)
_MODEL_KEYS = ("data", "model", "streams")


@dataclass(frozen=True, slots=True)
class Contents:
    """What one checkpoint holds: modules by file stem, optimizer state (plain containers and tensors), JSON state."""

    modules: Mapping[str, nn.Module]
    optimizer: Mapping[str, Any]
    state: Mapping[str, Any]


def folder(run_dir: Path, step: int) -> Path:
    """Where the checkpoint of a step lives."""
    return run_dir / "checkpoints" / f"step_{step:06d}"


def list_steps(run_dir: Path) -> list[int]:
    """Steps of all complete checkpoints, ascending."""
    found = (_STEP_NAME.fullmatch(path.parent.name) for path in (run_dir / "checkpoints").glob("step_*/state.json"))
    return sorted(int(match[1]) for match in found if match)


def ema_name(average: float | str) -> str:
    """File stem of the average with this half-life, or with this name."""
    return f"ema_{average}" if isinstance(average, str) else f"ema_{average:g}"


def save(run_dir: Path, step: int, contents: Contents) -> None:
    """Write one checkpoint; nothing happens if that step has one. Raises CheckpointError when the disk refuses."""
    final = folder(run_dir, step)
    if (final / "state.json").exists():
        return
    unfinished = final.parent / f"{_UNFINISHED}{final.name}"
    try:
        _write(unfinished, contents)
        unfinished.rename(final)
        _flush(final.parent)
    except (OSError, SafetensorError, RuntimeError) as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        newest = next(reversed(list_steps(run_dir)), None)
        kept = "there is no earlier one" if newest is None else f"{folder(run_dir, newest)} is intact"
        raise CheckpointError(f"checkpoint {final} cannot be written: {error}; {kept}") from error


def prune(run_dir: Path, keep: Collection[int]) -> None:
    """Remove every complete checkpoint whose step is not in `keep`, and what interrupted processes left behind."""
    _remove_leftovers(run_dir)
    for step in list_steps(run_dir):
        if step not in keep:
            # Renamed first: a folder that is being deleted must not look complete.
            folder(run_dir, step).rename(folder(run_dir, step).with_name(f"{_UNFINISHED}{step}"))
    _remove_leftovers(run_dir)


def set_aside(run_dir: Path, after: int, attempt: int) -> None:
    """Move the checkpoints behind a step to checkpoints/before-attempt-N, where nothing finds them but a person."""
    newer = [step for step in list_steps(run_dir) if step > after]
    aside = run_dir / "checkpoints" / f"before-attempt-{attempt}"
    for step in newer:
        aside.mkdir(exist_ok=True)
        folder(run_dir, step).rename(aside / folder(run_dir, step).name)


def read_state(run_dir: Path, step: int) -> dict[str, Any]:
    """The JSON state of a checkpoint."""
    try:
        state: dict[str, Any] = json.loads((folder(run_dir, step) / "state.json").read_bytes())
        return state
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder(run_dir, step)} cannot be read: {error}") from error


def load(
    run_dir: Path, step: int, modules: Mapping[str, nn.Module], device: torch.device
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Fill `modules` from a checkpoint and return its optimizer state and JSON state."""
    source = folder(run_dir, step)
    for stem, module in modules.items():
        _load_module(source / f"{stem}.safetensors", module, device)
    try:
        optimizer = torch.load(source / "optimizer.pt", map_location=device, weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{source / 'optimizer.pt'} is damaged or holds more than plain data: {error}") from error
    return optimizer, read_state(run_dir, step)


def chosen_step(run_dir: Path, step: int | None) -> int:
    """The step itself, or the newest one for None. Raises UsageError when there is no such complete checkpoint."""
    steps = list_steps(run_dir)
    if not steps or (step is not None and step not in steps):
        wanted = "checkpoint" if step is None else f"checkpoint of step {step}"
        raise UsageError(f"{run_dir} has no {wanted}; complete ones: {', '.join(map(str, steps)) or 'none'}")
    return steps[-1] if step is None else step


def load_for_evaluation(
    run_dir: Path, step: int | None, weights: str, device: torch.device | str
) -> tuple[NanoDiT, int, Document]:
    """The model of a checkpoint (None = the newest) in eval mode, its step, and the run's configuration.

    `weights` is raw or ema (the first half-life). Raises UsageError when there is no such checkpoint.
    """
    chosen = chosen_step(run_dir, step)
    document = load_document(run_dir / "config.yaml")
    streams = StreamShapes(**read_state(run_dir, chosen)["streams"])
    model = empty_model(document.config, streams)
    stem = "model" if weights == "raw" else ema_name(document.config.ema.averages[0])
    _load_module(folder(run_dir, chosen) / f"{stem}.safetensors", model, torch.device("cpu"))
    return model.to(device).requires_grad_(False).eval(), chosen, document


def read_weights(run_dir: Path, step: int, stem: str) -> dict[str, torch.Tensor]:
    """The tensors of one module of a checkpoint, by parameter name, on the CPU. `stem` is its file without suffix."""
    path = folder(run_dir, step) / f"{stem}.safetensors"
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def describe(document: Document, streams: StreamShapes, encoding: SetRecord | None = None) -> dict[str, Any]:
    """The part of state.json that says what was trained; compared by `require_same_run`.

    `encoding` says what stored features were made with, for whoever asks the run something new.
    """
    content = filled(document.config)
    digest = hashlib.sha256(json.dumps([document.seed, content], sort_keys=True).encode()).hexdigest()
    return {
        "seed": document.seed,
        "config_hash": digest,
        "config": content,
        "streams": asdict(streams),
        "encoding": None if encoding is None else encoding.as_json(),
    }


def require_same_run(state: Mapping[str, Any], document: Document) -> None:
    """Raise ConfigError unless a checkpoint belongs to this seed and configuration; only `steps` may have grown."""
    differing = [] if state["seed"] == document.seed else ["seed"]
    before, now = _completed(state["config"]), filled(document.config)
    if now["steps"] > before["steps"]:
        before = {**before, "steps": now["steps"]}  # a longer budget: everything counted in shares follows the new one
    differing += _differences(before, now)
    if differing:
        raise ConfigError(f"the checkpoint was trained with another configuration; keys: {', '.join(differing)}")


def require_same_model(state: Mapping[str, Any], document: Document) -> None:
    """Raise ConfigError unless a checkpoint of another run holds the model, the data and the seed of this one."""
    differing = [] if state["seed"] == document.seed else ["seed"]
    configs = (_completed(state["config"]), filled(document.config))
    before, now = ({key: config[key] for key in _MODEL_KEYS} for config in configs)
    differing += _differences(before, now)
    if differing:
        keys = ", ".join(differing)
        raise ConfigError(f"a run begins with a checkpoint of its own seed, data and model only; differing: {keys}")


def _completed(stored: Mapping[str, Any]) -> dict[str, Any]:
    """A stored configuration with the defaults of keys that did not exist when it was stored."""
    return _with_defaults(stored, filled(TrainerConfig(steps=stored["steps"])))


def _with_defaults(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    inner = {
        key: _with_defaults(values[key], default)
        for key, default in defaults.items()
        if isinstance(default, dict) and isinstance(values.get(key), dict)
    }
    return {**defaults, **values, **inner}


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    found: list[str] = []
    for key in sorted({*old, *new} - (set() if prefix else set(_FREE_KEYS))):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            found += _differences(before, after, f"{prefix}{key}.")
        elif before != after and f"{prefix}{key}" not in _FREE_INNER_KEYS:
            found.append(f"{prefix}{key}")
    return found


def _remove_leftovers(run_dir: Path) -> None:
    for leftover in (run_dir / "checkpoints").glob(f"{_UNFINISHED}*"):
        shutil.rmtree(leftover)


def _write(target: Path, contents: Contents) -> None:
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for stem, module in contents.modules.items():
        tensors = {name: tensor.detach().contiguous() for name, tensor in module.state_dict().items()}
        save_file(tensors, target / f"{stem}.safetensors")
    torch.save(dict(contents.optimizer), target / "optimizer.pt")
    (target / "state.json").write_text(json.dumps(contents.state, indent=1, allow_nan=False), encoding="utf-8")
    for path in (*target.iterdir(), target):
        _flush(path)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _load_module(path: Path, module: nn.Module, device: torch.device) -> None:
    try:
        module.load_state_dict(load_file(path, device=str(device)))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
