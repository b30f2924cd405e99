"""What every kind of artefact must hold, one pure function each: what a shard may hold of ours, and nothing wider.

Every check gets the bytes of the artefact's files and the size of the image, and raises Wrong at the first thing that
is not as it should be. No torch.

Shapes: C channels, H x W pixels, T text tokens, N image patches, J joints, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from trainer.data.artefacts import CAPTION_FILE
from trainer.data.npy import parse_npy
from trainer.data.parts import SAPIENS_CLASSES
from trainer.data.shapes import POSE_JOINTS, SHARD_TOKENS
from trainer.data.shard_set import FEATURE_CELL
from trainer.prepare.finding import Wrong

Check = Callable[[Mapping[str, bytes], tuple[int, int]], None]
"""(content by name of the file, (height, width) of the image in pixels) -> None, or raises Wrong."""
_BYTES, _HALVES = "uint8", "float16"


def check_image(files: Mapping[str, bytes], size: tuple[int, int]) -> None:
    """uint8 (3, H, W)."""
    image_CHW = _array(files, "image.npy", _BYTES)
    _shaped("image.npy", image_CHW, (3, *size))


def check_caption(files: Mapping[str, bytes], _size: tuple[int, int]) -> None:
    """UTF-8 with something in it."""
    try:
        text = files[CAPTION_FILE].decode()
    except UnicodeDecodeError as error:
        raise Wrong("empty caption", CAPTION_FILE, f"no UTF-8: {error}", "text") from None
    if not text.strip():
        raise Wrong("empty caption", CAPTION_FILE, f"{len(text)} characters, all of them white", "text")


def check_text(files: Mapping[str, bytes], _size: tuple[int, int]) -> None:
    """Features (T, D) of the tokens that count, T at most 512, and a mask of T ones."""
    hidden_TD = _features(files, "t5h.npy", 2)
    mask_T = _array(files, "t5m.npy", _BYTES)
    tokens = len(hidden_TD)
    if tokens > SHARD_TOKENS:
        raise Wrong("text mask", "t5h.npy", f"{tokens} tokens", f"at most {SHARD_TOKENS}")
    if mask_T.shape != (tokens,) or not (mask_T == 1).all():
        counted = f"{mask_T.shape} with {int(np.count_nonzero(mask_T == 1))} ones"
        raise Wrong("text mask", "t5m.npy", counted, f"({tokens},), all ones: padding is cut off")


def check_dinov3(files: Mapping[str, bytes], size: tuple[int, int]) -> None:
    """(D,) of the whole image and (N, D) of its cells of 16 pixels."""
    whole_D = _features(files, "dinov3.npy", 1)
    patches_ND = _features(files, "dinov3_patches.npy", 2)
    if patches_ND.shape[1] != len(whole_D):
        raise Wrong("wrong shape", "dinov3_patches.npy", str(patches_ND.shape), f"(N, {len(whole_D)})")
    rows, columns = size[0] // FEATURE_CELL, size[1] // FEATURE_CELL
    if len(patches_ND) != rows * columns:
        raise Wrong("wrong grid", "dinov3_patches.npy", f"{len(patches_ND)} patches", f"{rows} x {columns}")


def check_pose(files: Mapping[str, bytes], _size: tuple[int, int]) -> None:
    """(133, 3): x and y in [-1, 1] over the image, confidence in [0, 1]; a joint without one lies at (0, 0)."""
    joints_J3 = _finite("pose.npy", _array(files, "pose.npy", _HALVES))
    _shaped("pose.npy", joints_J3, (POSE_JOINTS, 3))
    place_J2, confidence_J = joints_J3[:, :2], joints_J3[:, 2]
    farthest = float(np.abs(place_J2).max())
    if farthest > 1.0:
        raise Wrong("out of range", "pose.npy", f"a joint at {farthest:g}", "[-1, 1], the image")
    lowest, highest = float(confidence_J.min()), float(confidence_J.max())
    if lowest < 0.0 or highest > 1.0:
        raise Wrong("out of range", "pose.npy", f"confidences from {lowest:g} to {highest:g}", "[0, 1]")
    if place_J2[confidence_J == 0.0].any():
        raise Wrong("out of range", "pose.npy", "a joint of confidence 0 that lies somewhere", "(0, 0)")


def check_seg(files: Mapping[str, bytes], size: tuple[int, int]) -> None:
    """uint8 (H, W), the classes of Sapiens."""
    parts_HW = _array(files, "seg.npy", _BYTES)
    _shaped("seg.npy", parts_HW, size)
    highest = int(parts_HW.max())
    if highest >= len(SAPIENS_CLASSES):
        raise Wrong("out of range", "seg.npy", f"the class {highest}", f"0 to {len(SAPIENS_CLASSES) - 1}")


CHECKS: Mapping[str, Check] = {
    "image": check_image,
    "caption": check_caption,
    "t5": check_text,
    "dinov3": check_dinov3,
    "pose": check_pose,
    "seg": check_seg,
}
"""By artefact."""


def _features(files: Mapping[str, bytes], name: str, dimensions: int) -> np.ndarray:
    """Half precision, finite, no axis empty."""
    features = _array(files, name, _HALVES)
    if features.ndim != dimensions or not features.size:
        wanted = "(D,)" if dimensions == 1 else "(N, D)"
        raise Wrong("wrong shape", name, str(features.shape), f"{wanted}, not empty")
    return _finite(name, features)


def _finite(name: str, array: np.ndarray) -> np.ndarray:
    wrong = int(np.count_nonzero(~np.isfinite(array)))
    if wrong:
        raise Wrong("not finite", name, f"{wrong} values that are not finite", "none")
    return array


def _shaped(name: str, array: np.ndarray, shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise Wrong("wrong shape", name, str(array.shape), str(shape))


def _array(files: Mapping[str, bytes], name: str, type: str) -> np.ndarray:
    try:
        array = parse_npy(files[name])
    except ValueError as error:
        raise Wrong("no array", name, str(error), "a whole .npy file") from None
    if array.dtype.name != type:
        raise Wrong("wrong type", name, array.dtype.name, type)
    return array
