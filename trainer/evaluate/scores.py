"""Scores per sample, their means under protocol names, and scores.csv."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

COLUMNS = ("run", "step", "weights", "sampler", "metric", "sample_id", "eval_seed", "value", "valid", "reason")
# Weights and sampler of a score -> the prefix that says so in a metric's full name.
PREFIXES = {
    ("ema", "common"): "val",
    ("raw", "common"): "val_raw",
    ("ema", "native"): "val_native",
    ("raw", "native"): "val_raw_native",
}
NOT_FINITE = "not finite"


class Variant(NamedTuple):
    """Whose images are scored: `weights` raw or ema, `sampler` common or native."""

    weights: str
    sampler: str

    @property
    def prefix(self) -> str:
        """What the full name of a metric starts with."""
        return PREFIXES[self]


EMA_COMMON, RAW_COMMON = Variant("ema", "common"), Variant("raw", "common")
EMA_NATIVE, RAW_NATIVE = Variant("ema", "native"), Variant("raw", "native")


@dataclass(frozen=True, slots=True)
class Score:
    """One sample under one metric; `value` may be nan or infinite and is invalid then."""

    variant: Variant
    metric: str
    sample_id: str
    eval_seed: int
    value: float

    @property
    def valid(self) -> bool:
        """Whether the score counts in a mean."""
        return math.isfinite(self.value)

    @property
    def name(self) -> str:
        """The metric with its protocol prefix."""
        return f"{self.variant.prefix}/{self.metric}"


def scores_of(
    variant: Variant, metric: str, ids: Sequence[str], eval_seed: int, values: Iterable[float]
) -> list[Score]:
    """One score per sample; `values` in the order of `ids`."""
    return [Score(variant, metric, id, eval_seed, float(value)) for id, value in zip(ids, values, strict=True)]


def means(scores: Iterable[Score]) -> dict[str, float]:
    """Mean over the valid samples of every metric, by full name in order of appearance; nan where none is valid."""
    values: dict[str, list[float]] = {}
    for score in scores:
        values.setdefault(score.name, []).extend([score.value] if score.valid else [])
    return {name: math.fsum(found) / len(found) if found else math.nan for name, found in values.items()}


def write_csv(path: Path, run: str, step: int, scores: Iterable[Score]) -> None:
    """Write scores.csv atomically; the value of an invalid score stays empty."""
    unfinished = path.with_suffix(".tmp")
    with unfinished.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for score in scores:
            value, reason = (repr(score.value), "") if score.valid else ("", NOT_FINITE)
            weights, sampler = score.variant
            row = (run, step, weights, sampler, score.metric, score.sample_id, score.eval_seed)
            writer.writerow((*row, value, int(score.valid), reason))
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)
