"""The trainer's configuration: strict, frozen, and free of torch, so that a check takes no time.

Every key has a default except `steps`; a key that is not written here does not exist. What one key demands of another
(heads divide width, and the like) is in rules.py; reading files and naming mistakes is in document.py.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class Block(BaseModel):
    """Base of every block: unknown keys, silent type conversion and later changes are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, validate_default=True)


class DataConfig(Block):
    """Where images come from. `size` is the side of the square image in pixels.

    `samples` and `held_out` count procedural training and validation images; `path` is the folder of source `folder`.
    More than `max_rejected_share` of unreadable files ends the run.
    """

    source: Literal["procedural", "folder"] = "procedural"
    size: Count = 32
    path: str | None = None
    samples: Count = 4096
    held_out: Count = 48
    max_rejected_share: Share = 0.05


class ModelConfig(Block):
    """Size of the transformer: channels, blocks, attention heads, side of a patch in pixels, MLP width / width."""

    width: Count = 64
    depth: Count = 6
    heads: Count = 4
    patch: Count = 4
    mlp_ratio: Positive = 4.0


Stream = Literal["full", "off"]


class StreamsConfig(Block):
    """Which conditions the model sees: caption tokens, image CLS, image patches, 133 body joints."""

    text: Stream = "full"
    cls: Stream = "full"
    patches: Stream = "full"
    pose: Stream = "full"


class ObjectiveConfig(Block):
    """Flow matching with t = 1 as noise: t = sigmoid(mean + std n), then t' = shift t / (1 + (shift - 1) t).

    A mean above 0 is noisier. With probability `uniform_share` t is uniform instead, before the shift.
    """

    prediction: Literal["x"] = "x"
    timestep_mean: Finite = 0.0
    timestep_std: Positive = 1.0
    noise_scale: Positive = 1.0
    shift: Positive = 1.0
    uniform_share: Share = 0.0


class OptimizerConfig(Block):
    """AdamW, or Muon for the matrices inside the blocks with AdamW for the rest; one learning rate for both.

    `clip` bounds the global gradient norm (null = no clipping); the rate warms up linearly over `warmup_steps` and then
    follows a cosine down to `final_lr_share` of `lr`. `momentum` belongs to Muon, the betas to AdamW.
    """

    name: Literal["adamw", "muon"] = "adamw"
    lr: Positive = 1e-3
    weight_decay: NotNegative = 0.0
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    clip: Positive | None = 1.0
    final_lr_share: Share = 0.01
    beta1: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    beta2: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.95
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.95


class TreadConfig(Block):
    """Token routing: blocks `first` to `last` (0-based, inclusive, negative counts from the end) see fewer tokens.

    `ratio` of the tokens skips those blocks; the number kept is rounded up to `keep_multiple`. In the last `dense_tail`
    share of the run all tokens go through all blocks.
    """

    enabled: bool = False
    first: int = 1
    last: int = -2
    ratio: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    keep_multiple: Count = 1
    dense_tail: Share = 0.0


class RepaStopConfig(Block):
    """When alignment ends, in shares of the run.

    fixed: full weight until `end`. linear: full weight until `start`, then straight down to 0 at `end`.
    gradient_cosine: when the gradients of the two losses keep pointing apart, at `end` at the latest.
    `end` is 0.25 unless given (0.30 for gradient_cosine); `start` matters to linear only.
    """

    kind: Literal["fixed", "linear", "gradient_cosine"] = "fixed"
    start: Share = 0.10
    end: Share | None = None


class RepaConfig(Block):
    """Alignment of a hidden state with image features, after block `after_block` (0-based; null = ceil(depth / 3) - 1).

    `samples: patches_dropped` aligns only samples that do not see those same features as a condition.
    """

    enabled: bool = False
    after_block: Annotated[int, Field(ge=0)] | None = None
    weight: Positive = 0.5
    samples: Literal["patches_dropped", "all"] = "patches_dropped"
    projector: Literal["mlp", "conv", "linear"] = "mlp"
    stop: RepaStopConfig = RepaStopConfig()


class EmaConfig(Block):
    """Averages of the weights. Half-lives are shares of the run; `every` counts steps.

    The first half-life is "the" EMA, the second tells an autopsy whether the averaging is to blame.
    """

    half_lives: Annotated[tuple[Annotated[float, Field(gt=0.0, le=1.0)], ...], Field(strict=False, min_length=1)] = (
        0.05,
        0.20,
    )
    every: Count = 1


class ValidationConfig(Block):
    """A validation at step 0 and every `every` steps on `samples` held-out images, `sampler_steps` Euler steps each."""

    every: Count = 100
    samples: Count = 48
    sampler_steps: Count = 8
    eval_seeds: Count = 1


class NativeSamplerConfig(Block):
    """The guidance an arm would be used with.

    dense: none. self_guidance: routed + scale (dense - routed), for an arm trained with routing. nested_cfg: from
    nothing to `text`, on to CLS and patches (`dino`), on to `pose`, each step scaled; all scales 1 = all conditions.
    A scale that is not given is 3.0 for self_guidance, and 3.0 (text), 2.5 (dino), 1.0 (pose) for nested_cfg.
    """

    kind: Literal["dense", "self_guidance", "nested_cfg"] = "dense"
    scale: Finite | None = None
    text: Finite | None = None
    dino: Finite | None = None
    pose: Finite | None = None

    @property
    def scales(self) -> dict[str, float]:
        """The scales this kind of guidance uses, by name, defaults filled in; empty for dense."""
        return {
            name: default if (given := getattr(self, name)) is None else given for name, default in self._defaults()
        }

    def _defaults(self) -> tuple[tuple[str, float], ...]:
        return NATIVE_SCALES[self.kind]


NATIVE_SCALES: dict[str, tuple[tuple[str, float], ...]] = {
    "dense": (),
    "self_guidance": (("scale", 3.0),),
    "nested_cfg": (("text", 3.0), ("dino", 2.5), ("pose", 1.0)),
}


class SamplerConfig(Block):
    """How this arm's images are drawn beside the common protocol of the study."""

    native: NativeSamplerConfig = NativeSamplerConfig()


class IndicatorsConfig(Block):
    """Leading indicators of trouble in the optimizer, written beside the training metrics; they change no result.

    `every` counts the optimizer steps between them; they come with the next line that `log_every` writes.
    """

    enabled: bool = True
    every: Count = 10


class BestConfig(Block):
    """The metric whose best step keeps its checkpoint; a full name with its protocol prefix, such as val/recon_rmse."""

    metric: Annotated[str, Field(min_length=1)]
    direction: Literal["min", "max"] = "min"


class KeepConfig(Block):
    """Which checkpoints survive: the newest `last`, the best, and the steps in `milestones`."""

    last: Count = 2
    best: BestConfig | None = None
    milestones: Annotated[tuple[Count, ...], Field(strict=False)] = ()


class CheckpointConfig(Block):
    """What is kept of the checkpoints that every regular validation writes."""

    keep: KeepConfig = KeepConfig()


class TrainerConfig(Block):
    """The whole trainer block. One optimizer step uses `batch` x `accumulation` samples."""

    steps: Count
    batch: Count = 16
    accumulation: Count = 1
    log_every: Count = 1
    device: Literal["auto", "cpu", "cuda"] = "auto"
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    streams: StreamsConfig = StreamsConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    tread: TreadConfig = TreadConfig()
    repa: RepaConfig = RepaConfig()
    ema: EmaConfig = EmaConfig()
    validation: ValidationConfig = ValidationConfig()
    sampler: SamplerConfig = SamplerConfig()
    indicators: IndicatorsConfig = IndicatorsConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()

    @property
    def samples_per_step(self) -> int:
        """Images per optimizer step."""
        return self.batch * self.accumulation

    @property
    def tokens(self) -> int:
        """Image tokens per sample."""
        return (self.data.size // self.model.patch) ** 2

    @property
    def routed_blocks(self) -> tuple[int, int]:
        """First and last routed block, 0-based and inclusive, negatives resolved here and nowhere else."""
        first, last = (
            index + self.model.depth if index < 0 else index for index in (self.tread.first, self.tread.last)
        )
        return first, last

    @property
    def kept_tokens(self) -> int:
        """Image tokens per sample in the routed blocks: N - floor(N ratio), rounded up to keep_multiple."""
        kept = self.tokens - math.floor(self.tokens * self.tread.ratio)
        return min(self.tokens, math.ceil(kept / self.tread.keep_multiple) * self.tread.keep_multiple)

    @property
    def routed_steps(self) -> int:
        """Optimizer steps that route tokens before the dense tail; 0 without TREAD."""
        return self.steps - round(self.steps * self.tread.dense_tail) if self.tread.enabled else 0

    @property
    def repa_block(self) -> int:
        """Block whose output is aligned, 0-based."""
        given = self.repa.after_block
        return math.ceil(self.model.depth / 3) - 1 if given is None else given

    @property
    def repa_end(self) -> float:
        """Share of the run at which alignment has ended at the latest."""
        stop = self.repa.stop
        if stop.end is not None:
            return stop.end
        return 0.30 if stop.kind == "gradient_cosine" else 0.25


def filled(config: TrainerConfig) -> dict[str, Any]:
    """The configuration as plain JSON values with every default, derived ones included, written out."""
    document = config.model_dump(mode="json")
    document["tread"]["first"], document["tread"]["last"] = config.routed_blocks
    document["repa"]["after_block"] = config.repa_block
    document["repa"]["stop"]["end"] = config.repa_end
    document["sampler"]["native"].update(config.sampler.native.scales)
    return document
