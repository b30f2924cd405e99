"""Patch features of a self-supervised vision transformer, and their distance as a loss (P-DINO, arXiv 2602.02493).

Shapes: B images, C channels, H x W pixels, P patches, F features of a patch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, gelu

from trainer.errors import ConfigError, Issue
from trainer.evaluate.perceptual import ensure_torchvision
from trainer.frozen.sides import DINO_RANDOM_PATCH
from trainer.frozen.weights import draw_weights, frozen, weights_hash
from trainer.model.positions import positions_2d

KEY = "perceptual.dino.backbone"
STAND_IN_WIDTH, STAND_IN_DEPTH, STAND_IN_HEADS = 64, 2, 4
_MEAN = (0.485, 0.456, 0.406)
_SPREAD = (0.229, 0.224, 0.225)


class PatchEncoder(Protocol):
    """A vision transformer: `patch` is the side of a patch in pixels."""

    patch: int

    def __call__(self, pixels_BCHW: Tensor) -> Tensor:
        """Patch features after the last block, in raster order, of images in ImageNet's normal colours: (B, P, F)."""
        ...


class DinoNet(nn.Module):
    """The distance of two batches of images in [-1, 1]. `hash` identifies its weights, `label` says what they are."""

    mean_1C11: Tensor
    spread_1C11: Tensor

    def __init__(self, backbone: str) -> None:
        super().__init__()
        self.encoder: PatchEncoder = StandIn() if backbone == "random" else Pretrained(backbone)
        self.register_buffer("mean_1C11", torch.tensor(_MEAN)[None, :, None, None])
        self.register_buffer("spread_1C11", torch.tensor(_SPREAD)[None, :, None, None])
        frozen(self)
        self.patch = self.encoder.patch
        self.hash = weights_hash(self)
        named = "a random stand-in (seed 0) that knows nothing of DINO" if backbone == "random" else backbone
        self.label = f"DINO features of {named}"

    def forward(self, predicted_BCHW: Tensor, true_BCHW: Tensor) -> Tensor:
        """Mean over the patches of 1 - cosine, in [0, 2]: (B,). Gradients reach the predicted images only."""
        with torch.no_grad():
            target_BPF = self._features(true_BCHW)
        return (1.0 - cosine_similarity(self._features(predicted_BCHW), target_BPF, dim=-1)).mean(dim=1)

    def _features(self, image_BCHW: Tensor) -> Tensor:
        return self.encoder(((image_BCHW + 1.0) / 2.0 - self.mean_1C11) / self.spread_1C11)


class StandIn(nn.Module):
    """A small transformer of random weights, drawn from seed 0: the shapes of DINOv2 with 64 features a patch."""

    patch = DINO_RANDOM_PATCH

    def __init__(self) -> None:
        super().__init__()
        width = STAND_IN_WIDTH
        with torch.random.fork_rng(devices=[]):  # what torch draws here is drawn over below
            self.embed = nn.Conv2d(3, width, self.patch, stride=self.patch)
            self.blocks = nn.ModuleList(_Block(width, STAND_IN_HEADS) for _ in range(STAND_IN_DEPTH))
            self.norm = nn.LayerNorm(width)
        draw_weights(self)

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        """(B, C, H, W), whole patches -> (B, P, F)."""
        x_BFhw = self.embed(pixels_BCHW)
        x_BPF = x_BFhw.flatten(2).transpose(1, 2)
        x_BPF = x_BPF + positions_2d((x_BFhw.shape[2], x_BFhw.shape[3]), x_BPF.shape[-1], x_BPF.device)
        for block in self.blocks:
            x_BPF = block(x_BPF)
        return self.norm(x_BPF)


class _Block(nn.Module):
    """Attention and an MLP, each behind a norm and beside a residual."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x_BPF: Tensor) -> Tensor:
        """(B, P, F) -> (B, P, F)."""
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(self.norm1(x_BPF)).chunk(3, -1)
        )
        attended = nn.functional.scaled_dot_product_attention(q, k, v)
        x_BPF = x_BPF + self.out(attended.transpose(1, 2).flatten(2))
        return x_BPF + self.fc2(gelu(self.fc1(self.norm2(x_BPF))))


class Pretrained(nn.Module):
    """A DINOv2 or DINOv3 through transformers: a folder with config.json and model.safetensors, or an id on the hub."""

    def __init__(self, backbone: str) -> None:
        super().__init__()
        self.net = _from_pretrained(backbone)
        patch = getattr(self.net.config, "patch_size", None)
        if not isinstance(patch, int):
            raise _unusable(f"{backbone} is a {self.net.config.model_type}, which has no patches")
        self.patch = patch
        self._others = 1 + (getattr(self.net.config, "num_register_tokens", 0) or 0)

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        """(B, C, H, W), whole patches -> (B, P, F); class token and registers are left out."""
        return self.net(pixel_values=pixels_BCHW).last_hidden_state[:, self._others :]


def _from_pretrained(backbone: str) -> Any:
    ensure_torchvision()  # transformers fails to import beside a torchvision that cannot load its operators
    try:
        from transformers import AutoModel
    except ImportError as error:
        raise _unusable(f"{backbone!r} needs transformers: pip install 'armature[encoders]'") from error
    if Path(backbone).is_absolute() and not (Path(backbone) / "config.json").is_file():
        raise _unusable(f"{backbone} is no folder with a config.json")
    try:
        net, found = AutoModel.from_pretrained(backbone, dtype=torch.float32, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise _unusable(f"{backbone} cannot be loaded: {error}") from error
    # What a file lacks would silently be drawn at random.
    missing = sorted(name for name in found["missing_keys"] if not name.endswith("mask_token"))
    if missing:
        raise _unusable(f"{backbone} holds no {missing[0]}: its weights are not those of its config.json")
    return net


def _unusable(message: str) -> ConfigError:
    allowed = "random, the absolute path of a folder with config.json and model.safetensors of a DINOv2 or DINOv3, or "
    return ConfigError([Issue(KEY, message, allowed + "its id on the hub where this machine reaches or has cached it")])
