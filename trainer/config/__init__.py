"""The trainer's configuration: strict, frozen, and free of torch, so that a check takes no time. One block a file.

Every key has a default except `steps`; a key that is not written here does not exist. What one key demands of another
(heads divide width, and the like) is in trainer/rules/; reading files and naming mistakes is in document.py.
"""

from trainer.config.activation_checkpointing import ActivationCheckpointingConfig
from trainer.config.base import Block
from trainer.config.checkpoint import BestConfig, CheckpointConfig, KeepConfig
from trainer.config.compile import CompileConfig
from trainer.config.data import BATCHES_AHEAD, DataConfig
from trainer.config.ema import EmaConfig
from trainer.config.grid import GridConfig
from trainer.config.indicators import IndicatorsConfig
from trainer.config.model import AdaLnConfig, MaskDitConfig, ModelConfig, StreamsConfig
from trainer.config.objective import AsymFlowConfig, ObjectiveConfig
from trainer.config.optimizer import OptimizerConfig
from trainer.config.perceptual import DinoLossConfig, LpipsLossConfig, PerceptualConfig
from trainer.config.pose import PoseConfig
from trainer.config.precision import Fp8Config, PrecisionConfig
from trainer.config.repa import RepaConfig, RepaStopConfig
from trainer.config.resolution import ResolutionStageConfig
from trainer.config.sampler import NATIVE_SCALES, NativeSamplerConfig, SamplerConfig
from trainer.config.segmentation import SegmentationConfig
from trainer.config.trainer import IMAGE_CHANNELS, TrainerConfig, filled
from trainer.config.tread import TreadConfig
from trainer.config.validation import ValidationConfig

__all__ = [
    "BATCHES_AHEAD",
    "IMAGE_CHANNELS",
    "NATIVE_SCALES",
    "ActivationCheckpointingConfig",
    "AdaLnConfig",
    "AsymFlowConfig",
    "BestConfig",
    "Block",
    "CheckpointConfig",
    "CompileConfig",
    "DataConfig",
    "DinoLossConfig",
    "EmaConfig",
    "Fp8Config",
    "GridConfig",
    "IndicatorsConfig",
    "KeepConfig",
    "LpipsLossConfig",
    "MaskDitConfig",
    "ModelConfig",
    "NativeSamplerConfig",
    "ObjectiveConfig",
    "OptimizerConfig",
    "PerceptualConfig",
    "PoseConfig",
    "PrecisionConfig",
    "RepaConfig",
    "RepaStopConfig",
    "ResolutionStageConfig",
    "SamplerConfig",
    "SegmentationConfig",
    "StreamsConfig",
    "TrainerConfig",
    "TreadConfig",
    "ValidationConfig",
    "filled",
]
