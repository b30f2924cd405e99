"""A probe: the small validation on the judge's own images that a warning asks for, and every regular validation brings.

It writes `val_probe/<metric>` for the averaged weights, `val_probe/raw_<metric>` for the raw ones, the indicators of
I5 and I6, and its scores per sample in `probes/step_000550.csv`. Losses and indicators rest on the first half of the
images. It never ranks and chooses no best step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch

from trainer.data.sample import Source
from trainer.data.split import PROBE_IMAGES
from trainer.document import Document
from trainer.evaluate.perceptual import Lpips, lpips_on
from trainer.evaluate.protocols import EvalSet, eval_sets
from trainer.evaluate.reconstruction import image_scores
from trainer.evaluate.scores import Score, Variant, means, scores_of, write_csv
from trainer.indicators.ema_lag import ema_lag
from trainer.indicators.routed_gap import Predicted, losses, predictions, routed_gap
from trainer.model.nanodit import NanoDiT

# The prefix of a metric in a regular validation -> what the same metric is called in a probe.
_PREFIXES = {"val/": "val_probe/", "val_raw/": "val_probe/raw_"}
_EVAL_SEED = 0  # one noise per image: a probe is for comparing a run with itself


class _Found(NamedTuple):
    """Scores on the samples of one shape, and what was predicted there if the run is routed."""

    scores: list[Score]
    predicted: Predicted | None


class Probe:
    """Probes one run on its first `PROBE_IMAGES` probe ids; the images are loaded when the first probe needs them."""

    def __init__(self, document: Document, source: Source, device: torch.device, run_dir: Path) -> None:
        self.ids = source.probe_ids[:PROBE_IMAGES]
        self._document, self._source, self._device = document, source, device
        self._folder = run_dir / "probes"

    @torch.no_grad()
    def run(self, step: int, weights: Mapping[str, NanoDiT]) -> dict[str, float]:
        """Probe the models `raw` and `ema` after `step` steps: metrics by full name. Nothing without probe images."""
        if not self.ids:
            return {}
        found = [self._look(inputs, weights) for inputs in self._sets]
        scores = [score for each in found for score in each.scores]
        self._folder.mkdir(parents=True, exist_ok=True)
        write_csv(self._folder / f"step_{step:06d}.csv", self._document.run, step, scores)
        metrics = _named(means(scores))
        if self._document.config.tread.enabled:
            metrics |= routed_gap([each.predicted for each in found if each.predicted is not None])
        return metrics | self._ema(metrics, weights)

    def _look(self, inputs: EvalSet, weights: Mapping[str, NanoDiT]) -> _Found:
        """The samples of one shape."""
        # Five times per sample, up to three times over: half of the images keep this below the price of the drawing.
        half = inputs.among_first(math.ceil(len(self.ids) / 2))
        scores: list[Score] = []
        dense = {name: predictions(inputs, weights[name], half) if half else {} for name in ("ema", "raw")}
        for name, predicted in dense.items():
            variant = Variant(name, "common")
            images_BCHW = inputs.generate(weights[name], inputs.conditions, _EVAL_SEED)
            scores += image_scores(inputs, self._lpips, variant, "recon", _EVAL_SEED, images_BCHW)
            if half:
                loss_B = losses(inputs, predicted)
                scores += scores_of(variant, "loss", inputs.ids[:half], _EVAL_SEED, loss_B.tolist())
        if not (half and self._document.config.tread.enabled):
            return _Found(scores, None)
        routed = predictions(inputs, weights["raw"], half, inputs.route(_EVAL_SEED))
        return _Found(scores, Predicted(inputs, dense["raw"], routed))

    def _ema(self, metrics: Mapping[str, float], weights: Mapping[str, NanoDiT]) -> dict[str, float]:
        """Distance and loss of the averaged weights, relative to the raw ones."""
        document = self._document
        lag = ema_lag(weights["ema"], weights["raw"], document.config, self._source.streams, document.seed)
        found = {} if lag is None else {"opt/ema_lag": lag}
        if metrics["val_probe/raw_loss"]:
            found["opt/ema_loss_gap"] = metrics["val_probe/loss"] / metrics["val_probe/raw_loss"] - 1.0
        return found

    @cached_property
    def _sets(self) -> tuple[EvalSet, ...]:
        return eval_sets(self._document.config, self._source, self._device, self.ids)

    @cached_property
    def _lpips(self) -> Lpips:
        return lpips_on(str(self._device))


def _named(metrics: Mapping[str, float]) -> dict[str, float]:
    """The same numbers under the names of a probe."""
    return {
        new + name.removeprefix(old): value
        for name, value in metrics.items()
        for old, new in _PREFIXES.items()
        if name.startswith(old)
    }
