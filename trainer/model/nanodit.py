"""NanoDiT: a diffusion transformer on pixels that predicts the clean image.

Shapes: B samples, C image channels, H x W pixels, N image tokens, K kept tokens, D channels, S condition tokens,
E channels per head.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from trainer.config import ModelConfig
from trainer.data.sample import Conditions, StreamShapes
from trainer.model.block import Block
from trainer.model.conditioning import Conditioning, Group, long_first
from trainer.model.embeddings import TimeEmbedding
from trainer.model.initial import initialise
from trainer.model.modulation import NORMS, Drive, modulate, shared_modulation
from trainer.model.packing import operations_per_token, partition
from trainer.model.patches import from_patches, patch_embedding, to_patches
from trainer.model.positions import positions_2d, rotation_2d
from trainer.model.tread import Route, gather_tokens, scatter_tokens
from trainer.precision.autocast import ComputingModule, full_precision, in_compute_dtype


class Output(NamedTuple):
    """The predicted clean image, not clamped, the hidden state of the tapped block, and what the head said.

    `hidden_BND` is None without a tap; inside the routed blocks it holds the kept tokens only. `head_BCHW` is what the
    run's prediction makes the clean image from.
    """

    x_BCHW: Tensor
    hidden_BND: Tensor | None
    head_BCHW: Tensor


class Places(NamedTuple):
    """Where the tokens of a grid stand: vectors that are added to them, or rotations of queries and keys."""

    added_ND: Tensor | None
    rotation_1NE: Tensor | None


class Prediction(Protocol):
    """What the numbers of the head mean. It is a part of the model, so that its weights say all that is needed."""

    def clean(self, y_BCHW: Tensor, z_BCHW: Tensor, t_B: Tensor) -> Tensor:
        """The clean image that y stands for, given the noisy one and its times; not clamped: (B, C, H, W)."""
        ...


class NanoDiT(ComputingModule):
    """Pixel DiT with cross-attention to text, image CLS, image patches and pose; a stream of width 0 is off.

    Without a `prediction` the head gives the clean image itself.
    """

    def __init__(
        self,
        config: ModelConfig,
        streams: StreamShapes,
        prediction: Prediction | None = None,
        image_channels: int = 3,
        pooled: Collection[str] = (),
    ) -> None:
        super().__init__()
        self.patch, self.width, self.head_width = config.patch, config.width, config.width // config.heads
        self.few_shapes = False  # whoever compiles the blocks wants their inputs in few shapes
        self.turns, self.norm = config.positions == "rope", NORMS[config.norm]
        features = image_channels * config.patch**2
        self.patches = patch_embedding(features, config.width, config.bottleneck)
        self.time = TimeEmbedding(config.width)
        self.conditioning = Conditioning(config, streams, pooled)
        self.shared_modulation = shared_modulation(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.block_count))
        self.mask_D = nn.Parameter(torch.empty(config.width)) if config.maskdit.enabled else None
        self.modulation = nn.Linear(config.width, 2 * config.width) if config.final_modulation else None
        self.head = nn.Linear(config.width, features)
        self.smooth = nn.Conv2d(image_channels, image_channels, 3, padding=1)
        self.prediction = prediction

    def forward(
        self,
        z_BCHW: Tensor,
        t_B: Tensor,
        conditions: Conditions,
        present: Mapping[str, Tensor] | None = None,
        route: Route | None = None,
        tap: int | None = None,
    ) -> Output:
        """Predict the clean image from the noisy one at times `t_B` in [0, 1], 1 being noise.

        `present` maps a stream to booleans (B,); a stream that is not named is present wherever `conditions` has it.
        `route` sends only the kept tokens through the routed blocks. `tap` asks for the output of that block.
        """
        present = present or {}
        if z_BCHW.device.type == "cpu" and not self.few_shapes:
            sizes = self._sizes_by_work(z_BCHW, conditions, present)
            return self._predict(z_BCHW, t_B, conditions, present, route, tap, sizes)
        packing = long_first(conditions, present)
        if packing is None:
            return self._predict(z_BCHW, t_B, conditions, present, route, tap, (len(t_B),))
        order, sizes = packing
        if order is None:
            return self._predict(z_BCHW, t_B, conditions, present, route, tap, sizes)
        there = order.to(z_BCHW.device, non_blocking=True)
        output = self._predict(
            z_BCHW[there],
            t_B[there],
            conditions.select(there),
            {name: mask[order] for name, mask in present.items()},
            None if route is None else route.select(there),
            tap,
            sizes,
        )
        back = there.argsort()
        hidden_BND = None if output.hidden_BND is None else output.hidden_BND[back]
        return Output(output.x_BCHW[back], hidden_BND, output.head_BCHW[back])

    def _sizes_by_work(self, z_BCHW: Tensor, conditions: Conditions, present: Mapping[str, Tensor]) -> tuple[int, ...]:
        """Sizes of groups of consecutive samples for which the blocks have the least to do."""
        tokens = (z_BCHW.shape[2] // self.patch) * (z_BCHW.shape[3] // self.patch)
        lengths = self.conditioning.lengths(conditions, present, len(z_BCHW))
        return partition(lengths, operations_per_token(self.width, tokens))

    @in_compute_dtype
    def _predict(
        self,
        z_BCHW: Tensor,
        t_B: Tensor,
        conditions: Conditions,
        present: Mapping[str, Tensor],
        route: Route | None,
        tap: int | None,
        sizes: tuple[int, ...],
    ) -> Output:
        """The prediction for samples that already stand group by group; `sizes` counts the samples of each group."""
        grid = (z_BCHW.shape[2] // self.patch, z_BCHW.shape[3] // self.patch)
        context = self.conditioning(conditions, present, sizes)
        time_BD = self.time(t_B)
        drive = self._drive(time_BD if context.cls_BD is None else time_BD + context.cls_BD)
        # The residual stream is as precise as the images, whatever the blocks compute in.
        x_BND = self.patches(to_patches(z_BCHW, self.patch)).to(z_BCHW.dtype)
        # Positions are added before routing, or gathered with it: they travel with their tokens.
        places = self._places(grid, x_BND)
        x_BND = x_BND if places.added_ND is None else x_BND + places.added_ND
        x_BND, hidden_BND = self._blocks(x_BND, drive, context.groups, places, route, tap)
        with full_precision(z_BCHW.device):
            image_BCHW = from_patches(self.head(self._modulate_last(x_BND, drive)), grid, self.patch)
            head_BCHW = image_BCHW + self._smooth(image_BCHW)
            x_BCHW = head_BCHW if self.prediction is None else self.prediction.clean(head_BCHW, z_BCHW, t_B)
        return Output(x_BCHW, hidden_BND, head_BCHW)

    def _smooth(self, image_BCHW: Tensor) -> Tensor:
        """The closing convolution; on a CPU in the layout in which few channels take a third of the time."""
        if image_BCHW.device.type != "cpu":
            return self.smooth(image_BCHW)
        return self.smooth(image_BCHW.contiguous(memory_format=torch.channels_last)).contiguous()

    def _drive(self, input_BD: Tensor) -> Drive:
        drive_BD = silu(input_BD)
        return Drive(drive_BD, None if self.shared_modulation is None else self.shared_modulation(drive_BD))

    def _places(self, grid: tuple[int, int], x_BND: Tensor) -> Places:
        if self.turns:
            return Places(None, rotation_2d(grid, self.head_width, x_BND.device))
        return Places(positions_2d(grid, x_BND.shape[-1], x_BND.device), None)

    def _modulate_last(self, x_BND: Tensor, drive: Drive) -> Tensor:
        if self.modulation is None:
            return self.norm(x_BND)
        shift_B1D, scale_B1D = self.modulation(drive.input_BD.to(x_BND.dtype)).unsqueeze(1).chunk(2, dim=-1)
        return modulate(x_BND, shift_B1D, scale_B1D, self.norm)

    def _blocks(
        self,
        x_BND: Tensor,
        drive: Drive,
        groups: tuple[Group, ...],
        places: Places,
        route: Route | None,
        tap: int | None,
    ) -> tuple[Tensor, Tensor | None]:
        hidden_BND, skipped_BND, rotation_BNE = None, x_BND, places.rotation_1NE
        for index, block in enumerate(self.blocks):
            if route is not None and index == route.first:
                skipped_BND, x_BND = self._skipped(x_BND, places), gather_tokens(x_BND, route.keep_BK)
                rotation_BNE = None if places.rotation_1NE is None else places.rotation_1NE[0][route.keep_BK]
            x_BND = block(x_BND, drive, groups, rotation_BNE)
            if index == tap:
                hidden_BND = x_BND
            if route is not None and index == route.last:
                x_BND, rotation_BNE = scatter_tokens(skipped_BND, x_BND, route.keep_BK), places.rotation_1NE
        return x_BND, hidden_BND

    def _skipped(self, x_BND: Tensor, places: Places) -> Tensor:
        """What comes back where tokens were left out: themselves (TREAD), or the mask token in its place (MaskDiT)."""
        if self.mask_D is None:
            return x_BND
        return (self.mask_D if places.added_ND is None else self.mask_D + places.added_ND).expand_as(x_BND)


def build(
    config: ModelConfig,
    streams: StreamShapes,
    run_seed: int,
    device: torch.device | str = "cpu",
    prediction: Prediction | None = None,
    pooled: Collection[str] = (),
) -> NanoDiT:
    """A NanoDiT with the initial weights of `run_seed` on `device`; `pooled` streams are averaged first."""
    with torch.device("meta"):
        model = NanoDiT(config, streams, pooled=pooled)
    model.to_empty(device="cpu")
    initialise(model, run_seed, published=config.initial_weights == "published")
    model.prediction = prediction
    return model.to(device)
