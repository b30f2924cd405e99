"""LPIPS (Zhang et al. 2018, arXiv 1801.03924) as a loss: weighted squared differences of unit-length features.

The convolutional nets are laid out and named as torchvision's, so that their published weights can be read; the linear
heads are those of the package `lpips`. Nothing here imports either.

Shapes: B images, C channels, h x w cells of a layer.
"""

from __future__ import annotations

from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from trainer.errors import ConfigError, Issue
from trainer.frozen.weights import draw_weights, frozen, read_weights, weights_hash

KEY = "perceptual.lpips.backbone"
_SMALLEST_LENGTH = 1e-10
# The mean and spread of ImageNet's colours, for images in [-1, 1]; constants of the published metric.
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)


class _Layout(NamedTuple):
    """The layers of a net, after which of them features are compared, their channels, and the file of the weights."""

    layers: tuple[nn.Module, ...]
    taps: tuple[int, ...]
    channels: tuple[int, ...]
    file: str


class LpipsNet(nn.Module):
    """The distance of two batches of images in [-1, 1]. `hash` identifies its weights, `label` says what they are."""

    shift_1C11: Tensor
    scale_1C11: Tensor

    def __init__(self, net: str, backbone: str) -> None:
        super().__init__()
        with torch.device("meta"):
            layout = _LAYOUTS[net]()
            self.features = nn.Sequential(*layout.layers)
            self.heads = nn.ModuleList(nn.Conv2d(channels, 1, 1, bias=False) for channels in layout.channels)
        self.to_empty(device="cpu")
        self._taps = layout.taps
        self.register_buffer("shift_1C11", torch.tensor(_SHIFT)[None, :, None, None])
        self.register_buffer("scale_1C11", torch.tensor(_SCALE)[None, :, None, None])
        if backbone == "random":
            draw_weights(self.features)
        else:
            self._read_backbone(Path(backbone), net, layout.file)
        self._read_heads(net)
        # Up to 2.6 times as fast, on a CPU; torch does not declare this argument.
        frozen(self).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.hash = weights_hash(self)
        self.label = f"LPIPS {net}, backbone {'random (seed 0)' if backbone == 'random' else Path(backbone).name}"

    def forward(self, predicted_BCHW: Tensor, true_BCHW: Tensor) -> Tensor:
        """Distance of each pair: (B,). Gradients reach the predicted images only."""
        with torch.no_grad():
            targets = self._unit_features(true_BCHW)
        total_B = predicted_BCHW.new_zeros(len(predicted_BCHW))
        for head, own_BChw, other_BChw in zip(self.heads, self._unit_features(predicted_BCHW), targets, strict=True):
            total_B = total_B + head((own_BChw - other_BChw).square()).mean(dim=(1, 2, 3))
        return total_B

    def _unit_features(self, image_BCHW: Tensor) -> list[Tensor]:
        """Features after every tap, of length 1 in every cell; where nothing responds they are 0, with gradient 0."""
        laid_out_BCHW = image_BCHW.contiguous(memory_format=torch.channels_last)
        x_BChw, found = (laid_out_BCHW - self.shift_1C11) / self.scale_1C11, []
        for index, layer in enumerate(islice(self.features, self._taps[-1] + 1)):
            x_BChw = layer(x_BChw)
            if index in self._taps:
                # Without the bound one cell in which nothing responds, 0 / 0, makes the whole distance NaN.
                length_B1hw = x_BChw.square().sum(dim=1, keepdim=True).clamp(min=_SMALLEST_LENGTH**2).sqrt()
                found.append(x_BChw / length_B1hw)
        return found

    def _read_backbone(self, path: Path, net: str, file: str) -> None:
        what = f"the absolute path of torchvision's weights of {net} ({file}, or the same as .safetensors)"
        stored = read_weights(path, KEY, what)
        own = {name: stored.get(f"features.{name}") for name in self.features.state_dict()}
        missing = sorted(name for name, value in own.items() if value is None)
        if missing:
            raise ConfigError(
                [Issue(KEY, f"{path} has no features.{missing[0]}: not weights of {net}", f"random, or {what}")]
            )
        try:
            self.features.load_state_dict(own)
        except RuntimeError as error:
            raise ConfigError([Issue(KEY, f"{path} does not fit {net}: {error}", f"random, or {what}")]) from error

    def _read_heads(self, net: str) -> None:
        package = find_spec("lpips")
        if package is None or not package.submodule_search_locations:
            raise ConfigError([Issue("perceptual.lpips", "needs the package lpips, for the weights of its heads")])
        path = Path(package.submodule_search_locations[0]) / "weights" / "v0.1" / f"{net}.pth"
        stored = read_weights(path, "perceptual.lpips", "a complete installation of lpips 0.1.4")
        for index, head in enumerate(self.heads):
            head.get_parameter("weight").data.copy_(stored[f"lin{index}.model.1.weight"])


class _Fire(nn.Module):
    """SqueezeNet's module (arXiv 1602.07360): few channels, then 1x1 and 3x3 kernels side by side."""

    def __init__(self, inputs: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x_BChw: Tensor) -> Tensor:
        """(B, inputs, h, w) -> (B, 2 expanded, h, w)."""
        x_BChw = relu(self.squeeze(x_BChw))
        return torch.cat([relu(self.expand1x1(x_BChw)), relu(self.expand3x3(x_BChw))], dim=1)


def _vgg() -> _Layout:
    """The convolutions of VGG-16 (arXiv 1409.1556), features after the last one of each size."""
    layers: list[nn.Module] = []
    taps, inputs = [], 3
    for channels, depth in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        layers += [nn.MaxPool2d(2)] if layers else []
        for _ in range(depth):
            layers += [nn.Conv2d(inputs, channels, 3, padding=1), nn.ReLU(inplace=True)]
            inputs = channels
        taps.append(len(layers) - 1)
    return _Layout(tuple(layers), tuple(taps), (64, 128, 256, 512, 512), "vgg16-397923af.pth")


def _squeeze() -> _Layout:
    """The convolutions of SqueezeNet 1.1, features after the first one, before each halving and after the last four."""

    def pool() -> nn.Module:
        return nn.MaxPool2d(3, stride=2, ceil_mode=True)

    layers = (
        *(nn.Conv2d(3, 64, 3, stride=2), nn.ReLU(inplace=True), pool()),
        *(_Fire(64, 16, 64), _Fire(128, 16, 64), pool()),
        *(_Fire(128, 32, 128), _Fire(256, 32, 128), pool()),
        *(_Fire(256, 48, 192), _Fire(384, 48, 192), _Fire(384, 64, 256), _Fire(512, 64, 256)),
    )
    return _Layout(layers, (1, 4, 7, 9, 10, 11, 12), (64, 128, 256, 384, 384, 512, 512), "squeezenet1_1-b8a52dc0.pth")


_LAYOUTS = {"vgg": _vgg, "squeeze": _squeeze}
