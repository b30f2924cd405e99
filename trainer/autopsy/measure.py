"""Scores of every cell at both checkpoints: the same samples, noise and masks, sample by sample.

Samples are taken in the order of their id hashes, some at a time through all cells, so that whatever was measured when
the time is up is complete.

Shapes: B samples, C channels, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from trainer.autopsy.passes import Pass
from trainer.autopsy.shares import Cell, Means
from trainer.evaluate.protocols import EvalSet
from trainer.model.nanodit import NanoDiT
from trainer.sampler import euler

FIRST_SAMPLES = 2  # the least that an interval can be had from; also tells what a sample costs
SAMPLES_AT_ONCE = 8
SPARE = 1.3  # the next samples may take this much longer than the last ones: other work on the machine comes and goes

Models = Mapping[int, Mapping[str, NanoDiT]]
"""Step -> set of weights (raw, ema, ema_alt) -> model."""
Compare = Callable[[Tensor, Tensor], Tensor]
"""Generated and real images (B, C, H, W) -> one score a sample (B,)."""


class Row(NamedTuple):
    """One score: a line of scores.csv."""

    step: int
    weights: str
    drawn: str
    sampler: str
    sample_id: str
    eval_seed: int
    value: float


@dataclass(frozen=True, slots=True)
class Budget:
    """When to stop adding samples: `left_s` says how many seconds are left, None means that time does not matter."""

    left_s: Callable[[], float | None]

    def next_count(self, done: int, total: int, cost_s: float | None) -> int:
        """How many samples come next, 0 for none; one of the last ones took `cost_s`, None before the first."""
        wanted, left_s = min(SAMPLES_AT_ONCE, total - done), self.left_s()
        if left_s is None:
            return wanted
        if cost_s is None:
            return min(FIRST_SAMPLES, wanted)
        return min(wanted, max(0, int(left_s / (SPARE * cost_s)))) if cost_s > 0 else wanted


def measure(
    sets: Sequence[EvalSet],
    models: Models,
    passes: Sequence[Pass],
    compare: Compare,
    budget: Budget,
    now: Callable[[], float],
) -> list[Row]:
    """Scores of as many samples as the budget allows, at least the first two; `now` is a clock in seconds.

    The models are those of both steps, in the order in which the rows shall stand.
    """
    rows: list[Row] = []
    done, cost_s, total = 0, None, sum(len(inputs.ids) for inputs in sets)
    while count := budget.next_count(done, total, cost_s):
        started = now()
        for inputs in sets:
            next_ones = torch.arange(inputs.among_first(done), inputs.among_first(done + count), device=inputs.device)
            for chosen in torch.split(next_ones, inputs.samples_at_once) if len(next_ones) else ():
                rows += _scores(inputs, models, passes, compare, chosen)
        done, cost_s = done + count, (now() - started) / count
    return rows


def paired(rows: Sequence[Row], best: int, stop: int) -> dict[Cell, dict[str, Means]]:
    """Per cell and sample the scores at both steps, each the mean over eval seeds."""
    gathered: dict[Cell, dict[str, dict[int, list[float]]]] = {}
    for row in rows:
        by_id = gathered.setdefault(Cell(row.weights, row.drawn), {})
        by_id.setdefault(row.sample_id, {}).setdefault(row.step, []).append(row.value)
    return {
        cell: {id: Means(_mean(values[best]), _mean(values[stop])) for id, values in by_id.items()}
        for cell, by_id in gathered.items()
    }


@torch.no_grad()
def _scores(inputs: EvalSet, models: Models, passes: Sequence[Pass], compare: Compare, chosen: Tensor) -> Iterator[Row]:
    """All cells of a few samples."""
    ids = [inputs.ids[index] for index in chosen.tolist()]
    conditions, real_BCHW = inputs.conditions.select(chosen), inputs.x_BCHW[chosen]
    for eval_seed in inputs.eval_seeds:
        noise_BCHW = inputs.noise(eval_seed)[chosen] * inputs.config.objective.noise_scale
        route = inputs.route(eval_seed).select(chosen)
        for step, sets in models.items():
            for drawn in passes:
                for weights in (name for name in drawn.weights if name in sets):
                    predict = drawn.make(sets[weights], conditions, route)
                    values = compare(euler(predict, noise_BCHW, inputs.grid), real_BCHW).tolist()
                    for id, value in zip(ids, values, strict=True):
                        yield Row(step, weights, drawn.name, drawn.sampler, id, eval_seed, value)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
