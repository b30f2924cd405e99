"""Counter streams: a draw depends on what it is for and on nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.trainer_parts import NoiseSource, tiny_config
from trainer import randomness
from trainer.config import TrainerConfig
from trainer.data.batches import Batches
from trainer.objective.draws import Draws, StepDraws
from trainer.objective.dropout import draw_categories


def test_the_seed_is_the_start_of_a_hash_of_compact_json() -> None:
    digest = hashlib.sha256(b'[7,"noise",12,3]').digest()
    assert randomness.stream_seed(7, "noise", 12, 3) == int.from_bytes(digest[:8], "big")
    assert randomness.stream_seed(0, "init", "blocks.0.self.q.weight") == 0xA36FDB6AEEE75512


@given(st.integers(0, 2**40), st.integers(0, 9), st.integers(0, 9))
def test_every_part_of_the_key_matters(seed: int, step: int, position: int) -> None:
    keys = [(seed, "noise", step, position), (seed + 1, "noise", step, position), (seed, "route", step, position)]
    keys += [(seed, "noise", step + 1, position), (seed, "noise", step, position + 1)]
    assert len({randomness.stream_seed(*key) for key in keys}) == len(keys)


def test_the_global_generator_is_neither_read_nor_moved() -> None:
    torch.manual_seed(1)
    first = randomness.normal((4,), 0, "noise", 0, 0)
    state = torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(first, randomness.normal((4,), 0, "noise", 0, 0))
    torch.manual_seed(1)
    assert torch.equal(state, torch.get_rng_state())


def draw(config: TrainerConfig, seed: int, step: int, positions: Sequence[int]) -> Draws:
    return StepDraws(config, seed, step).of(positions, (config.data.size, config.data.size))


def all_draws(step: int, **changes: Any) -> Draws:
    config = tiny_config(**changes)
    parts = [
        draw(config, 5, step, range(start, start + config.batch))
        for start in range(0, config.samples_per_step, config.batch)
    ]
    present = {name: torch.cat([part.present[name] for part in parts]) for name in parts[0].present}
    keep = None if parts[0].keep_BK is None else torch.cat([part.keep_BK for part in parts])
    return Draws(torch.cat([part.t_B for part in parts]), torch.cat([part.noise_BCHW for part in parts]), present, keep)


def assert_same(one: Draws, other: Draws, *, ignore: tuple[str, ...] = ()) -> None:
    for field in fields(Draws):
        if field.name not in ignore:
            torch.testing.assert_close(getattr(one, field.name), getattr(other, field.name), rtol=0, atol=0)


def test_splitting_a_step_into_micro_batches_changes_no_draw() -> None:
    tread = {"enabled": True}
    whole = all_draws(3, batch=16, tread=tread)
    assert_same(whole, all_draws(3, batch=8, accumulation=2, tread=tread))
    assert_same(whole, all_draws(3, batch=1, accumulation=16, tread=tread))


def test_splitting_a_step_into_micro_batches_changes_no_sample() -> None:
    config = tiny_config()
    batches = Batches(NoiseSource(config, 0), run_seed=5, batch=16)
    whole = batches.batch(2, range(16))
    parts = [batches.batch(2, range(start, start + 8)) for start in (0, 8)]
    assert whole.ids == parts[0].ids + parts[1].ids
    assert torch.equal(whole.pixels_BCHW, torch.cat([part.pixels_BCHW for part in parts]))


@pytest.mark.parametrize(
    "changes",
    [
        {"repa": {"enabled": True}},
        {"validation": {"every": 1, "samples": 2}},
        {"log_every": 5},
        {"optimizer": {"name": "muon"}},
        {"ema": {"half_lives": [0.1, 0.5]}},
        {"model": {"width": 32, "depth": 2, "heads": 2, "patch": 2}},
    ],
)
def test_other_techniques_change_no_draw(changes: dict[str, Any]) -> None:
    assert_same(all_draws(1), all_draws(1, **changes))


def test_routing_changes_no_other_draw() -> None:
    routed, dense = all_draws(1, tread={"enabled": True}), all_draws(1)
    assert_same(dense, routed, ignore=("keep_BK",))
    assert dense.keep_BK is None
    assert routed.keep_BK is not None


def test_the_dense_tail_routes_nothing() -> None:
    tread = {"enabled": True, "dense_tail": 0.25}
    assert all_draws(5, tread=tread).keep_BK is not None
    assert all_draws(6, tread=tread).keep_BK is None


def test_a_uniform_share_changes_only_the_times_it_replaces() -> None:
    plain, mixed = all_draws(1, batch=64).t_B, all_draws(1, batch=64, objective={"uniform_share": 0.3}).t_B
    replaced = (plain != mixed).float().mean()
    assert 0.1 < replaced < 0.5


def test_steps_seeds_and_positions_differ() -> None:
    config = tiny_config()
    one, next_step, next_seed = draw(config, 5, 0, range(4)), draw(config, 5, 1, range(4)), draw(config, 6, 0, range(4))
    assert not torch.equal(one.noise_BCHW, next_step.noise_BCHW)
    assert not torch.equal(one.noise_BCHW, next_seed.noise_BCHW)
    assert len({float(t) for t in one.t_B}) == 4
    assert not torch.equal(draw_categories(5, 0, range(64)), draw_categories(5, 1, range(64)))
