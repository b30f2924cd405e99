"""How large a run is: parameters, floating-point operations, memory and disk, by arithmetic alone. No torch here.

One multiply-add counts as two operations; a training step counts as three forward passes.
"""

from __future__ import annotations

from trainer.acceleration.budget import activation_bytes
from trainer.config import TrainerConfig
from trainer.data.shapes import StreamShapes

IMAGE_CHANNELS = 3
SINUSOID_WIDTH = 256
JOINT_VALUES = 3
MIB = 2**20
BYTES = 4  # weights, averages and moments are fp32
CAST_BYTES = 2  # a weight as autocast casts it, until the end of its forward pass

PROCESS_MIB = 370.0  # Python, torch and its libraries: 325 were measured on a CPU build


def parameters(config: TrainerConfig, streams: StreamShapes) -> int:
    """Trained numbers: the model, and the alignment projector where there is one."""
    return model_parameters(config, streams) + projector_parameters(config, streams)


def model_parameters(config: TrainerConfig, streams: StreamShapes) -> int:
    """Trained numbers of the model alone."""
    width, features = config.model.width, IMAGE_CHANNELS * config.model.patch**2
    ends = _linear(features, width) + _linear(width, 2 * width) + _linear(width, features)
    time = _linear(SINUSOID_WIDTH, width) + _linear(width, width)
    smooth = IMAGE_CHANNELS * IMAGE_CHANNELS * 9 + IMAGE_CHANNELS
    return ends + time + smooth + _condition_parameters(width, streams) + config.model.depth * _block_parameters(config)


def projector_parameters(config: TrainerConfig, streams: StreamShapes) -> int:
    """Trained numbers of the alignment projector; 0 without alignment."""
    if not config.repa.enabled:
        return 0
    width, teacher = config.model.width, streams.patch_width
    hidden = 4 * width
    sizes = {
        "linear": width * teacher,
        "conv": 9 * width * teacher + teacher,
        "mlp": _linear(width, hidden) + _linear(hidden, hidden) + _linear(hidden, teacher),
    }
    return sizes[config.repa.projector]


def flops_per_sample(config: TrainerConfig, streams: StreamShapes) -> float:
    """Training operations per sample, averaged over the routed and dense steps of the run; alignment is left out."""
    routed_share = config.routed_steps / config.steps
    first, last = config.routed_blocks
    routed_blocks = last - first + 1
    dense = _block_flops(config, config.tokens, streams)
    routed = _block_flops(config, config.kept_tokens, streams)
    blocks = config.model.depth * dense - routed_share * routed_blocks * (dense - routed)
    return 3.0 * (blocks + _outer_flops(config, streams))


def memory_mib(config: TrainerConfig, streams: StreamShapes) -> float:
    """Rough upper estimate of the peak memory of the process (CPU) or of the device (GPU), in MiB.

    It follows `precision.compute` and `activation_checkpointing`. FP8 saves nothing here: products keep their operands
    in bf16 for the backward pass. What compilation saves is not counted.
    """
    weights = parameters(config, streams)
    numbers = weights * (2 + len(config.ema.half_lives)) + optimizer_numbers(config, streams)
    casts = weights * CAST_BYTES if config.precision.compute != "fp32" else 0
    activations = activation_bytes(config, context_tokens(config, streams), config.model.depth)
    return PROCESS_MIB + (numbers * BYTES + casts + activations) / MIB + _data_mib(config, streams)


def checkpoint_mib(config: TrainerConfig, streams: StreamShapes) -> float:
    """Size of one checkpoint on disk in MiB: weights, averages and optimizer state."""
    copies = 1 + len(config.ema.half_lives)
    numbers = parameters(config, streams) * copies + optimizer_numbers(config, streams)
    return numbers * BYTES / MIB


def optimizer_numbers(config: TrainerConfig, streams: StreamShapes) -> int:
    """Numbers that the optimizer remembers: two per parameter, but one for a matrix whose update is made orthogonal.

    NorMuon has one more per row of such a matrix. Counters of updates are left out.
    """
    numbers = 2 * parameters(config, streams)
    if not config.optimizer.is_orthogonal:
        return numbers
    width, hidden = config.model.width, round(config.model.width * config.model.mlp_ratio)
    matrices, rows = 8 * width**2 + 2 * width * hidden, 9 * width + hidden
    return numbers + config.model.depth * ((rows if config.optimizer.name == "normuon" else 0) - matrices)


def _linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def _block_parameters(config: TrainerConfig) -> int:
    width = config.model.width
    attention = 4 * width**2 + width
    return _linear(width, 9 * width) + 2 * attention + 2 * width * round(width * config.model.mlp_ratio)


def _condition_parameters(width: int, streams: StreamShapes) -> int:
    """Projection, type embedding and null token per stream that is on."""
    features = (streams.text_width, streams.cls_width, streams.patch_width)
    total = sum(_linear(size, width) + 2 * width for size in features if size)
    if streams.pose_joints:
        total += _linear(JOINT_VALUES, width) + _linear(width, width) + (streams.pose_joints + 2) * width
    return total


def context_tokens(config: TrainerConfig, streams: StreamShapes) -> int:
    """Condition tokens of a sample that keeps all streams."""
    text = streams.text_length if streams.text_width else 0
    return text + (1 if streams.cls_width else 0) + _patch_tokens(config, streams) + streams.pose_joints


def _patch_tokens(config: TrainerConfig, streams: StreamShapes) -> int:
    """Image features come on a grid like that of the image tokens."""
    return config.tokens if streams.patch_width else 0


def _block_flops(config: TrainerConfig, tokens: int, streams: StreamShapes) -> float:
    """Forward operations of one block on `tokens` image tokens of one sample."""
    width, context = config.model.width, context_tokens(config, streams)
    projections = (4 * tokens + 2 * tokens + 2 * context) * width**2
    attention = 2 * tokens * (tokens + context) * width
    mlp = 2 * tokens * width * round(width * config.model.mlp_ratio)
    return 2.0 * (projections + attention + mlp + 9 * width**2)


def _outer_flops(config: TrainerConfig, streams: StreamShapes) -> float:
    """Forward operations outside the blocks: patches in and out, projections of the conditions."""
    width, features = config.model.width, IMAGE_CHANNELS * config.model.patch**2
    images = 2 * config.tokens * width * features
    conditions = streams.text_length * streams.text_width + streams.cls_width
    conditions += _patch_tokens(config, streams) * streams.patch_width + streams.pose_joints * (JOINT_VALUES + width)
    return 2.0 * (images + conditions * width + 9 * IMAGE_CHANNELS**2 * config.data.size**2)


def _data_mib(config: TrainerConfig, streams: StreamShapes) -> float:
    """Images (uint8) and features (half precision) that the process keeps in memory."""
    features = streams.text_length * streams.text_width + streams.cls_width + JOINT_VALUES * streams.pose_joints
    features += _patch_tokens(config, streams) * streams.patch_width
    images = config.data.samples + config.data.held_out if config.data.source == "procedural" else 0
    return images * (IMAGE_CHANNELS * config.data.size**2 + 2 * features) / MIB
