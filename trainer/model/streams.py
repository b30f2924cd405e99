"""The features of one stream of conditions as tokens, and its null token.

Shapes: B samples, T tokens of one stream, J joints, F features of a stream, D channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm

from trainer.config import ModelConfig

LEAST_CONFIDENCE = 0.05  # below it `null_joints` takes a joint as not seen


class FeatureEmbedding(nn.Module):
    """Features of one stream -> model channels: layer norm, linear map, type embedding."""

    def __init__(self, config: ModelConfig, features: int) -> None:
        super().__init__()
        self.project = nn.Linear(features, config.width)
        self.kind_D = nn.Parameter(torch.empty(config.width)) if config.type_embeddings else None
        self.null_D = nn.Parameter(torch.empty(config.width))
        self.is_normalised = config.condition_norm

    def forward(self, x_BTF: Tensor) -> Tensor:
        """(B, T, F) -> (B, T, D)."""
        if self.is_normalised:
            x_BTF = layer_norm(x_BTF, x_BTF.shape[-1:], eps=1e-6)
        tokens_BTD = self.project(x_BTF)
        return tokens_BTD if self.kind_D is None else tokens_BTD + self.kind_D


class PoseEmbedding(nn.Module):
    """Joints (x, y, confidence) -> model channels: an MLP instead of a norm, which would erase the place of a joint."""

    def __init__(self, config: ModelConfig, joints: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(3, config.width)
        self.fc2 = nn.Linear(config.width, config.width)
        self.joint_JD = nn.Parameter(torch.empty(joints, config.width))
        self.kind_D = nn.Parameter(torch.empty(config.width)) if config.type_embeddings else None
        self.null_D = nn.Parameter(torch.empty(config.width))
        self.unseen_JD = nn.Parameter(torch.empty(joints, config.width)) if config.null_joints else None

    def forward(self, pose_BJ3: Tensor) -> Tensor:
        """(B, J, 3) -> (B, J, D)."""
        tokens_BJD = self.fc2(gelu(self.fc1(pose_BJ3)))
        if self.unseen_JD is not None:
            tokens_BJD = torch.where(pose_BJ3[..., 2:] < LEAST_CONFIDENCE, self.unseen_JD, tokens_BJD)
        return tokens_BJD + (self.joint_JD if self.kind_D is None else self.joint_JD + self.kind_D)
