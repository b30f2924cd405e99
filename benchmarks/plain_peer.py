"""The peer of the training step: the same transformer and the same step in plain PyTorch, nothing of ours in it.

Written from the description of the model alone, the way one writes a DiT with `torch.nn`: modules, dense attention
masks, a `DataLoader`, fused AdamW, `AveragedModel`, and a loop that logs `loss.item()` at every step.

Shapes: B samples, N image tokens, K conditions, J joints, P pixels of a patch times colours, D channels, H heads, E
channels of a head, F features of a stream, S streams, C x Y x X colours, rows and columns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, TensorDataset

if TYPE_CHECKING:
    from benchmarks.train_step_rig import Sizes

JOINTS = 133
TIME_FEATURES = 256
MIN_T = 0.05
STREAMS = ("text", "cls", "patches", "pose")
DROPOUT = {
    (False, False, False, False): 0.10,
    (True, False, False, False): 0.25,
    (False, True, False, False): 0.05,
    (False, False, True, False): 0.05,
    (True, True, True, False): 0.10,
    (False, False, False, True): 0.05,
    (True, True, True, True): 0.40,
}
"""Which of the streams a sample keeps, with the probability of that."""


class Attention(nn.Module):
    """Multi-head attention with normed queries and keys; keys are of `context_BKD`, or of the tokens themselves."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width, bias=False)
        self.kv = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.q_norm = nn.RMSNorm(width // heads)
        self.k_norm = nn.RMSNorm(width // heads)

    def forward(self, x_BND: Tensor, context_BKD: Tensor | None = None, mask_B11K: Tensor | None = None) -> Tensor:
        keys_BKD = x_BND if context_BKD is None else context_BKD
        q_BHNE = self._split(self.q(x_BND))
        k_BHKE, v_BHKE = (self._split(part) for part in self.kv(keys_BKD).chunk(2, dim=-1))
        q_BHNE, k_BHKE = self.q_norm(q_BHNE), self.k_norm(k_BHKE)
        y_BHNE = F.scaled_dot_product_attention(q_BHNE, k_BHKE, v_BHKE, attn_mask=mask_B11K)
        return self.out(y_BHNE.transpose(1, 2).flatten(2))

    def _split(self, x_BND: Tensor) -> Tensor:
        return x_BND.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class Block(nn.Module):
    """Self-attention, cross-attention and MLP, each shifted, scaled and gated by time and CLS."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width, elementwise_affine=False) for _ in range(3))
        self.self_attention = Attention(width, heads)
        self.cross_attention = Attention(width, heads)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width, bias=False),
            nn.GELU(approximate="tanh"),
            nn.Linear(4 * width, width, bias=False),
        )
        self.modulation = nn.Sequential(nn.SiLU(), zeroed(nn.Linear(width, 9 * width)))

    def forward(self, x_BND: Tensor, time_BD: Tensor, context_BKD: Tensor, mask_B11K: Tensor) -> Tensor:
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2, shift_3, scale_3, gate_3 = (
            self.modulation(time_BD).unsqueeze(1).chunk(9, dim=-1)
        )
        x_BND = x_BND + gate_1 * self.self_attention(modulate(self.norms[0](x_BND), shift_1, scale_1))
        attended_BND = self.cross_attention(modulate(self.norms[1](x_BND), shift_2, scale_2), context_BKD, mask_B11K)
        x_BND = x_BND + gate_2 * attended_BND
        return x_BND + gate_3 * self.mlp(modulate(self.norms[2](x_BND), shift_3, scale_3))


class Conditions(nn.Module):
    """The four streams as one sequence of tokens, and which of them may be seen.

    A stream that a sample does not keep is its null token in the first place; the other places are hidden by the mask.
    """

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        featured = [
            nn.Sequential(nn.LayerNorm(features, elementwise_affine=False), nn.Linear(features, width))
            for _ in STREAMS[:3]
        ]
        pose = nn.Sequential(nn.Linear(3, width), nn.SiLU(), nn.Linear(width, width))
        self.embed = nn.ModuleList([*featured, pose])
        self.joint_JD = nn.Parameter(0.02 * torch.randn(JOINTS, width))
        self.kind_SD = nn.Parameter(0.02 * torch.randn(len(STREAMS), width))
        self.null_SD = nn.Parameter(0.02 * torch.randn(len(STREAMS), width))

    def forward(self, streams: Sequence[Tensor], kept_BS: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Conditions (B, K, D), their mask (B, 1, 1, K), and the CLS token (B, D)."""
        tokens, masks = [], []
        for index, (embed, stream) in enumerate(zip(self.embed, streams, strict=True)):
            x_BKD = embed(stream)
            if STREAMS[index] == "pose":
                x_BKD = x_BKD + self.joint_JD
            kept_B11 = kept_BS[:, index, None, None]
            x_BKD = torch.where(kept_B11, x_BKD, self.null_SD[index]) + self.kind_SD[index]
            is_first_K = torch.arange(x_BKD.shape[1], device=x_BKD.device) == 0
            tokens.append(x_BKD)
            masks.append(kept_B11[:, :, 0] | is_first_K)
        cls_BD = tokens[STREAMS.index("cls")][:, 0]
        return torch.cat(tokens, dim=1), torch.cat(masks, dim=1)[:, None, None, :], cls_BD


class PlainDiT(nn.Module):
    """A pixel-space DiT with cross-attention that predicts the clean image; `keep` tokens for TREAD, else None."""

    def __init__(self, sizes: Sizes, keep: int | None = None) -> None:
        super().__init__()
        width, values = sizes.width, 3 * sizes.patch**2
        self.patch, self.keep = sizes.patch, keep
        self.embed = nn.Linear(values, width)
        self.register_buffer("positions_ND", sincos_2d(sizes.size // sizes.patch, width), persistent=False)
        self.time = nn.Sequential(nn.Linear(TIME_FEATURES, width), nn.SiLU(), nn.Linear(width, width))
        self.conditions = Conditions(sizes.features, width)
        self.blocks = nn.ModuleList(Block(width, sizes.heads) for _ in range(sizes.depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Sequential(nn.SiLU(), zeroed(nn.Linear(width, 2 * width)))
        self.head = zeroed(nn.Linear(width, values))
        self.smooth = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, z_BCYX: Tensor, t_B: Tensor, streams: Sequence[Tensor], kept_BS: Tensor) -> Tensor:
        """The clean image that is predicted for noisy images z at times t in [0, 1]."""
        context_BKD, mask_B11K, cls_BD = self.conditions(streams, kept_BS)
        time_BD = self.time(time_features(t_B)) + cls_BD
        x_BND = self.embed(F.pixel_unshuffle(z_BCYX, self.patch).flatten(2).transpose(1, 2)) + self.positions_ND
        x_BND = self._through_blocks(x_BND, time_BD, context_BKD, mask_B11K)
        shift_B1D, scale_B1D = self.modulation(time_BD).unsqueeze(1).chunk(2, dim=-1)
        y_BNP = self.head(modulate(self.norm(x_BND), shift_B1D, scale_B1D))
        rows = z_BCYX.shape[2] // self.patch
        image_BCYX = F.pixel_shuffle(y_BNP.transpose(1, 2).unflatten(2, (rows, -1)), self.patch)
        return image_BCYX + self.smooth(image_BCYX)

    def _through_blocks(self, x_BND: Tensor, time_BD: Tensor, context_BKD: Tensor, mask_B11K: Tensor) -> Tensor:
        """Through all blocks; in training with TREAD all but first and last see `keep` tokens of a sample."""
        routed = self.keep is not None and self.training
        last = len(self.blocks) - 2
        for number, block in enumerate(self.blocks):
            if routed and number == 1:
                all_BND = x_BND
                order_BN = torch.rand(x_BND.shape[:2], device=x_BND.device).argsort(dim=1)
                index_BND = order_BN[:, : self.keep].sort(dim=1).values.unsqueeze(-1).expand(-1, -1, x_BND.shape[2])
                x_BND = x_BND.gather(1, index_BND)
            x_BND = block(x_BND, time_BD, context_BKD, mask_B11K)
            if routed and number == last:
                x_BND = all_BND.scatter(1, index_BND, x_BND)
        return x_BND


class Training:
    """A training as a loop over a `DataLoader`; `log` has loss and gradient norm of every step."""

    def __init__(self, sizes: Sizes, data: TensorDataset, keep: int | None, steps: int, lr: float = 1e-4) -> None:
        torch.manual_seed(0)
        self.model = PlainDiT(sizes, keep)
        self.loader = DataLoader(data, batch_size=sizes.batch, shuffle=True, drop_last=True)
        matrices = [weight for weight in self.model.parameters() if weight.ndim == 2]
        others = [weight for weight in self.model.parameters() if weight.ndim != 2]
        groups = [{"params": matrices, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), fused=True)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, steps, eta_min=0.01 * lr)
        self.averages = [
            AveragedModel(self.model, multi_avg_fn=lerp(0.5 ** (1 / (share * steps)))) for share in (0.05, 0.20)
        ]
        self.chances = torch.tensor(list(DROPOUT.values()))
        self.kinds_KS = torch.tensor(list(DROPOUT))
        self.log: list[tuple[float, float]] = []

    def epoch(self) -> None:
        """Every sample once."""
        for pixels_BCYX, *streams in self.loader:
            self.step(pixels_BCYX, [stream.float() for stream in streams])

    def step(self, pixels_BCYX: Tensor, streams: Sequence[Tensor]) -> None:
        """One update with uint8 pixels and the four streams."""
        x_BCYX = pixels_BCYX.float() / 127.5 - 1.0
        t_B = torch.randn(len(x_BCYX)).sigmoid()
        t_B111 = t_B[:, None, None, None]
        z_BCYX = (1 - t_B111) * x_BCYX + t_B111 * torch.randn_like(x_BCYX)
        kept_BS = self.kinds_KS[torch.multinomial(self.chances, len(x_BCYX), replacement=True)]
        predicted_BCYX = self.model(z_BCYX, t_B, streams, kept_BS)
        loss = (((predicted_BCYX - x_BCYX) / t_B111.clamp(min=MIN_T)) ** 2).mean()
        self.optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        for average in self.averages:
            average.update_parameters(self.model)
        self.log.append((loss.item(), norm.item()))


def noise_images(sizes: Sizes, count: int) -> TensorDataset:
    """Images and conditions of noise in memory: uint8 pixels, float16 text, CLS, patches and joints."""
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, sizes.size, sizes.size), generator=draw, dtype=torch.uint8)
    shapes = ((sizes.text, sizes.features), (1, sizes.features), (sizes.patches, sizes.features), (JOINTS, 3))
    return TensorDataset(pixels, *(torch.randn(count, *shape, generator=draw).half() for shape in shapes))


def modulate(x_BND: Tensor, shift_B1D: Tensor, scale_B1D: Tensor) -> Tensor:
    """Scaled and shifted per sample."""
    return x_BND * (1 + scale_B1D) + shift_B1D


def zeroed(layer: nn.Linear) -> nn.Linear:
    """The layer with all weights at zero."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def time_features(t_B: Tensor) -> Tensor:
    """Sines and cosines of 1000 t, as of DDPM: (B, 256)."""
    half = TIME_FEATURES // 2
    rates = torch.exp(-math.log(10_000.0) * torch.arange(half, device=t_B.device) / half)
    angles = 1000.0 * t_B[:, None] * rates
    return torch.cat((angles.cos(), angles.sin()), dim=1)


def sincos_2d(side: int, width: int) -> Tensor:
    """Fixed positions of a square grid in raster order, half of the channels for each axis: (N, D)."""
    rates = 10_000.0 ** (-torch.arange(width // 4) / (width / 4))
    angles = torch.arange(side)[:, None] * rates
    axis = torch.cat((angles.sin(), angles.cos()), dim=1)
    return torch.cat((axis.repeat_interleave(side, dim=0), axis.repeat(side, 1)), dim=1)


def lerp(decay: float):
    """An average of weights with this decay, free of the bias towards its start: a rule for `AveragedModel`."""

    @torch.no_grad()
    def update(averages: list[Tensor], weights: list[Tensor], seen: Tensor) -> None:
        torch._foreach_lerp_(averages, weights, (1 - decay) / (1 - decay ** (int(seen) + 1)))

    return update
