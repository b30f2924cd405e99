"""One sample of a shard: from the bytes of its members to pixels and conditions, with every doubt spoken out.

What the members hold (section 7 of the published format, and what is accepted beside it):

    json                an object; `caption` is the text
    image.npy           (3, H, W), as uint8 pixels or as float16 or float32 in [0, 1]: the type tells them apart
    dinov3.npy          (D,)
    dinov3_patches.npy  (N, D), raster order over H / 16 rows and W / 16 columns
    t5h.npy, t5m.npy    (T, D) and (T,): a token counts where the mask is 1, and those come first; T is 77 or 512
    seg.npy             (H, W) uint8, classes of Sapiens, read only if a loss asks for part maps
    pose.npy            (133, 3): x and y in [-1, 1] over the frame, x right and y down, and the detector's score

Floats become half precision, as they are stored anyway. The detector's scores are not bounded and joints may lie out
of the frame with a score: here a confidence is in [0, 1], and a joint out of the frame has none, at (0, 0).

Shapes: C channels, H x W pixels, T text tokens, N image patches, J joints, D features.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
from PIL import Image

from trainer.data.artefacts import PARTS_MEMBER
from trainer.data.npy import parse_npy
from trainer.data.parts import SAPIENS_CLASSES
from trainer.data.sample import Sample
from trainer.data.shapes import POSE_JOINTS, SHARD_TOKENS, StreamShapes
from trainer.data.shard_set import ShardFolder

_RANGE_SLACK = 1e-3  # half precision rounds 1 + 0.0005 to 1.0
_FARTHEST_JOINT = 8.0
"""In half frames from the centre. A detector's box may reach out of the frame, but pixels reach much further."""


class Fault(ValueError):
    """What is wrong with the content of a sample; the message names the member and the value."""


def decode(
    id: str, members: Mapping[str, bytes], folder: ShardFolder, size: tuple[int, int], streams: StreamShapes
) -> Sample:
    """The sample with pixels at `size` (height, width) and the streams that are on. Raises Fault."""
    patches_PD = _features(members, "dinov3_patches.npy", 2, streams.patch_width) if streams.patch_width else None
    rows, columns = folder.feature_grid
    if patches_PD is not None and len(patches_PD) != rows * columns:
        raise Fault(f"dinov3_patches.npy has {len(patches_PD)} patches; {rows} x {columns} belong to this bucket")
    return Sample(
        id=id,
        caption=_caption(members["json"]),
        pixels_HWC=_resized(_pixels(members["image.npy"], folder), size),
        text_TD=_text(members, streams.text_width) if streams.text_width else None,
        cls_D=_features(members, "dinov3.npy", 1, streams.cls_width) if streams.cls_width else None,
        patches_PD=patches_PD,
        patch_grid=(0, 0) if patches_PD is None else (rows, columns),
        pose_J3=_pose(members) if streams.pose_joints else None,
        parts_HW=_parts(members[PARTS_MEMBER], folder, size) if PARTS_MEMBER in members else None,
    )


def _caption(data: bytes) -> str:
    try:
        content = json.loads(data)
    except ValueError as error:
        raise Fault(f"json is broken: {error}") from error
    caption = content.get("caption") if isinstance(content, dict) else None
    if not isinstance(caption, str):
        raise Fault("json has no text under caption")
    return " ".join(caption.split())


def _pixels(data: bytes, folder: ShardFolder) -> np.ndarray:
    """(H, W, C) uint8."""
    image_CHW = _array(data, "image.npy")
    expected = (3, folder.height, folder.width)
    if image_CHW.shape != expected:
        raise Fault(f"image.npy has the shape {image_CHW.shape}; needed: {expected}")
    if image_CHW.dtype != np.uint8:
        if image_CHW.dtype not in (np.float16, np.float32):
            raise Fault(f"image.npy is {image_CHW.dtype}; needed: uint8, or float16 or float32 in [0, 1]")
        lowest, highest = float(image_CHW.min()), float(image_CHW.max())
        if not (lowest >= -_RANGE_SLACK and highest <= 1 + _RANGE_SLACK):  # so that NaN is out of range too
            raise Fault(f"image.npy has values from {lowest:g} to {highest:g}; needed: [0, 1] for {image_CHW.dtype}")
        image_CHW = (image_CHW.astype(np.float32) * 255.0).round().clip(0, 255).astype(np.uint8)
    return np.ascontiguousarray(image_CHW.transpose(1, 2, 0))


def _resized(pixels_HWC: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Averaged over whole blocks of pixels where the sides divide, else bicubic with an antialiasing filter."""
    height, width = size
    if pixels_HWC.shape[:2] == size:
        return pixels_HWC
    (down, rest_down), (across, rest_across) = divmod(pixels_HWC.shape[0], height), divmod(pixels_HWC.shape[1], width)
    image = Image.fromarray(pixels_HWC)
    if rest_down or rest_across:
        return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC)).copy()
    return np.asarray(image.reduce((across, down))).copy()


def _parts(data: bytes, folder: ShardFolder, size: tuple[int, int]) -> np.ndarray:
    """Classes at `size`, each that of the nearest stored pixel: (H, W) uint8."""
    parts_HW = _array(data, PARTS_MEMBER)
    expected = (folder.height, folder.width)
    if parts_HW.shape != expected or parts_HW.dtype != np.uint8:
        raise Fault(f"{PARTS_MEMBER} is {parts_HW.dtype} {parts_HW.shape}; needed: uint8 {expected}")
    highest, classes = int(parts_HW.max()), len(SAPIENS_CLASSES)
    if highest >= classes:
        raise Fault(f"{PARTS_MEMBER} has the class {highest}; allowed: 0 to {classes - 1}")
    return np.asarray(Image.fromarray(parts_HW).resize(size[::-1], Image.Resampling.NEAREST)).copy()


def _text(members: Mapping[str, bytes], width: int) -> np.ndarray:
    """The tokens that count: (T, D), T at least 1."""
    hidden_TD = _features(members, "t5h.npy", 2, width)
    mask_T = _array(members["t5m.npy"], "t5m.npy")
    if len(hidden_TD) > SHARD_TOKENS:
        raise Fault(f"t5h.npy has {len(hidden_TD)} tokens; allowed: up to {SHARD_TOKENS}")
    if mask_T.shape != hidden_TD.shape[:1] or mask_T.dtype.kind not in "biu":
        raise Fault(
            f"t5m.npy is {mask_T.dtype} {mask_T.shape}; needed: whole numbers, one per token ({len(hidden_TD)})"
        )
    length = int(np.count_nonzero(mask_T))
    if not length or not mask_T[:length].all():
        raise Fault(f"t5m.npy marks {length} tokens; needed: at least one, and none behind a gap")
    return hidden_TD[:length].copy()


def _pose(members: Mapping[str, bytes]) -> np.ndarray:
    joints_J3 = _array(members["pose.npy"], "pose.npy")
    if joints_J3.shape != (POSE_JOINTS, 3) or joints_J3.dtype.kind != "f":
        raise Fault(f"pose.npy is {joints_J3.dtype} {joints_J3.shape}; needed: floats ({POSE_JOINTS}, 3)")
    joints_J3 = joints_J3.astype(np.float32)
    if not np.isfinite(joints_J3).all():
        raise Fault("pose.npy has values that are not finite")
    joints_J3[joints_J3[:, 2] <= 0] = 0.0
    farthest = float(np.abs(joints_J3[:, :2]).max())
    if farthest > _FARTHEST_JOINT:
        raise Fault(f"pose.npy has a joint at {farthest:g}: pixels? needed: the frame is [-1, 1]")
    joints_J3[np.abs(joints_J3[:, :2]).max(axis=1) > 1.0] = 0.0
    joints_J3[:, 2] = joints_J3[:, 2].clip(0.0, 1.0)
    return joints_J3.astype(np.float16)


def _features(members: Mapping[str, bytes], name: str, dimensions: int, width: int) -> np.ndarray:
    """float16, finite, `width` features in the last of `dimensions` axes, no axis empty."""
    array = _array(members[name], name)
    if array.ndim != dimensions or array.shape[-1] != width or not array.size or array.dtype.kind != "f":
        shape = f"({', '.join(['N'] * (dimensions - 1) + [str(width)])})"
        raise Fault(f"{name} is {array.dtype} {array.shape}; needed: floats {shape}")
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    if not np.isfinite(half).all():
        wrong = array[~np.isfinite(half)]
        raise Fault(f"{name} has {len(wrong)} values that no half-precision number can hold, such as {wrong[0]:g}")
    return half


def _array(data: bytes, name: str) -> np.ndarray:
    try:
        return parse_npy(data)
    except ValueError as error:
        raise Fault(f"{name} {error}") from error
