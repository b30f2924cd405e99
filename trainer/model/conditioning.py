"""Four conditions as one sequence of tokens, and what stands there when a condition is absent.

A dropped stream is exactly one learned null token; its other positions are masked. Training dropout, validation and
guidance all come through here, so "absent" has one meaning. Streams that are off contribute nothing at all.

Image patches and joints make up most of a sequence and are dropped together in nearly half of the samples. So samples
are sorted into at most two groups, long sequences first, and cross-attention runs once per group.

Shapes: B samples, G samples of one group, T tokens of one stream, S tokens of all streams, J joints, F features of a
stream, D channels.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from trainer.config import ModelConfig
from trainer.data.sample import Conditions, StreamShapes
from trainer.model.pooling import mean_of_joints, mean_of_neighbours, mean_of_words
from trainer.model.streams import FeatureEmbedding, PoseEmbedding

STREAMS = ("text", "cls", "patches", "pose")
LONG_STREAMS = ("patches", "pose")


class Group(NamedTuple):
    """Condition tokens of consecutive samples, and which of them count (boolean, shaped for attention)."""

    tokens_GSD: Tensor
    mask_G11S: Tensor


class Context(NamedTuple):
    """What the blocks see: groups that cover the batch in order, and the CLS vector for adaLN (None if off)."""

    groups: tuple[Group, ...]
    cls_BD: Tensor | None


class Conditioning(nn.Module):
    """Embeds every stream that is on, pools it if asked to, and joins them for cross-attention."""

    def __init__(self, config: ModelConfig, shapes: StreamShapes, pooled: Collection[str] = ()) -> None:
        super().__init__()
        widths = {"text": shapes.text_width, "cls": shapes.cls_width, "patches": shapes.patch_width}
        self.embed = nn.ModuleDict({name: FeatureEmbedding(config, size) for name, size in widths.items() if size})
        if shapes.pose_joints:
            self.embed["pose"] = PoseEmbedding(config, shapes.pose_joints)
        self.pooled = frozenset(pooled)

    def forward(self, conditions: Conditions, present: Mapping[str, Tensor], sizes: tuple[int, ...]) -> Context:
        """Embed the conditions of sum(sizes) samples. A stream that is not in `present` is present in every sample."""
        cls_BTD = None
        if "cls" in self.embed:
            cls_BTD, _ = self._stream("cls", conditions, present, sum(sizes))
        groups, start = [], 0
        for size in sizes:
            rows = slice(start, start + size)
            groups.append(
                self._group(_rows(conditions, rows), {name: mask[rows] for name, mask in present.items()}, size)
            )
            start += size
        return Context(tuple(groups), None if cls_BTD is None else cls_BTD[:, 0])

    def _group(self, conditions: Conditions, present: Mapping[str, Tensor], size: int) -> Group:
        streams = [self._stream(name, conditions, present, size) for name in STREAMS if name in self.embed]
        tokens, masks = zip(*streams, strict=True)
        return Group(torch.cat(tokens, dim=1), torch.cat(masks, dim=1)[:, None, None])

    def _stream(
        self, name: str, conditions: Conditions, present: Mapping[str, Tensor], size: int
    ) -> tuple[Tensor, Tensor]:
        """Tokens (G, T, D) and mask (G, T) of one stream, the null token where it is absent."""
        embed = self.embed[name]
        null_D = embed.null_D
        features_GTF, mask_GT = self._pooled_features(conditions, name)
        present_G = present.get(name)
        if features_GTF is None or (present_G is not None and present_G.device.type == "cpu" and not present_G.any()):
            return null_D.expand(size, 1, -1), torch.ones(size, 1, dtype=torch.bool, device=null_D.device)
        tokens_GTD = embed(features_GTF)
        if name == "pose" and name in self.pooled:
            tokens_GTD = mean_of_joints(tokens_GTD, features_GTF)
        if mask_GT is None:
            mask_GT = torch.ones(tokens_GTD.shape[:2], dtype=torch.bool, device=null_D.device)
        if present_G is None or (present_G.device.type == "cpu" and present_G.all()):
            return tokens_GTD, mask_GT
        present_G1 = present_G.to(null_D.device, non_blocking=True)[:, None]
        first_T = torch.arange(tokens_GTD.shape[1], device=null_D.device) == 0
        tokens_GTD = torch.where((~present_G1 & first_T)[..., None], null_D, tokens_GTD)
        return tokens_GTD, torch.where(present_G1, mask_GT, first_T)

    def _pooled_features(self, conditions: Conditions, name: str) -> tuple[Tensor | None, Tensor | None]:
        """Features and mask of one stream as they are embedded. Joints are pooled afterwards, when they have places."""
        features_GTF, mask_GT = _features(conditions, name)
        if features_GTF is None or name not in self.pooled or name == "pose":
            return features_GTF, mask_GT
        if name == "text":
            return mean_of_words(features_GTF, mask_GT), None
        return mean_of_neighbours(features_GTF, conditions.patch_grid), None


def is_long(present: Mapping[str, Tensor]) -> Tensor:
    """Samples whose sequence is long when these streams are present: booleans (B,)."""
    return torch.stack([present[name] for name in LONG_STREAMS if name in present]).any(dim=0)


def long_first(conditions: Conditions, present: Mapping[str, Tensor]) -> tuple[Tensor | None, tuple[int, int]] | None:
    """An order of the samples that puts long sequences first (None = as they are), and how many are long and short.

    None when one group is enough. Looks only at `present` on the CPU, so that no device has to be waited for.
    """
    given = {name: present.get(name) for name in LONG_STREAMS if _features(conditions, name)[0] is not None}
    if not given or any(mask is None or mask.device.type != "cpu" for mask in given.values()):
        return None
    long_B = is_long(given)
    count = int(long_B.sum())
    if count in (0, len(long_B)):
        return None
    order = None if long_B[:count].all() else long_B.logical_not().argsort(stable=True)
    return order, (count, len(long_B) - count)


def _features(conditions: Conditions, name: str) -> tuple[Tensor | None, Tensor | None]:
    """Features (B, T, F) and mask (B, T) of one stream; None where there is none."""
    if name == "text":
        return conditions.text_BTD, conditions.text_mask_BT
    if name == "cls":
        return (None if conditions.cls_BD is None else conditions.cls_BD.unsqueeze(1)), None
    return (conditions.patches_BPD if name == "patches" else conditions.pose_BJ3), None


def _rows(conditions: Conditions, rows: slice) -> Conditions:
    """Consecutive samples as views, without a copy."""
    return Conditions(
        text_BTD=_cut(conditions.text_BTD, rows),
        text_mask_BT=_cut(conditions.text_mask_BT, rows),
        cls_BD=_cut(conditions.cls_BD, rows),
        patches_BPD=_cut(conditions.patches_BPD, rows),
        patch_grid=conditions.patch_grid,
        pose_BJ3=_cut(conditions.pose_BJ3, rows),
    )


def _cut(features: Tensor | None, rows: slice) -> Tensor | None:
    return None if features is None else features[rows]
