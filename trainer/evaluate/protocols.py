"""What every checkpoint of a study is asked to draw: the held-out images, their conditions, their noise, their masks.

Noise and masks belong to (sample id, eval seed) and to nothing else, so all arms, seeds and steps share them.

Images of one shape form one `EvalSet`; a source with aspect-ratio buckets has one for each bucket that is validated.
Which samples a metric is measured on is decided over all sets together, in the order of the id hashes, so that every
bucket has the share of them that it has of the images.

Shapes: B samples, C channels, H x W pixels, N image tokens, K kept tokens, T text tokens.
"""

from __future__ import annotations

import hashlib
import json
import math
from bisect import bisect_left
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from trainer import randomness
from trainer.config import NativeSamplerConfig, TrainerConfig
from trainer.data.sample import Conditions, Sample, Source, collate, to_unit_range
from trainer.errors import DataError
from trainer.model.nanodit import NanoDiT
from trainer.model.tread import Route, keep_from_noise
from trainer.sampler import COMMON, euler, predictor, time_grid

EVAL_RUN_SEED = 0  # in place of the run's seed: all seeds of an arm see the same noise
_TOKENS_AT_ONCE = 4096


class EvalSet:
    """Samples of one shape, ready on the device.

    `places` says where they stand among the `total` samples of all shapes, ascending; without it these are all.
    `first_third` and `first_sixth` count how many of them are in the first third and sixth of all shapes, which may be
    none.
    """

    def __init__(
        self,
        config: TrainerConfig,
        source: Source,
        device: torch.device,
        samples: Sequence[Sample],
        places: Sequence[int] | None = None,
        total: int | None = None,
    ) -> None:
        batch = collate(samples)
        self.ids = batch.ids
        self.places = tuple(range(len(samples)) if places is None else places)
        self.config, self.source, self.device = config, source, device
        self.captions = batch.captions
        self.x_BCHW = to_unit_range(batch.pixels_BCHW.to(device))
        self.conditions = batch.conditions.to(device)
        total = len(samples) if total is None else total
        self.first_third = self.among_first(max(1, total // 3))
        # Five times per sample: more would make regular validations too dear for what a fixed noise leaves to average.
        self.first_sixth = self.among_first(max(1, total // 6))
        self.eval_seeds = range(config.validation.eval_seeds)
        self.grid = time_grid(config.validation.sampler_steps, config.objective.shift)
        self._noise: dict[int, Tensor] = {}

    def among_first(self, count: int) -> int:
        """How many of these samples are among the first `count` of all shapes; they are the first ones here too."""
        return bisect_left(self.places, count)

    def noise(self, eval_seed: int) -> Tensor:
        """Standard normal noise of every sample: (B, C, H, W)."""
        if eval_seed not in self._noise:
            shape = self.x_BCHW.shape[1:]
            drawn = [randomness.normal(shape, EVAL_RUN_SEED, "eval", id, eval_seed) for id in self.ids]
            self._noise[eval_seed] = torch.stack(drawn).to(self.device)
        return self._noise[eval_seed]

    def route(self, eval_seed: int) -> Route:
        """One routing mask per sample, as many tokens and the same blocks as in training."""
        shape = (self.tokens,)
        drawn = [randomness.uniform(shape, EVAL_RUN_SEED, "eval", id, eval_seed, "route") for id in self.ids]
        keep_BK = keep_from_noise(torch.stack(drawn), self.config.kept_of(self.tokens)).to(self.device)
        return Route(keep_BK, *self.config.routed_blocks)

    def encode(self, captions: Sequence[str]) -> Conditions:
        """Captions as text conditions on the device, and nothing else."""
        from_source = [self.source.encode_caption(caption) for caption in captions]
        longest = max(len(text) for text in from_source)
        text_BTD = torch.zeros(len(captions), longest, from_source[0].shape[1])
        mask_BT = torch.zeros(len(captions), longest, dtype=torch.bool)
        for index, text_TD in enumerate(from_source):
            text_BTD[index, : len(text_TD)] = torch.from_numpy(text_TD)
            mask_BT[index, : len(text_TD)] = True
        return Conditions(text_BTD=text_BTD, text_mask_BT=mask_BT).to(self.device)

    @torch.no_grad()
    def generate(
        self,
        model: NanoDiT,
        conditions: Conditions,
        eval_seed: int = 0,
        guidance: NativeSamplerConfig = COMMON,
        count: int | None = None,
    ) -> Tensor:
        """Images of the first `count` samples (None: all) under `conditions`, not clamped: (count, C, H, W)."""
        count = len(self.ids) if count is None else count
        noise_BCHW = self.noise(eval_seed) * self.config.objective.noise_scale
        route = self.route(eval_seed) if guidance.kind == "self_guidance" else None
        parts = []
        for chosen in torch.arange(count, device=self.device).split(self.samples_at_once):
            own_route = None if route is None else route.select(chosen)
            predict = predictor(model, conditions.select(chosen), guidance, own_route)
            parts.append(euler(predict, noise_BCHW[chosen], self.grid))
        return torch.cat(parts)

    @property
    def tokens(self) -> int:
        """Image tokens per sample."""
        return math.prod(self.config.grid_of(*self.x_BCHW.shape[2:]))

    @property
    def samples_at_once(self) -> int:
        """How many samples go through the model together."""
        return max(1, _TOKENS_AT_ONCE // self.tokens)

    @cached_property
    def content_hash(self) -> str:
        """Hash of ids, pixels and captions: 16 hex digits."""
        digest = hashlib.sha256(json.dumps([self.ids, self.captions]).encode())
        digest.update(self.x_BCHW.cpu().numpy().tobytes())
        return digest.hexdigest()[:16]


def eval_sets(
    config: TrainerConfig, source: Source, device: torch.device, ids: Sequence[str] | None = None
) -> tuple[EvalSet, ...]:
    """The first `validation.samples` held-out images, or those of `ids`, in their order: one set for each shape.

    Sets stand in the order of their first samples. Raises DataError if there is no image.
    """
    ids = source.held_out_ids[: config.validation.samples] if ids is None else ids
    if not ids:
        raise DataError("no image is held out, so nothing can be validated")
    by_shape: dict[tuple[int, ...], dict[int, Sample]] = {}
    for place, id in enumerate(ids):
        sample = source.load(id)
        by_shape.setdefault(sample.pixels_HWC.shape, {})[place] = sample
    return tuple(
        EvalSet(config, source, device, list(samples.values()), list(samples), len(ids))
        for samples in by_shape.values()
    )


def comparable_hash(sets: Sequence[EvalSet], *judges: str) -> str:
    """Hash of all that makes two scores comparable: images, noise, sampler, weights of `judges`: 16 hex digits."""
    first, contents = sets[0], [each.content_hash for each in sets]
    parts = [
        contents[0] if len(sets) == 1 else contents,
        list(first.eval_seeds),
        first.grid,
        first.config.objective.noise_scale,
        first.config.data.size,
        *judges,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def protocol_labels(config: TrainerConfig, native: NativeSamplerConfig, sets: Sequence[EvalSet]) -> list[str]:
    """What a reader of scores must know about how they came about."""
    labels = []
    if alone := [inputs.ids[0] for inputs in sets if len(inputs.ids) == 1 and len(sets) > 1]:
        labels.append(
            "conditions are exchanged between images of one shape only; the only one of its shape, and not in the "
            f"metrics use_* and dino_swap_*: {len(alone)} of {sum(len(inputs.ids) for inputs in sets)} samples"
        )
    if config.reference_parity:
        labels.append("reference_parity: the published protocol; not comparable with runs that do not reproduce it")
    if native.kind == "dual_cfg":
        labels.append("native sampler: the published dual CFG, which asks for conditions that training never combines")
    return labels
