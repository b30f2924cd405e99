"""What the transformer demands."""

from __future__ import annotations

from collections.abc import Iterator

from trainer.config import TrainerConfig
from trainer.errors import Issue


def rules(config: TrainerConfig) -> Iterator[Issue]:
    """Every demand that `config` does not meet."""
    yield from _widths(config)
    yield from _narrow(config)
    if config.model.maskdit.enabled:
        yield from _maskdit(config)


def _widths(config: TrainerConfig) -> Iterator[Issue]:
    model = config.model
    if model.width % model.heads:
        yield Issue("model.heads", f"{model.heads} heads do not divide width {model.width}", "a divisor of model.width")
    elif model.positions == "rope" and model.width // model.heads % 4:
        yield Issue(
            "model.positions",
            f"rope turns pairs of channels by row and by column, and a head has {model.width // model.heads} channels",
            "sincos, or model.heads for which width / heads is a multiple of 4",
        )
    if model.width % 4:
        yield Issue("model.width", f"{model.width} is no multiple of 4, as 2-D positions need", "a multiple of 4")
    if config.data.size % model.patch:
        yield Issue(
            "model.patch",
            f"patches of {model.patch} do not divide images of {config.data.size}",
            "a divisor of data.size",
        )
    if model.mlp_hidden < 1:
        yield Issue(
            "model.mlp_ratio",
            f"{model.mlp_ratio:g} leaves no channel in an MLP ({model.mlp}) of a model of width {model.width}",
            f"above {(12 if model.mlp == 'swiglu' else 0.5) / model.width:g}",
        )


def _narrow(config: TrainerConfig) -> Iterator[Issue]:
    """A detour that is as wide as what it goes around only costs."""
    model = config.model
    widest = min(config.patch_features, model.width)
    if model.bottleneck is not None and model.bottleneck > widest:
        yield Issue(
            "model.bottleneck",
            f"{model.bottleneck} is no bottleneck between a patch of {config.patch_features} numbers and width "
            f"{model.width}",
            f"1 to {widest}, or null",
        )
    highest = (model.adaln_chunks * model.width - 1) // (model.adaln_chunks + 1)
    if model.adaln.kind == "shared" and model.adaln.rank > highest:
        yield Issue(
            "model.adaln.rank",
            f"maps of rank {model.adaln.rank} are not smaller than the full ones of width {model.width} they replace",
            f"1 to {highest}",
        )


def _maskdit(config: TrainerConfig) -> Iterator[Issue]:
    if config.tread.enabled:
        yield Issue(
            "model.maskdit.enabled",
            "MaskDiT hides tokens from the blocks that TREAD would route them past; only one of the two can decide",
            "false, or tread.enabled: false",
        )
    if config.kept_tokens == config.tokens:
        yield Issue(
            "model.maskdit.ratio",
            f"{config.model.maskdit.ratio:g} of {config.tokens} tokens hides none of them",
            f"at least {1 / config.tokens:g}, with smaller patches or larger images",
        )
