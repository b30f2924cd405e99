"""The whole trainer block, and what follows from it by arithmetic."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field

from trainer.config.activation_checkpointing import ActivationCheckpointingConfig
from trainer.config.base import Block, Count
from trainer.config.checkpoint import CheckpointConfig
from trainer.config.compile import CompileConfig
from trainer.config.data import DataConfig
from trainer.config.distributed import DistributedConfig
from trainer.config.ema import EmaConfig
from trainer.config.indicators import IndicatorsConfig
from trainer.config.model import ModelConfig, StreamsConfig
from trainer.config.objective import AsymFlowConfig, ObjectiveConfig
from trainer.config.optimizer import OptimizerConfig
from trainer.config.perceptual import PerceptualConfig
from trainer.config.precision import PrecisionConfig
from trainer.config.repa import RepaConfig
from trainer.config.resolution import ResolutionStageConfig
from trainer.config.sampler import SamplerConfig
from trainer.config.segmentation import SegmentationConfig
from trainer.config.tread import TreadConfig
from trainer.config.validation import ValidationConfig

IMAGE_CHANNELS = 3


class TrainerConfig(Block):
    """The whole trainer block. One optimizer step uses `batch` x `accumulation` samples.

    `reference_parity` allows what reproduces the published protocol instead of ours; such a run says so.
    """

    steps: Count
    batch: Count = 16
    accumulation: Count = 1
    log_every: Count = 1
    device: Literal["auto", "cpu", "cuda"] = "auto"
    reference_parity: bool = False
    data: DataConfig = DataConfig()
    resolution: Annotated[tuple[ResolutionStageConfig, ...], Field(strict=False)] = ()
    model: ModelConfig = ModelConfig()
    streams: StreamsConfig = StreamsConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    tread: TreadConfig = TreadConfig()
    repa: RepaConfig = RepaConfig()
    perceptual: PerceptualConfig = PerceptualConfig()
    segmentation: SegmentationConfig = SegmentationConfig()
    ema: EmaConfig = EmaConfig()
    validation: ValidationConfig = ValidationConfig()
    sampler: SamplerConfig = SamplerConfig()
    indicators: IndicatorsConfig = IndicatorsConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    distributed: DistributedConfig = DistributedConfig()
    precision: PrecisionConfig = PrecisionConfig()
    compile: CompileConfig = CompileConfig()
    activation_checkpointing: ActivationCheckpointingConfig = ActivationCheckpointingConfig()

    @property
    def samples_per_step(self) -> int:
        """Images per optimizer step."""
        return self.batch * self.accumulation

    @property
    def tokens(self) -> int:
        """Image tokens per sample; of shards, in the square bucket."""
        return (self.data.size // self.model.patch) ** 2

    @property
    def stages(self) -> tuple[tuple[int, int], ...]:
        """The step that each stage of smaller images ends before, and their side in pixels."""
        return tuple((round(stage.until * self.steps), stage.size) for stage in self.resolution)

    def size_at(self, step: int) -> int:
        """Side of the square training image, in pixels, in the update that follows `step` finished steps."""
        return next((size for end, size in self.stages if step < end), self.data.size)

    def at_size(self, size: int) -> TrainerConfig:
        """The same with images of one other size throughout."""
        return self.model_copy(update={"data": self.data.model_copy(update={"size": size}), "resolution": ()})

    @property
    def routed_blocks(self) -> tuple[int, int]:
        """First and last block that sees some of the tokens, 0-based and inclusive: all but the decoder in MaskDiT."""
        return (0, self.model.depth - 1) if self.model.maskdit.enabled else self.tread_blocks

    @property
    def tread_blocks(self) -> tuple[int, int]:
        """The range of TREAD, negatives resolved here and nowhere else."""
        first, last = (
            index + self.model.depth if index < 0 else index for index in (self.tread.first, self.tread.last)
        )
        return first, last

    @property
    def kept_tokens(self) -> int:
        """Image tokens per sample in the routed blocks; of shards, in the square bucket."""
        return self.kept_of(self.tokens)

    def grid_of(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of image tokens in a picture of so many pixels."""
        return height // self.model.patch, width // self.model.patch

    def kept_of(self, tokens: int) -> int:
        """How many of N image tokens stay in the routed blocks: N - floor(N ratio), rounded up to keep_multiple in
        TREAD."""
        if self.model.maskdit.enabled:
            return tokens - math.floor(tokens * self.model.maskdit.ratio)
        kept = tokens - math.floor(tokens * self.tread.ratio)
        return min(tokens, math.ceil(kept / self.tread.keep_multiple) * self.tread.keep_multiple)

    @property
    def routed_steps(self) -> int:
        """Optimizer steps in which blocks see some of the tokens: MaskDiT all, TREAD those before its dense tail."""
        if self.model.maskdit.enabled:
            return self.steps
        return self.steps - round(self.steps * self.tread.dense_tail) if self.tread.enabled else 0

    @property
    def asymflow(self) -> AsymFlowConfig | None:
        """The settings of AsymFlow, defaults included; None under another prediction."""
        objective = self.objective
        return (objective.asymflow or AsymFlowConfig()) if objective.prediction == "asymflow" else None

    @property
    def patch_features(self) -> int:
        """Numbers of one image patch: channels times pixels."""
        return IMAGE_CHANNELS * self.model.patch**2

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
    document["data"]["workers"] = config.data.worker_processes
    document["objective"]["asymflow"] = config.asymflow and config.asymflow.model_dump(mode="json")
    document["tread"]["first"], document["tread"]["last"] = config.tread_blocks
    document["repa"]["after_block"] = config.repa_block
    document["repa"]["stop"]["end"] = config.repa_end
    document["sampler"]["native"].update(config.sampler.native.scales)
    return document
