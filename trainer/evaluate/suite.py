"""The validation of a run: light at regular steps, full for the last and the best one.

`validation/step_000500/` holds scores.csv, images/<variant>/<sample id>.png, of a full one also sheets/<question>.png,
and meta.json. meta.json is written last: where it is, the validation is complete. `validation/grids/step_000500.png`,
which comes only when asked for, shows how a run learns.

Each shape of images is asked by itself, and what was found is put together: a score belongs to a sample, a mean is over
the samples of all shapes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from trainer.config import NativeSamplerConfig, TrainerConfig
from trainer.data.sample import Source
from trainer.evaluate.calibration import Calibration, Levels
from trainer.evaluate.cfg_divergence import Drawn, cfg_divergence
from trainer.evaluate.dino_swap import swap_dino
from trainer.evaluate.distributions import distributions
from trainer.evaluate.findings import Findings
from trainer.evaluate.manipulation import manipulate
from trainer.evaluate.perceptual import BACKBONE, NET, Lpips, lpips_on
from trainer.evaluate.pictures import write_images
from trainer.evaluate.pose import PoseJudge
from trainer.evaluate.protocols import EvalSet, comparable_hash, eval_sets, protocol_labels
from trainer.evaluate.reconstruction import image_scores, loss_scores
from trainer.evaluate.scores import (
    EMA_COMMON,
    EMA_NATIVE,
    PREFIXES,
    RAW_COMMON,
    RAW_NATIVE,
    Score,
    Variant,
    means,
    write_csv,
)
from trainer.evaluate.sheet import save_sheet
from trainer.evaluate.sheets import progress_sheet, sheets_of
from trainer.evaluate.streams import stream_scores
from trainer.model.nanodit import NanoDiT
from trainer.pose.detector import load_detector
from trainer.sampler import COMMON

LIGHT_IMAGES = 8
FULL_IMAGES = 16


@dataclass(frozen=True, slots=True)
class ValidationResult:
    """Metrics by full name: means over valid samples, nan where no sample is valid."""

    metrics: dict[str, float]


class Validation:
    """Validates checkpoints of one run. Everything that does not depend on weights is prepared once.

    Raises DataError when a pose detector is asked for and its file cannot be read.
    """

    def __init__(
        self, config: TrainerConfig, source: Source, device: torch.device | str, run_id: str, run_dir: Path
    ) -> None:
        self._config = config
        self._sets = eval_sets(config, source, torch.device(device))
        self._source = source
        self._pose = _pose_judge(config, self._sets)
        self._run_id = run_id
        self._run_dir = run_dir

    @torch.no_grad()
    def light(self, step: int, weights: Mapping[str, NanoDiT]) -> ValidationResult:
        """The validation of regular steps; `weights` maps raw and ema to models, which keep their mode."""
        native = self._config.sampler.native
        found = [self._light(inputs, weights) for inputs in self._sets]
        self._draw_grid(step, found, weights["ema"], native)
        return self._write(step, "light", found, {"ema_common": LIGHT_IMAGES}, native)

    @torch.no_grad()
    def full(self, step: int, weights: Mapping[str, NanoDiT], native: NativeSamplerConfig) -> ValidationResult:
        """Everything in `light`, plus the native sampler and what each condition does."""
        found = [self._full(inputs, weights, native) for inputs in self._sets]
        self._draw_grid(step, found, weights["ema"], native)
        variants = dict.fromkeys(variant for findings in found for variant, _ in findings.drawn)
        shown = {variant: FULL_IMAGES for variant in variants if variant != "raw_native"}
        return self._write(step, "full", found, shown, native)

    def _light(self, inputs: EvalSet, weights: Mapping[str, NanoDiT]) -> Findings:
        findings = Findings(inputs)
        for eval_seed in inputs.eval_seeds:
            self._reconstruct(findings, EMA_COMMON, weights["ema"], eval_seed, COMMON)
            self._reconstruct(findings, RAW_COMMON, weights["raw"], eval_seed, COMMON)
            self._from_text(findings, weights["ema"], eval_seed)
        for name in ("ema", "raw"):
            findings.scores += loss_scores(inputs, weights[name], name)
        return findings

    def _full(self, inputs: EvalSet, weights: Mapping[str, NanoDiT], native: NativeSamplerConfig) -> Findings:
        findings = self._light(inputs, weights)
        findings.drawn["reference", 0] = inputs.x_BCHW
        for eval_seed in inputs.eval_seeds:
            self._reconstruct(findings, EMA_NATIVE, weights["ema"], eval_seed, native)
            self._reconstruct(findings, RAW_NATIVE, weights["raw"], eval_seed, native)
            self._ask_conditions(findings, weights["ema"], eval_seed)
            self._compare_conditions(findings, weights["ema"], eval_seed, native)
            self._score_poses(findings, eval_seed)
        return findings

    def _reconstruct(
        self, findings: Findings, variant: Variant, model: NanoDiT, eval_seed: int, guidance: NativeSamplerConfig
    ) -> None:
        """Score images drawn under all conditions; raw weights draw the first third only, at every validation."""
        inputs = findings.inputs
        count = inputs.first_third if variant.weights == "raw" else len(inputs.ids)
        if not count:
            return
        images_BCHW = inputs.generate(model, inputs.conditions, eval_seed, guidance, count)
        findings.scores += image_scores(inputs, self._lpips, variant, "recon", eval_seed, images_BCHW)
        findings.drawn["_".join(variant), eval_seed] = images_BCHW

    def _from_text(self, findings: Findings, model: NanoDiT, eval_seed: int) -> None:
        """Score images drawn from the caption alone, if the run has captions."""
        inputs = findings.inputs
        only_text = inputs.conditions.keep(("text",))
        if only_text.streams and inputs.first_third:
            images_BCHW = inputs.generate(model, only_text, eval_seed, count=inputs.first_third)
            findings.scores += image_scores(inputs, self._lpips, EMA_COMMON, "text", eval_seed, images_BCHW)
            findings.drawn["text_only", eval_seed] = images_BCHW

    def _ask_conditions(self, findings: Findings, model: NanoDiT, eval_seed: int) -> None:
        """What each condition does to the image: streams of others, edited captions, exchanged image features."""
        inputs, lpips = findings.inputs, self._lpips
        own_BCHW = findings.drawn["ema_common", eval_seed]
        findings.scores += stream_scores(inputs, model, eval_seed, own_BCHW)
        if (manipulation := manipulate(inputs, model, lpips, eval_seed)) is not None:
            findings.scores += manipulation.scores
            findings.drawn["text_edit", eval_seed] = manipulation.edited_BCHW
        if (swap := swap_dino(inputs, model, lpips, eval_seed, own_BCHW)) is not None:
            findings.scores += swap.scores
            findings.drawn["dino_swap", eval_seed] = swap.swapped_BCHW
            findings.swap = swap if eval_seed == 0 else findings.swap

    def _compare_conditions(
        self, findings: Findings, model: NanoDiT, eval_seed: int, native: NativeSamplerConfig
    ) -> None:
        """How differently single conditions and guidance draw the same sample, for a run with captions."""
        if ("text_only", eval_seed) not in findings.drawn:
            return
        own_BCHW, text_BCHW, native_BCHW = (
            findings.drawn[variant, eval_seed] for variant in ("ema_common", "text_only", "ema_native")
        )
        drawn = Drawn(own_BCHW, text_BCHW, None if native.kind == "dense" else native_BCHW)
        found = cfg_divergence(findings.inputs, model, self._lpips, eval_seed, drawn)
        if found is not None:
            findings.scores += found.scores
            findings.drawn["dino_only", eval_seed] = found.images["dino"]
            findings.drawn["text_and_dino", eval_seed] = found.images["both"]
            findings.divergence = found if eval_seed == 0 else findings.divergence

    def _score_poses(self, findings: Findings, eval_seed: int) -> None:
        """Where the joints of the reconstructions are, if the run has a detector that is good enough."""
        if self._pose is None:
            return
        for variant in map(Variant._make, PREFIXES):
            drawn = findings.drawn.get(("_".join(variant), eval_seed))
            if drawn is not None:
                findings.scores += self._pose.scores(findings.inputs, variant, eval_seed, drawn)

    def _draw_grid(self, step: int, found: Sequence[Findings], model: NanoDiT, native: NativeSamplerConfig) -> None:
        """The contact sheet of a step that is due for one, from the images that are there, and native guidance."""
        grid = self._config.validation.grid
        if grid.every is None or (step % grid.every and step != self._config.steps):
            return
        count = min(grid.samples, sum(inputs.first_third for inputs in self._sets))
        for findings in found:
            self._draw_native(findings, model, native, findings.inputs.among_first(count))
        title = f"{self._run_id} at step {step} of {self._config.steps} (the noise is the same at every step)"
        path = self._run_dir / "validation" / "grids" / f"step_{step:06d}.png"
        save_sheet(path, progress_sheet(found, count, title, native))

    def _draw_native(self, findings: Findings, model: NanoDiT, native: NativeSamplerConfig, count: int) -> None:
        """The first `count` images under native guidance, if there is any and they are not there."""
        if count and native.kind != "dense" and ("ema_native", 0) not in findings.drawn:
            inputs = findings.inputs
            findings.drawn["ema_native", 0] = inputs.generate(model, inputs.conditions, 0, native, count)

    def _write(
        self,
        step: int,
        kind: str,
        found: Sequence[Findings],
        shown: Mapping[str, int],
        native: NativeSamplerConfig,
    ) -> ValidationResult:
        """Write everything; `shown` says how many images of which variants."""
        folder = self._run_dir / "validation" / f"step_{step:06d}"
        folder.mkdir(parents=True, exist_ok=True)
        for findings in found:
            _write_images(folder / "images", findings, shown)
        for name, sheet in (sheets_of(found, self._pose) if kind == "full" else {}).items():
            save_sheet(folder / "sheets" / f"{name}.png", sheet)
        scores = [score for findings in found for score in findings.scores]
        write_csv(folder / "scores.csv", self._run_id, step, scores)
        meta = {"step": step, "complete": True, "kind": kind, **self._meta(native)}
        if kind == "full":
            meta["calibration"] |= self._further_levels(scores)
            meta["distributions"] = distributions(scores)
        _write_json(folder / "meta.json", meta)
        return ValidationResult(means(scores))

    def _meta(self, native: NativeSamplerConfig) -> dict[str, Any]:
        sets, source = self._sets, self._source
        ids = [id for inputs in sets for id in inputs.ids]
        steps = {"euler_steps": self._config.validation.sampler_steps, "shift": self._config.objective.shift}
        return {
            "eval_set": self._eval_set,
            "held_out": len(ids),
            "first_third": sum(inputs.first_third for inputs in sets),
            "first_sixth": sum(inputs.first_sixth for inputs in sets),
            **({"shapes": _shapes(sets)} if len(sets) > 1 else {}),
            "eval_seeds": len(sets[0].eval_seeds),
            "compute": self._config.precision.compute,
            "lpips": {"net": NET, "backbone": BACKBONE, "hash": self._lpips.hash},
            "samplers": {
                "common": {"kind": "dense", **steps},
                "native": {"kind": native.kind, "scales": native.scales, "interval": native.interval, **steps},
            },
            "streams": asdict(source.streams),
            "calibration": self._calibration.levels(),
            "pose": None if self._pose is None else self._pose.about(),
            "labels": [*source.notes, f"LPIPS backbone: {BACKBONE}", *protocol_labels(self._config, native, sets)],
            "train_images": len(source.train_ids),
            "train_ids_overlap": len(set(source.train_ids) & set(ids)),
        }

    def _further_levels(self, scores: Sequence[Score]) -> Levels:
        """What the other metrics of a full validation say of stand-ins for the real images."""
        measured = dict.fromkeys(score.metric for score in scores)
        levels = self._calibration.levels_of(measured, [inputs.first_third for inputs in self._sets])
        return levels if self._pose is None else levels | self._pose.calibration(self._calibration.stand_ins)

    @cached_property
    def _eval_set(self) -> str:
        """Hash of all that makes two scores comparable, 16 hex digits: images, noise, sampler, LPIPS weights."""
        return comparable_hash(self._sets, self._lpips.hash, *([] if self._pose is None else [self._pose.hash]))

    @cached_property
    def _calibration(self) -> Calibration:
        return Calibration([(inputs.x_BCHW, inputs.noise(0)) for inputs in self._sets], self._lpips)

    @cached_property
    def _lpips(self) -> Lpips:
        return lpips_on(str(self._sets[0].device))


def _write_images(folder: Path, findings: Findings, shown: Mapping[str, int]) -> None:
    """`folder`/<variant>/<sample id>.png of as many of the first samples of all shapes as `shown` says."""
    for variant, most in shown.items():
        images = findings.shown(most).get(variant)
        if images is not None:
            captions = findings.inputs.captions if variant == "reference" else None
            write_images(folder / variant, findings.inputs.ids[: len(images)], images, captions)


def _shapes(sets: Sequence[EvalSet]) -> list[dict[str, int]]:
    """How many samples of each shape a validation looks at, for meta.json."""
    return [
        {
            "height": inputs.x_BCHW.shape[2],
            "width": inputs.x_BCHW.shape[3],
            "held_out": len(inputs.ids),
            "first_third": inputs.first_third,
            "first_sixth": inputs.first_sixth,
        }
        for inputs in sets
    ]


def _pose_judge(config: TrainerConfig, sets: Sequence[EvalSet]) -> PoseJudge | None:
    """Reads the detector before the first step, so that a wrong path ends no run at its last one."""
    path = config.validation.pose.detector
    return None if path is None else PoseJudge(sets, load_detector(Path(path), sets[0].device))


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replace a JSON file atomically and durably."""
    unfinished = path.with_suffix(".tmp")
    with unfinished.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=1, allow_nan=False)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)
