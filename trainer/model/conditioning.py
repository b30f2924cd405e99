"""Four conditions as one sequence of tokens, and what stands there when a condition is absent.

A dropped stream is exactly one learned null token; its other positions are masked. Training dropout, validation and
guidance all come through here, so "absent" has one meaning. Streams that are off contribute nothing at all.

Samples differ in length, and what is dropped need not be computed: cross-attention runs once per group of samples. On a
CPU packing.py says which samples share a group. On a GPU, where few shapes should repeat, image patches and joints
decide, which make up most of a sequence and are dropped together in nearly half of the samples: long ones come first.

Shapes: B samples, G samples of one group, T tokens of one stream, S tokens of all streams, J joints, F features of a
stream, D channels.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from operator import itemgetter
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
    """Condition tokens of consecutive samples, and which of them count (boolean, shaped for attention; None = all)."""

    tokens_GSD: Tensor
    mask_G11S: Tensor | None


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
            kept = {name: mask[rows] for name, mask in present.items()}
            groups.append(self._group(conditions.each(itemgetter(rows)), kept, size))  # views, no copies
            start += size
        return Context(tuple(groups), None if cls_BTD is None else cls_BTD[:, 0])

    def lengths(self, conditions: Conditions, present: Mapping[str, Tensor], size: int) -> list[tuple[int, ...]]:
        """Tokens of every stream that is on, sample by sample; looks at masks, so it is for conditions on a CPU."""
        return list(zip(*(self._lengths(name, conditions, present, size) for name in self.embed), strict=True))

    def _lengths(self, name: str, conditions: Conditions, present: Mapping[str, Tensor], size: int) -> list[int]:
        features_GTF, mask_GT = _features(conditions, name)
        if features_GTF is None or (name in self.pooled and name != "patches"):
            return [1] * size
        if mask_GT is not None:
            found = mask_GT.sum(dim=1).tolist()
        elif name in self.pooled:
            found = [math.prod((side + 1) // 2 for side in conditions.patch_grid)] * size
        else:
            found = [features_GTF.shape[1]] * size
        keeps = present[name].tolist() if name in present else [True] * size
        return [length if kept else 1 for length, kept in zip(found, keeps, strict=True)]

    def _group(self, conditions: Conditions, present: Mapping[str, Tensor], size: int) -> Group:
        streams = [self._stream(name, conditions, present, size) for name in STREAMS if name in self.embed]
        tokens_GSD = torch.cat([tokens_GTD for tokens_GTD, _ in streams], dim=1)
        if all(mask_GT is None for _, mask_GT in streams):
            return Group(tokens_GSD, None)
        masks = [_everything(tokens_GTD) if mask_GT is None else mask_GT for tokens_GTD, mask_GT in streams]
        return Group(tokens_GSD, torch.cat(masks, dim=1)[:, None, None])

    def _stream(
        self, name: str, conditions: Conditions, present: Mapping[str, Tensor], size: int
    ) -> tuple[Tensor, Tensor | None]:
        """Tokens (G, T, D) of one stream, the null token where it is absent, and which count (G, T; None = all)."""
        embed = self.embed[name]
        assert isinstance(embed, FeatureEmbedding | PoseEmbedding), "nothing else embeds a stream"
        null_D = embed.null_D
        features_GTF, mask_GT = self._pooled_features(conditions, name)
        present_G = present.get(name)
        if features_GTF is None or (present_G is not None and present_G.device.type == "cpu" and not present_G.any()):
            return null_D.expand(size, 1, -1), None
        if mask_GT is not None and mask_GT.device.type == "cpu":
            features_GTF, mask_GT = _trimmed(features_GTF, mask_GT, present_G)
        tokens_GTD = embed(features_GTF)
        if name == "pose" and name in self.pooled:
            tokens_GTD = mean_of_joints(tokens_GTD, features_GTF)
        if present_G is None or (present_G.device.type == "cpu" and present_G.all()):
            return tokens_GTD, mask_GT
        present_G1 = present_G.to(null_D.device, non_blocking=True)[:, None]
        first_T = torch.arange(tokens_GTD.shape[1], device=null_D.device) == 0
        tokens_GTD = torch.where((~present_G1 & first_T)[..., None], null_D, tokens_GTD)
        return tokens_GTD, torch.where(present_G1, _everything(tokens_GTD) if mask_GT is None else mask_GT, first_T)

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
    there = [name for name in LONG_STREAMS if _features(conditions, name)[0] is not None]
    given = {name: present[name] for name in there if name in present}
    if not there or len(given) < len(there) or any(mask.device.type != "cpu" for mask in given.values()):
        return None
    long_B = is_long(given)
    count = int(long_B.sum())
    if count in (0, len(long_B)):
        return None
    order = None if long_B[:count].all() else long_B.logical_not().argsort(stable=True)
    return order, (count, len(long_B) - count)


def _trimmed(features_GTF: Tensor, mask_GT: Tensor, present_G: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Features and mask up to the longest text that is present; no mask where all are as long."""
    length_G = mask_GT.sum(dim=1) if present_G is None else mask_GT.sum(dim=1)[present_G]
    longest, shortest = int(length_G.max()), int(length_G.min())
    return features_GTF[:, :longest], None if shortest == longest else mask_GT[:, :longest]


def _everything(tokens_GTD: Tensor) -> Tensor:
    """A mask in which every token counts."""
    return torch.ones(tokens_GTD.shape[:2], dtype=torch.bool, device=tokens_GTD.device)


def _features(conditions: Conditions, name: str) -> tuple[Tensor | None, Tensor | None]:
    """Features (B, T, F) and mask (B, T) of one stream; None where there is none."""
    if name == "text":
        return conditions.text_BTD, conditions.text_mask_BT
    if name == "cls":
        return (None if conditions.cls_BD is None else conditions.cls_BD.unsqueeze(1)), None
    return (conditions.patches_BPD if name == "patches" else conditions.pose_BJ3), None
