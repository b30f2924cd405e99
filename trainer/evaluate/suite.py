"""The validation of a run: light at regular steps, full for the last and the best one.

`validation/step_000500/` holds scores.csv, images/<variant>/<sample id>.png, of a full one also sheets/<question>.png,
and meta.json. meta.json is written last: where it is, the validation is complete. `validation/grids/step_000500.png`,
which comes only when asked for, shows how a run learns.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

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
from trainer.evaluate.protocols import EvalSet, protocol_labels
from trainer.evaluate.reconstruction import image_scores, loss_scores
from trainer.evaluate.scores import EMA_COMMON, EMA_NATIVE, PREFIXES, RAW_COMMON, RAW_NATIVE, Variant, means, write_csv
from trainer.evaluate.sheet import save_sheet
from trainer.evaluate.sheets import cfg_divergence_sheet, dino_swap_sheet, pose_sheet, progress_sheet
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
        self._inputs = EvalSet(config, source, torch.device(device))
        self._source = source
        self._pose = _pose_judge(config, self._inputs)
        self._run_id = run_id
        self._run_dir = run_dir

    @torch.no_grad()
    def light(self, step: int, weights: Mapping[str, NanoDiT]) -> ValidationResult:
        """The validation of regular steps; `weights` maps raw and ema to models, which keep their mode."""
        findings = self._light(weights)
        self._draw_grid(step, findings, weights["ema"], self._config.sampler.native)
        images = {"ema_common": findings.shown(LIGHT_IMAGES)["ema_common"]}
        return self._write(step, "light", findings, images, self._config.sampler.native)

    @torch.no_grad()
    def full(self, step: int, weights: Mapping[str, NanoDiT], native: NativeSamplerConfig) -> ValidationResult:
        """Everything in `light`, plus the native sampler and what each condition does."""
        findings = self._light(weights)
        findings.drawn["reference", 0] = self._inputs.x_BCHW
        for eval_seed in self._inputs.eval_seeds:
            self._reconstruct(findings, EMA_NATIVE, weights["ema"], eval_seed, native)
            self._reconstruct(findings, RAW_NATIVE, weights["raw"], eval_seed, native)
            self._ask_conditions(findings, weights["ema"], eval_seed)
            self._compare_conditions(findings, weights["ema"], eval_seed, native)
            self._score_poses(findings, eval_seed)
        self._draw_grid(step, findings, weights["ema"], native)
        images = findings.shown(FULL_IMAGES)
        del images["raw_native"]
        return self._write(step, "full", findings, images, native)

    def _light(self, weights: Mapping[str, NanoDiT]) -> Findings:
        findings = Findings()
        for eval_seed in self._inputs.eval_seeds:
            self._reconstruct(findings, EMA_COMMON, weights["ema"], eval_seed, COMMON)
            self._reconstruct(findings, RAW_COMMON, weights["raw"], eval_seed, COMMON)
            self._from_text(findings, weights["ema"], eval_seed)
        for name in ("ema", "raw"):
            findings.scores += loss_scores(self._inputs, weights[name], name)
        return findings

    def _reconstruct(
        self, findings: Findings, variant: Variant, model: NanoDiT, eval_seed: int, guidance: NativeSamplerConfig
    ) -> None:
        """Score images drawn under all conditions; raw weights draw the first third only, at every validation."""
        inputs = self._inputs
        count = inputs.first_third if variant.weights == "raw" else len(inputs.ids)
        images_BCHW = inputs.generate(model, inputs.conditions, eval_seed, guidance, count)
        findings.scores += image_scores(inputs, self._lpips, variant, "recon", eval_seed, images_BCHW)
        findings.drawn["_".join(variant), eval_seed] = images_BCHW

    def _from_text(self, findings: Findings, model: NanoDiT, eval_seed: int) -> None:
        """Score images drawn from the caption alone, if the run has captions."""
        inputs = self._inputs
        only_text = inputs.conditions.keep(("text",))
        if only_text.streams:
            images_BCHW = inputs.generate(model, only_text, eval_seed, count=inputs.first_third)
            findings.scores += image_scores(inputs, self._lpips, EMA_COMMON, "text", eval_seed, images_BCHW)
            findings.drawn["text_only", eval_seed] = images_BCHW

    def _ask_conditions(self, findings: Findings, model: NanoDiT, eval_seed: int) -> None:
        """What each condition does to the image: streams of others, edited captions, exchanged image features."""
        inputs, lpips = self._inputs, self._lpips
        own_BCHW = findings.drawn["ema_common", eval_seed]
        findings.scores += stream_scores(inputs, model, eval_seed, own_BCHW)
        if (manipulation := manipulate(inputs, model, lpips, eval_seed)) is not None:
            findings.scores += manipulation.scores
            findings.drawn["text_edit", eval_seed] = manipulation.edited_BCHW
        if (swap := swap_dino(inputs, model, lpips, eval_seed, own_BCHW)) is not None:
            findings.scores += swap.scores
            findings.drawn["dino_swap", eval_seed] = swap.swapped_BCHW
            if eval_seed == 0:
                findings.sheets["dino_swap"] = dino_swap_sheet(inputs, swap, own_BCHW)

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
        found = cfg_divergence(self._inputs, model, self._lpips, eval_seed, drawn)
        if found is not None:
            findings.scores += found.scores
            findings.drawn["dino_only", eval_seed] = found.images["dino"]
            findings.drawn["text_and_dino", eval_seed] = found.images["both"]
            if eval_seed == 0:
                findings.sheets["cfg_divergence"] = cfg_divergence_sheet(self._inputs, found, own_BCHW)

    def _score_poses(self, findings: Findings, eval_seed: int) -> None:
        """Where the joints of the reconstructions are, if the run has a detector that is good enough."""
        if self._pose is None:
            return
        found = {
            variant: self._pose.scores(Variant(*variant), eval_seed, findings.drawn["_".join(variant), eval_seed])
            for variant in PREFIXES
        }
        findings.scores += [score for scores in found.values() for score in scores]
        if eval_seed == 0:
            images = {f"EMA, {sampler}": findings.drawn[f"ema_{sampler}", 0] for sampler in ("common", "native")}
            findings.sheets["pose"] = pose_sheet(self._inputs, self._pose, images, found[EMA_COMMON])

    def _draw_grid(self, step: int, findings: Findings, model: NanoDiT, native: NativeSamplerConfig) -> None:
        """The contact sheet of a step that is due for one, from the images that are there, and native guidance."""
        grid, inputs = self._config.validation.grid, self._inputs
        if grid.every is None or (step % grid.every and step != self._config.steps):
            return
        count = min(grid.samples, inputs.first_third)
        titles = {"ema_common": "EMA", "raw_common": "raw", "text_only": "EMA, text only"}
        images = {title: findings.drawn[key, 0] for key, title in titles.items() if (key, 0) in findings.drawn}
        if native.kind != "dense":
            drawn = findings.drawn.get(("ema_native", 0))
            images[f"EMA, {native.kind.replace('_', ' ')}"] = (
                inputs.generate(model, inputs.conditions, 0, native, count) if drawn is None else drawn
            )
        title = f"{self._run_id} at step {step} of {self._config.steps} (the noise is the same at every step)"
        path = self._run_dir / "validation" / "grids" / f"step_{step:06d}.png"
        save_sheet(path, progress_sheet(inputs, images, count, title))

    def _write(
        self, step: int, kind: str, findings: Findings, images: Mapping[str, Tensor], native: NativeSamplerConfig
    ) -> ValidationResult:
        folder = self._run_dir / "validation" / f"step_{step:06d}"
        folder.mkdir(parents=True, exist_ok=True)
        for variant, drawn in images.items():
            captions = self._inputs.captions if variant == "reference" else None
            write_images(folder / "images" / variant, self._inputs.ids[: len(drawn)], drawn, captions)
        for name, sheet in findings.sheets.items():
            save_sheet(folder / "sheets" / f"{name}.png", sheet)
        write_csv(folder / "scores.csv", self._run_id, step, findings.scores)
        meta = {"step": step, "complete": True, "kind": kind, **self._meta(native)}
        if kind == "full":
            meta["calibration"] |= self._further_levels(findings)
            meta["distributions"] = distributions(findings.scores)
        _write_json(folder / "meta.json", meta)
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
                "native": {"kind": native.kind, "scales": native.scales, "interval": native.interval, **steps},
            },
            "streams": asdict(source.streams),
            "calibration": self._calibration.levels(),
            "pose": None if self._pose is None else self._pose.about(),
            "labels": [*source.notes, f"LPIPS backbone: {BACKBONE}", *protocol_labels(self._config, native)],
            "train_images": len(source.train_ids),
            "train_ids_overlap": len(set(source.train_ids) & set(inputs.ids)),
        }

    def _further_levels(self, findings: Findings) -> Levels:
        """What the other metrics of a full validation say of stand-ins for the real images."""
        measured = dict.fromkeys(score.metric for score in findings.scores)
        levels = self._calibration.levels_of(measured, self._inputs.first_third)
        return levels if self._pose is None else levels | self._pose.calibration(self._calibration.stand_ins)

    @cached_property
    def _eval_set(self) -> str:
        """Hash of all that makes two scores comparable, 16 hex digits: images, noise, sampler, LPIPS weights."""
        return self._inputs.comparable_hash(self._lpips.hash, *([] if self._pose is None else [self._pose.hash]))

    @cached_property
    def _calibration(self) -> Calibration:
        return Calibration(self._inputs.x_BCHW, self._inputs.noise(0), self._lpips)

    @cached_property
    def _lpips(self) -> Lpips:
        return lpips_on(str(self._inputs.device))


def _pose_judge(config: TrainerConfig, inputs: EvalSet) -> PoseJudge | None:
    """Reads the detector before the first step, so that a wrong path ends no run at its last one."""
    path = config.validation.pose.detector
    return None if path is None else PoseJudge(inputs, load_detector(Path(path), inputs.device))


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replace a JSON file atomically and durably."""
    unfinished = path.with_suffix(".tmp")
    with unfinished.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=1, allow_nan=False)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)
