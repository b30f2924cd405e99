"""LPIPS with an AlexNet, and what it takes to import torchvision next to a CPU build of torch.

Shapes: B samples, C channels, H x W pixels.
"""

from __future__ import annotations

import sys
import warnings
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from trainer.frozen.weights import weights_hash

NET = "alex"
BACKBONE = "random (seed 0)"
SMALLEST_SIDE = 64  # AlexNet needs more pixels than the smallest images have
_declared: list[torch.library.Library] = []  # an operator lives only as long as its library object


class Lpips:
    """LPIPS (Zhang et al. 2018) with the published linear heads over a random backbone, which needs no download.

    The backbone is drawn from seed 0 without touching the process's generators, so it is the same in every run. `hash`
    identifies all its weights: scores with different hashes must not be compared.
    """

    def __init__(self, device: torch.device | str) -> None:
        ensure_torchvision()
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            # The package calls torchvision and torch.load in ways that both announce as deprecated.
            warnings.simplefilter("ignore")
            import lpips

            torch.default_generator.manual_seed(0)
            self._net = lpips.LPIPS(net=NET, pretrained=True, pnet_rand=True, verbose=False)
        self._net.requires_grad_(False).eval()
        self.hash = weights_hash(self._net)
        self._net.to(device)

    def __call__(self, a_BCHW: Tensor, b_BCHW: Tensor) -> Tensor:
        """Distance of each pair of images in [-1, 1], enlarged (bilinear) to 64 pixels if smaller: (B,)."""
        with torch.no_grad():
            distance_B111: Tensor = self._net(_enlarged(a_BCHW), _enlarged(b_BCHW))
            return distance_B111.flatten()


@lru_cache(maxsize=2)
def lpips_on(device: str) -> Lpips:
    """The LPIPS of this process on a device, built once."""
    return Lpips(device)


def ensure_torchvision() -> None:
    """Import torchvision even where its compiled operators do not load, as on a CPU build of torch.

    There the import fails on operators that nothing here calls; declaring them is enough.
    """
    try:
        import torchvision
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _declared.append(library)
        import torchvision  # noqa: F401


def _enlarged(image_BCHW: Tensor) -> Tensor:
    height, width = image_BCHW.shape[-2:]
    short = min(height, width)
    if short >= SMALLEST_SIDE:
        return image_BCHW
    size = (round(height * SMALLEST_SIDE / short), round(width * SMALLEST_SIDE / short))
    return interpolate(image_BCHW, size=size, mode="bilinear", align_corners=False)
