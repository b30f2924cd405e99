"""Scores that a training does not write itself: other weights and guided drawing, at every checkpoint that was kept.

A cell is a set of weights and a way to draw. Weights: `raw`, `ema` (the scored average), and `long`, the average that
the published study scored, as far as stored averages can tell it. Drawing: `dense` (the common protocol) or `guided`
(the arm's own sampler). Everything else (samples, noise, masks, metric) is as in the run's validations.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from trainer.autopsy.weights import as_model
from trainer.checkpoint import ema_name, list_steps, read_state, read_weights
from trainer.config import TrainerConfig
from trainer.data import open_source
from trainer.document import load_document
from trainer.evaluate.protocols import EvalSet
from trainer.evaluate.reconstruction import rmse
from trainer.model.nanodit import NanoDiT
from trainer.optim.ema import decay
from trainer.sampler import COMMON

FILE = "collapse.json"
Weights = dict[str, Tensor]
Cells = dict[str, dict[int, dict[str, float]]]
"""Cell (`raw/dense`) -> step -> sample -> RMSE."""

# The published runs average with 0.9999 a step over 5,000 steps, from 0 over the first 500. As shares of the run: a
# half-life of 6,931 steps, and a start at which the average is little else than the weights of the last few percent.
PUBLISHED_HALF_LIFE = 6931 / 5000
PUBLISHED_START = 0.10


class Stored(NamedTuple):
    """What a checkpoint holds: raw weights, and an average that has taken in `step` updates."""

    step: int
    raw: Weights
    average: Weights


def cells_of(config: TrainerConfig) -> tuple[str, ...]:
    """Which cells a run is worth: guided ones need self-guidance; a dense arm draws by the common protocol only."""
    guided = ("ema/guided", "long/guided") if config.sampler.native.kind == "self_guidance" else ()
    return ("raw/dense", "long/dense", *guided)


def measure(run_dir: Path) -> Cells:
    """Score every kept checkpoint of a run in all its cells, `long` from PUBLISHED_START on, and keep it in FILE."""
    run = load_document(run_dir / "config.yaml")
    inputs = EvalSet(run.config, open_source(run.config, run.seed), torch.device("cpu"))
    found: Cells = {cell: {} for cell in cells_of(run.config)}
    long = dict(_long(run_dir, run.config))
    for step in list_steps(run_dir):
        state = read_state(run_dir, step)
        sets = {
            "raw": read_weights(run_dir, step, "model"),
            "ema": read_weights(run_dir, step, ema_name(run.config.ema.half_lives[0])),
            **({"long": long[step]} if step in long else {}),
        }
        for cell, scores in found.items():
            weights, drawn = cell.split("/")
            if weights in sets:
                model = as_model(sets[weights], run.config.model, state, "cpu")
                scores[step] = _scores(inputs, model, run.config, drawn)
    unfinished = run_dir / "collapse.tmp"
    unfinished.write_text(json.dumps(found, indent=1) + "\n")
    unfinished.replace(run_dir / FILE)
    return found


def read_cells(run_dir: Path) -> Cells:
    """What `measure` has written. Raises FileNotFoundError when it has not run."""
    content = json.loads((run_dir / FILE).read_text())
    return {cell: {int(step): scores for step, scores in of.items()} for cell, of in content.items()}


def published_averages(stored: Iterable[Stored], half_life: float, total: int) -> Iterator[tuple[int, Weights]]:
    """(step, weights) of the average that the published study scored, at each stored step; the first begins it.

    `stored` are averages with `half_life` (a share of the `total` steps, one update a step), ascending. It begins with
    the raw weights of the first. From then on, interval by interval, E_k = D E_(k-1) + (1 - D) V_k: D is the published
    decay over the interval and V_k the average of its weights, had from the stored averages as in
    trainer/autopsy/rebuild.py (inside an interval the profile stays that of the stored ones).
    """
    d = decay(half_life, 1, total)
    average: Weights = {}
    before: Stored | None = None
    for one in stored:
        if before is None:
            average = {name: tensor.double() for name, tensor in one.raw.items()}
        else:
            keep = 0.5 ** ((one.step - before.step) / (PUBLISHED_HALF_LIFE * total))
            inside = d ** (one.step - before.step)
            for name, tensor in average.items():
                newer = (1 - d**one.step) * one.average[name].double()
                older = inside * (1 - d**before.step) * before.average[name].double()
                average[name] = keep * tensor + (1 - keep) * (newer - older) / (1 - inside)
        before = one
        yield one.step, {name: tensor.float() for name, tensor in average.items()}


def _long(run_dir: Path, config: TrainerConfig) -> Iterator[tuple[int, Weights]]:
    half_life = max(config.ema.half_lives)
    stored = (
        Stored(step, read_weights(run_dir, step, "model"), read_weights(run_dir, step, ema_name(half_life)))
        for step in list_steps(run_dir)
        if step >= PUBLISHED_START * config.steps
    )
    return published_averages(stored, half_life, config.steps)


@torch.no_grad()
def _scores(inputs: EvalSet, model: NanoDiT, config: TrainerConfig, drawn: str) -> dict[str, float]:
    guidance = config.sampler.native if drawn == "guided" else COMMON
    values = rmse(inputs.generate(model, inputs.conditions, 0, guidance), inputs.x_BCHW).tolist()
    return {f"{sample}/0": value for sample, value in zip(inputs.ids, values, strict=True)}
