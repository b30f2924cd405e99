"""A small convolutional network that finds the 133 joints of a drawn portrait, and its file.

It knows drawn portraits and nothing else: a stand-in, where nothing can be downloaded, for a detector of real poses.

Shapes: B samples, C channels, H x W pixels, J joints.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.functional import interpolate, relu

from trainer.data.shapes import POSE_JOINTS
from trainer.errors import DataError

_ABOUT = "about"
KIND = "armature keypoint detector, version 1"
LARGEST_SIDE = 64  # larger images are shrunk: joints are found to about a tenth of a pixel
_CHANNELS = (32, 64, 96, 96)
_SMALLEST_MAP = 4
_HIDDEN = 256


class KeypointDetector(nn.Module):
    """Images in [-1, 1], of any size, seen as a square -> joints (x, y in [-1, 1], confidence) of (B, J, 3)."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side
        halvings = max(1, min(len(_CHANNELS), round(math.log2(side / _SMALLEST_MAP))))
        widths = (3, *_CHANNELS[:halvings])
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, after, 5 if before == 3 else 3, stride=2, padding=2 if before == 3 else 1)
            for before, after in pairwise(widths)
        )
        cells = math.ceil(side / 2**halvings) ** 2
        self.hidden = nn.Linear(widths[-1] * cells, _HIDDEN)
        self.head = nn.Linear(_HIDDEN, POSE_JOINTS * 3)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Places and confidence logits: (B, J, 3)."""
        x_BCHW = image_BCHW
        size = (self.side, self.side)
        if x_BCHW.shape[-2:] != size:
            x_BCHW = interpolate(x_BCHW, size=size, mode="bilinear", align_corners=False, antialias=True)
        for convolution in self.convolutions:
            x_BCHW = relu(convolution(x_BCHW))
        flat_BH = relu(self.hidden(x_BCHW.flatten(1)))
        out_BJ3: Tensor = self.head(flat_BH).view(len(image_BCHW), POSE_JOINTS, 3)
        return out_BJ3


def unfitted(side: int) -> KeypointDetector:
    """A network whose weights mean nothing yet; no generator of the process moves on."""
    with torch.random.fork_rng(devices=[]):
        return KeypointDetector(side)


@dataclass(frozen=True, slots=True)
class Detector:
    """A fitted network, and the hash of its file: scores of different detectors must not be compared."""

    net: KeypointDetector
    hash: str

    @torch.no_grad()
    def __call__(self, image_BCHW: Tensor) -> Tensor:
        """Joints of images in [-1, 1]: (B, J, 3) on the CPU; nan for images that are not finite."""
        finite_B = image_BCHW.isfinite().flatten(1).all(dim=1)
        device = next(self.net.parameters()).device
        found_BJ3 = self.net(image_BCHW.nan_to_num(0.0, 0.0, 0.0).to(device))
        found_BJ3 = torch.cat([found_BJ3[..., :2], found_BJ3[..., 2:].sigmoid()], dim=-1)
        return torch.where(finite_B[:, None, None].to(device), found_BJ3, math.nan).cpu()


def save_detector(path: Path, net: KeypointDetector, about: Mapping[str, int]) -> None:
    """Write the network atomically, with words on how it was fitted; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().cpu().contiguous() for name, value in net.state_dict().items()}
    unfinished = path.with_name(path.name + ".tmp")
    told = json.dumps({"kind": KIND, "side": net.side, **about}, sort_keys=True)
    unfinished.write_bytes(save(weights, metadata={_ABOUT: told}))  # one entry: the order of several is left to chance
    unfinished.replace(path)


def load_detector(path: Path, device: torch.device | str) -> Detector:
    """Read a file that `fit-pose` wrote. Raises DataError when it cannot be read or is something else."""
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {}).get(_ABOUT, "{}"))
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - the file is no mapping
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"the detector {path} cannot be read: {error}; make one with python -m trainer fit-pose"
        ) from error
    if about.get("kind") != KIND:
        raise DataError(f"{path} is no {KIND}; make one with python -m trainer fit-pose")
    net = unfitted(about["side"])
    net.load_state_dict(weights)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    return Detector(net.requires_grad_(False).eval().to(device), digest)
