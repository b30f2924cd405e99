"""The validation of a run: light at regular steps, full for the last and the best one.

`validation/step_000500/` holds scores.csv, images/<variant>/<sample id>.png and meta.json. meta.json is written last:
where it is, the validation is complete.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer.config import NativeSamplerConfig, TrainerConfig
from trainer.data.sample import Source
from trainer.evaluate.calibration import calibrate
from trainer.evaluate.manipulation import manipulate
from trainer.evaluate.perceptual import BACKBONE, NET, Lpips, lpips_on
from trainer.evaluate.pictures import write_images
from trainer.evaluate.protocols import EvalSet
from trainer.evaluate.reconstruction import image_scores, loss_scores
from trainer.evaluate.scores import Score, Variant, means, write_csv
from trainer.evaluate.streams import stream_scores
from trainer.model.nanodit import NanoDiT
from trainer.sampler import COMMON

LIGHT_IMAGES = 8
FULL_IMAGES = 16
EMA_COMMON, RAW_COMMON = Variant("ema", "common"), Variant("raw", "common")
EMA_NATIVE, RAW_NATIVE = Variant("ema", "native"), Variant("raw", "native")


@dataclass(frozen=True, slots=True)
class ValidationResult:
    """Metrics by full name: means over valid samples, nan where no sample is valid."""

    metrics: dict[str, float]


@dataclass
class _Findings:
    """What one validation has gathered: scores, and images of eval seed 0 by variant."""

    scores: list[Score] = field(default_factory=list)
    images: dict[str, Tensor] = field(default_factory=dict)


class Validation:
    """Validates checkpoints of one run. Everything that does not depend on weights is prepared once."""

    def __init__(
        self, config: TrainerConfig, source: Source, device: torch.device | str, run_id: str, run_dir: Path
    ) -> None:
        self._config = config
        self._inputs = EvalSet(config, source, torch.device(device))
        self._source = source
        self._run_id = run_id
        self._run_dir = run_dir

    @torch.no_grad()
    def light(self, step: int, weights: Mapping[str, NanoDiT]) -> ValidationResult:
        """The validation of regular steps; `weights` maps raw and ema to models, which keep their mode."""
        findings = self._light(weights)
        findings.images = {"ema_common": findings.images["ema_common"][:LIGHT_IMAGES]}
        return self._write(step, "light", findings, self._config.sampler.native)

    @torch.no_grad()
    def full(self, step: int, weights: Mapping[str, NanoDiT], native: NativeSamplerConfig) -> ValidationResult:
        """Everything in `light`, plus the native sampler, the use of each stream and edits of captions."""
        findings = self._light(weights)
        inputs, ema = self._inputs, weights["ema"]
        findings.images["reference"] = inputs.x_BCHW
        for eval_seed in inputs.eval_seeds:
            true_BCHW = self._reconstruct(findings, EMA_NATIVE, ema, eval_seed, native)
            self._reconstruct(findings, RAW_NATIVE, weights["raw"], eval_seed, native)
            if native.kind != "dense":
                true_BCHW = inputs.generate(ema, inputs.conditions, eval_seed)
            findings.scores += stream_scores(inputs, ema, eval_seed, true_BCHW)
            manipulation = manipulate(inputs, ema, self._lpips, eval_seed)
            if manipulation is not None:
                findings.scores += manipulation.scores
                if eval_seed == 0:
                    findings.images["text_edit"] = manipulation.edited_BCHW
        del findings.images["raw_native"]
        findings.images = {name: images[:FULL_IMAGES] for name, images in findings.images.items()}
        return self._write(step, "full", findings, native)

    def _light(self, weights: Mapping[str, NanoDiT]) -> _Findings:
        findings = _Findings()
        for eval_seed in self._inputs.eval_seeds:
            self._reconstruct(findings, EMA_COMMON, weights["ema"], eval_seed, COMMON)
            self._reconstruct(findings, RAW_COMMON, weights["raw"], eval_seed, COMMON)
            self._from_text(findings, weights["ema"], eval_seed)
        for name in ("ema", "raw"):
            findings.scores += loss_scores(self._inputs, weights[name], name)
        return findings

    def _reconstruct(
        self, findings: _Findings, variant: Variant, model: NanoDiT, eval_seed: int, guidance: NativeSamplerConfig
    ) -> Tensor:
        """Score images drawn under all conditions; raw weights draw the first third only, at every validation."""
        inputs = self._inputs
        count = inputs.first_third if variant.weights == "raw" else len(inputs.ids)
        images_BCHW = inputs.generate(model, inputs.conditions, eval_seed, guidance, count)
        findings.scores += image_scores(inputs, self._lpips, variant, "recon", eval_seed, images_BCHW)
        findings.images.setdefault("_".join(variant), images_BCHW)
        return images_BCHW

    def _from_text(self, findings: _Findings, model: NanoDiT, eval_seed: int) -> None:
        """Score images drawn from the caption alone, if the run has captions."""
        inputs = self._inputs
        only_text = inputs.conditions.keep(("text",))
        if only_text.streams:
            images_BCHW = inputs.generate(model, only_text, eval_seed, count=inputs.first_third)
            findings.scores += image_scores(inputs, self._lpips, EMA_COMMON, "text", eval_seed, images_BCHW)
            findings.images.setdefault("text_only", images_BCHW)

    def _write(self, step: int, kind: str, findings: _Findings, native: NativeSamplerConfig) -> ValidationResult:
        folder = self._run_dir / "validation" / f"step_{step:06d}"
        folder.mkdir(parents=True, exist_ok=True)
        for variant, images in findings.images.items():
            captions = self._inputs.captions if variant == "reference" else None
            write_images(folder / "images" / variant, self._inputs.ids[: len(images)], images, captions)
        write_csv(folder / "scores.csv", self._run_id, step, findings.scores)
        _write_json(folder / "meta.json", {"step": step, "complete": True, "kind": kind, **self._meta(native)})
        return ValidationResult(means(findings.scores))

    def _meta(self, native: NativeSamplerConfig) -> dict[str, Any]:
        inputs, source = self._inputs, self._source
        steps = {"euler_steps": self._config.validation.sampler_steps, "shift": self._config.objective.shift}
        return {
            "eval_set": self._eval_set,
            "held_out": len(inputs.ids),
            "first_third": inputs.first_third,
            "first_sixth": inputs.first_sixth,
            "eval_seeds": len(inputs.eval_seeds),
            "compute": self._config.precision.compute,
            "lpips": {"net": NET, "backbone": BACKBONE, "hash": self._lpips.hash},
            "samplers": {
                "common": {"kind": "dense", **steps},
                "native": {"kind": native.kind, "scales": native.scales, **steps},
            },
            "streams": asdict(source.streams),
            "calibration": self._calibration,
            "labels": [*source.notes, f"LPIPS backbone: {BACKBONE}"],
            "train_images": len(source.train_ids),
            "train_ids_overlap": len(set(source.train_ids) & set(inputs.ids)),
        }

    @cached_property
    def _eval_set(self) -> str:
        """Hash of all that makes two scores comparable, 16 hex digits: images, noise, sampler, LPIPS weights."""
        return self._inputs.comparable_hash(self._lpips.hash)

    @cached_property
    def _calibration(self) -> dict[str, dict[str, float | None]]:
        return calibrate(self._inputs.x_BCHW, self._inputs.noise(0), self._lpips)

    @cached_property
    def _lpips(self) -> Lpips:
        return lpips_on(str(self._inputs.device))


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replace a JSON file atomically and durably."""
    unfinished = path.with_suffix(".tmp")
    with unfinished.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=1, allow_nan=False)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)
