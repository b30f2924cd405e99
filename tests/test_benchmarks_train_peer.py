"""The plain peer of the training step: that it is fair, that it learns, and that its masks hide what they should."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from benchmarks.plain_peer import DROPOUT, STREAMS, PlainDiT, Training, noise_images
from benchmarks.train_peer import CELLS, kept, measure, operations, table
from benchmarks.train_step_rig import Rig, Sizes, configured
from trainer.config.trainer import TrainerConfig
from trainer.objective.dropout import CATEGORIES
from trainer.objective.dropout import STREAMS as OUR_STREAMS

TINY = Sizes(width=16, depth=3, heads=2, size=16, patch=4, text=5, patches=4, features=8, batch=4)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def own_randomness():
    """The peer draws from torch's one global generator; other tests must not see that."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def awake(sizes: Sizes, keep: int | None = None) -> PlainDiT:
    """A model in which nothing is zero any more, so that every input can matter."""
    model = PlainDiT(sizes, keep)
    for weight in model.parameters():
        nn.init.normal_(weight, std=0.3)
    return model


def inputs(sizes: Sizes) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Noisy images, times and streams of one batch."""
    pixels_BCYX, *streams = noise_images(sizes, sizes.batch).tensors
    return torch.randn(pixels_BCYX.shape), torch.rand(sizes.batch), [stream.float() for stream in streams]


def test_both_models_are_of_one_size() -> None:
    """At full width, with so few blocks that a difference outside of them weighs more than in the benchmark."""
    sizes = replace(Sizes(), depth=2)
    ours = Rig(sizes, CELLS["dense"], CPU).learner.network
    counts = [sum(weight.numel() for weight in model.parameters()) for model in (ours, PlainDiT(sizes))]
    assert counts[1] == pytest.approx(counts[0], rel=0.01)


@pytest.mark.parametrize("name", ["dense", "tread"])
def test_both_compute_the_same_tokens(name: str) -> None:
    """Image tokens of every block and conditions, as seen by the blocks of the peer and told by our configuration."""
    config: TrainerConfig = configured(TINY, CELLS[name], CPU)
    first, last = config.routed_blocks
    model = PlainDiT(TINY, kept(name, TINY))
    seen: list[tuple[int, int, int]] = []
    for block in model.blocks:
        block.register_forward_hook(lambda _, args, __: seen.append((args[0].shape[1], *args[2].shape[:2])))
    z_BCYX, t_B, streams = inputs(TINY)
    model(z_BCYX, t_B, streams, torch.ones(TINY.batch, len(STREAMS), dtype=torch.bool))
    routed = range(first, last + 1) if config.tread.enabled else ()
    images = [config.kept_tokens if at in routed else TINY.tokens for at in range(TINY.depth)]
    assert seen == [(tokens, TINY.batch, TINY.context()) for tokens in images]


def test_both_drop_conditions_equally_often() -> None:
    assert tuple(OUR_STREAMS) == STREAMS
    assert {category.keeps: category.probability for category in CATEGORIES} == DROPOUT


def test_a_dropped_stream_cannot_be_seen_and_a_kept_one_can() -> None:
    """Gradients of the output by the features of every stream of every sample."""
    model = awake(TINY)
    kept_BS = torch.tensor(list(DROPOUT))[[0, 1, 4, 6]]
    z_BCYX, t_B, streams = inputs(TINY)
    for stream in streams:
        stream.requires_grad_()
    model(z_BCYX, t_B, streams, kept_BS).square().sum().backward()
    reached_BS = torch.stack([stream.grad.abs().flatten(1).sum(dim=1) > 0 for stream in streams], dim=1)
    assert reached_BS.equal(kept_BS)


def test_of_a_dropped_stream_there_is_one_null_token_and_no_more() -> None:
    """As long as nobody keeps the words, their number changes nothing."""
    model = awake(TINY)
    z_BCYX, t_B, streams = inputs(TINY)
    kept_BS = torch.tensor([[False, True, True, True]] * TINY.batch)
    whole = model(z_BCYX, t_B, streams, kept_BS)
    short = model(z_BCYX, t_B, [streams[0][:, :1], *streams[1:]], kept_BS)
    assert torch.allclose(whole, short, atol=1e-4)
    kept_BS[0, 0] = True
    assert not torch.allclose(model(z_BCYX, t_B, streams, kept_BS)[0], whole[0], atol=1e-2)


@pytest.mark.parametrize("keep", [None, 8])
def test_its_loss_falls_on_a_tiny_set(keep: int | None) -> None:
    """The loss of the same draws before and after a few steps on four images."""
    data = noise_images(TINY, TINY.batch)
    pixels_BCYX, *streams = data.tensors
    training = Training(TINY, data, keep, steps=100, lr=1e-2)

    def loss() -> float:
        torch.manual_seed(7)
        training.step(pixels_BCYX, [stream.float() for stream in streams])
        return training.log[-1][0]

    before = loss()
    for _ in range(25):
        training.epoch()
    assert loss() < 0.8 * before
    assert len(training.log) == 27


def test_what_a_mask_costs_is_the_ratio_of_the_operations() -> None:
    """By hand: 370.15 of 601 conditions on average; operations of a block in millions of multiply-adds."""
    whole, mean = 132.121 + 44.311 + 25.166 + 59.081, 132.121 + 27.291 + 25.166 + 36.387
    routed, routed_mean = 66.060 + 44.311 + 6.291 + 29.540, 66.060 + 27.291 + 6.291 + 18.194
    assert operations(Sizes(), "dense") == pytest.approx(whole / mean, rel=1e-3)
    expected = (2 * whole + 6 * routed) / (2 * mean + 6 * routed_mean)
    assert operations(Sizes(), "tread") == pytest.approx(expected, rel=1e-3)


def test_both_are_measured_and_shown() -> None:
    rows = measure(replace(TINY, batch=16), turns=1)
    assert [found["cell"] for found in rows] == ["dense", "tread"]
    for found in rows:
        speeds = found["samples_per_s"]
        assert found["ratio"]["median"] == pytest.approx(speeds["ours"]["median"] / speeds["plain"]["median"])
    assert len(table({"rows": rows}).splitlines()) == 4
