"""How large a run is: parameters, floating-point operations, memory and disk, by arithmetic alone. No torch here.

One multiply-add counts as two operations; a training step counts as three forward passes.
"""

from __future__ import annotations

from math import ceil, isqrt

from trainer.acceleration.budget import activation_bytes
from trainer.config import BATCHES_AHEAD, IMAGE_CHANNELS, ModelConfig, TrainerConfig
from trainer.data.shapes import StreamShapes, patch_tokens
from trainer.frozen.footprint import frozen_mib

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
    model, features = config.model, config.patch_features
    ends = _patch_weights(config) + model.width + _linear(model.width, features)
    final = _linear(model.width, 2 * model.width) if model.final_modulation else 0
    time = _linear(SINUSOID_WIDTH, model.width) + _linear(model.width, model.width)
    smooth = IMAGE_CHANNELS * IMAGE_CHANNELS * 9 + IMAGE_CHANNELS
    mask = model.width if model.maskdit.enabled else 0
    blocks = model.block_count * _block_parameters(config) + modulation_parameters(config)
    return ends + final + time + smooth + mask + _condition_parameters(model, streams) + blocks


def modulation_parameters(config: TrainerConfig) -> int:
    """Trained numbers that modulate the blocks: a map for each, or a shared one and a low-rank one for each."""
    model = config.model
    full = _linear(model.width, model.adaln_chunks * model.width)
    if model.adaln.kind == "per_block":
        return model.block_count * full
    return full + model.block_count * model.adaln.rank * (1 + model.adaln_chunks) * model.width


def saved_by_sharing(config: TrainerConfig) -> int:
    """Trained numbers that a shared modulation has less than one per block would have; below 0 if it has more."""
    full = _linear(config.model.width, config.model.adaln_chunks * config.model.width)
    return config.model.block_count * full - modulation_parameters(config)


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
    """Training operations per sample, averaged over the routed and dense steps and the image sizes of the run.

    Alignment and perceptual losses are left out: they are no operations of the model.
    """
    began, total = 0, 0.0
    for end, side in (*config.stages, (config.steps, config.data.size)):
        there = config.at_size(side)
        routed_steps = min(max(config.routed_steps - began, 0), end - began)
        routed, dense = (forward_flops(there, streams, is_routed) for is_routed in (True, False))
        total += routed_steps * routed + (end - began - routed_steps) * dense
        began = end
    return 3.0 * total / config.steps


def forward_flops(
    config: TrainerConfig, streams: StreamShapes, is_routed: bool = False, context: float | None = None
) -> float:
    """Operations of one forward pass for a sample with all its conditions; routed as TREAD or MaskDiT has it.

    `context` is the number of condition tokens that the blocks see, where it is not that of all conditions. Products of
    matrices only. Norms, activations and rotations are left out: they cost memory traffic, not operations.
    """
    first, last = config.routed_blocks
    count = last - first + 1 if is_routed else 0
    context = context_tokens(config, streams) if context is None else context
    routed = _block_flops(config, config.kept_tokens, context) if count else 0.0
    dense = _block_flops(config, config.tokens, context)
    return count * routed + (config.model.block_count - count) * dense + _outer_flops(config, streams)


def memory_mib(config: TrainerConfig, streams: StreamShapes) -> float:
    """Rough upper estimate of the peak memory of the process (CPU) or of the device (GPU), in MiB.

    It follows `precision.compute` and `activation_checkpointing`. FP8 saves nothing here: products keep their operands
    in bf16 for the backward pass. What compilation saves is not counted.
    """
    weights = parameters(config, streams)
    numbers = weights * (2 + len(config.ema.averages)) + optimizer_numbers(config, streams)
    casts = weights * CAST_BYTES if config.precision.compute != "fp32" else 0
    activations = activation_bytes(config, context_tokens(config, streams), config.model.block_count)
    trained = (numbers * BYTES + casts + activations) / MIB
    return PROCESS_MIB + trained + frozen_mib(config) + _data_mib(config, streams)


def checkpoint_mib(config: TrainerConfig, streams: StreamShapes) -> float:
    """Size of one checkpoint on disk in MiB: weights, averages and optimizer state."""
    copies = 1 + len(config.ema.averages)
    numbers = parameters(config, streams) * copies + optimizer_numbers(config, streams)
    return numbers * BYTES / MIB


def optimizer_numbers(config: TrainerConfig, streams: StreamShapes) -> int:
    """Numbers that the optimizer remembers: two per parameter, but one for a matrix whose update is made orthogonal.

    NorMuon has one more per row of such a matrix. Counters of updates are left out, and so is
    what the published groups save beside that.
    """
    numbers = 2 * parameters(config, streams)
    if not config.optimizer.is_orthogonal:
        return numbers
    model = config.model
    into_mlp = 1 if model.mlp == "gelu" else 2
    matrices, rows = 8 * model.width**2 + _mlp_weights(config), 9 * model.width + into_mlp * model.mlp_hidden
    return numbers + model.block_count * ((rows if config.optimizer.name == "normuon" else 0) - matrices)


def _linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def _block_parameters(config: TrainerConfig) -> int:
    """Trained numbers of one block without its modulation."""
    width = config.model.width
    attention = 4 * width**2 + (width if config.model.qk_norm else 0)
    return 2 * attention + _mlp_weights(config)


def _mlp_weights(config: TrainerConfig) -> int:
    matrices = 2 if config.model.mlp == "gelu" else 3
    return matrices * config.model.width * config.model.mlp_hidden


def _patch_weights(config: TrainerConfig) -> int:
    """Matrices between a patch and its token."""
    features, width, bottleneck = config.patch_features, config.model.width, config.model.bottleneck
    return features * width if bottleneck is None else (features + width) * bottleneck


def _condition_parameters(model: ModelConfig, streams: StreamShapes) -> int:
    """Projection, type embedding and null token per stream that is on."""
    width, features = model.width, (streams.text_width, streams.cls_width, streams.patch_width)
    of_stream = (2 if model.type_embeddings else 1) * width
    total = sum(_linear(size, width) + of_stream for size in features if size)
    if streams.pose_joints:
        total += _linear(JOINT_VALUES, width) + _linear(width, width) + of_stream
        total += (2 if model.null_joints else 1) * streams.pose_joints * width
    return total


def context_tokens(config: TrainerConfig, streams: StreamShapes) -> int:
    """Condition tokens of a sample that keeps all streams."""
    return sum(stream_tokens(config, streams).values())


def stream_tokens(config: TrainerConfig, streams: StreamShapes) -> dict[str, int]:
    """Condition tokens of every stream of a sample that keeps it; 0 where a stream is off."""
    text, joints = (
        min(count, 1) if name in config.streams.pooled else count
        for name, count in (("text", _words(streams)), ("pose", streams.pose_joints))
    )
    patches = _context_patches(config, streams)
    return {"text": text, "cls": 1 if streams.cls_width else 0, "patches": patches, "pose": joints}


def _words(streams: StreamShapes) -> int:
    return streams.text_length if streams.text_width else 0


def _context_patches(config: TrainerConfig, streams: StreamShapes) -> int:
    """Image features that the blocks see: all, or means of two by two on a square grid."""
    patches = _patch_tokens(config, streams)
    return ceil(isqrt(patches) / 2) ** 2 if "patches" in config.streams.pooled else patches


def _patch_tokens(config: TrainerConfig, streams: StreamShapes) -> int:
    return patch_tokens(config) if streams.patch_width else 0


def _block_flops(config: TrainerConfig, tokens: int, context: float) -> float:
    """Forward operations of one block on `tokens` image tokens and `context` condition tokens of one sample."""
    width, model = config.model.width, config.model
    projections = (4 * tokens + 2 * tokens + 2 * context) * width**2
    attention = 2 * tokens * (tokens + context) * width
    modulation = model.adaln_chunks * width**2
    if model.adaln.kind == "shared":
        modulation = model.adaln.rank * (1 + model.adaln_chunks) * width
    return 2.0 * (projections + attention + tokens * _mlp_weights(config) + modulation)


def _outer_flops(config: TrainerConfig, streams: StreamShapes) -> float:
    """Forward operations outside the blocks: patches in and out, time, conditions, shared and final modulation."""
    width, model = config.model.width, config.model
    images = config.tokens * (_patch_weights(config) + width * config.patch_features)
    time = SINUSOID_WIDTH + width
    # The image CLS is projected twice: as a token, and for the modulation.
    conditions = (1 if "text" in config.streams.pooled else streams.text_length) * streams.text_width
    conditions += 2 * streams.cls_width + _context_patches(config, streams) * streams.patch_width
    conditions += streams.pose_joints * (JOINT_VALUES + width)
    modulation = 2 * width if model.final_modulation else 0
    modulation += model.adaln_chunks * width if model.adaln.kind == "shared" else 0
    smooth = 9 * IMAGE_CHANNELS**2 * config.data.size**2
    return 2.0 * (images + (time + conditions + modulation) * width + smooth)


def _data_mib(config: TrainerConfig, streams: StreamShapes) -> float:
    """Images (uint8) and features (half precision) that the process keeps in memory, those read ahead with their noise
    (fp32) included.

    Drawn images are kept at every size they are trained on.
    """
    features = streams.text_length * streams.text_width + streams.cls_width + JOINT_VALUES * streams.pose_joints
    features += _patch_tokens(config, streams) * streams.patch_width
    images = config.data.samples + config.data.held_out if config.data.source == "procedural" else 0
    ahead = (config.data.worker_processes * BATCHES_AHEAD + 1) * config.batch if config.data.worker_processes else 0
    noise_mib = ahead * BYTES * IMAGE_CHANNELS * config.data.size**2 / MIB
    images += ahead
    planes = IMAGE_CHANNELS + (1 if config.segmentation.enabled else 0)
    if config.data.source == "procedural" and config.resolution:
        smaller = sum(_data_mib(config.at_size(side), streams) for _, side in config.stages)
    else:
        smaller = 0.0
    return smaller + noise_mib + images * (planes * config.data.size**2 + 2 * features) / MIB
