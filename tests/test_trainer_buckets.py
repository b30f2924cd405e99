"""Aspect-ratio buckets through the whole trainer: order, draws, model, alignment, checkpoints, validation."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes.shards import WIDTH, sample, square_set, write_set
from tests.fakes.trainer_parts import WeightSum
from tests.test_trainer_train import StopAt, assert_same_checkpoint, comparable, lines
from trainer import session, train
from trainer.control import StopRequest
from trainer.data import open_source
from trainer.data.batches import Batches, open_batches
from trainer.data.buckets import BUCKETS
from trainer.data.order import BucketIds, Order
from trainer.data.sample import Batch
from trainer.document import parse_config
from trainer.evaluate.probe import Probe
from trainer.objective.basis import basis_of_run, training_patches
from trainer.randomness import generator
from trainer.step import Learner

SIZE = 64
EVERYTHING = {
    "batch": 2,
    "accumulation": 2,
    "model": {"width": 16, "depth": 4, "heads": 2, "patch": 4},
    "tread": {"enabled": True},
    "repa": {"enabled": True, "after_block": 0, "projector": "conv", "samples": "all", "stop": {"end": 0.9}},
    "optimizer": {"name": "muon", "lr": 0.01},
    "validation": {"every": 8, "samples": 2, "sampler_steps": 1},
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("shards"))


def everything(shards: Path, steps: int = 6, **changes: Any) -> dict[str, Any]:
    data = {"source": "shards", "path": str(shards), "size": SIZE, **changes.pop("data", {})}
    return {"steps": steps, "data": data, **EVERYTHING, **changes}


# ---- order -----------------------------------------------------------------------------------------------------------

counts = st.lists(st.integers(1, 40), min_size=1, max_size=7)


def order(sizes: list[int], seed: int = 3, batch: int = 4) -> Order:
    buckets = [BucketIds(f"b{index}", tuple(f"{index}.{n}" for n in range(size))) for index, size in enumerate(sizes)]
    return Order(buckets, seed, batch)


@given(counts)
def test_every_bucket_has_its_share_of_the_steps_at_any_time(sizes: list[int]) -> None:
    drawn = order(sizes)
    used: Counter[int] = Counter()
    for step in range(3 * sum(sizes)):
        bucket, earlier = drawn.bucket(step)
        assert earlier == used[bucket]
        used[bucket] += 1
        for index, size in enumerate(sizes):
            assert abs(used[index] - (step + 1) * size / sum(sizes)) <= len(sizes)
    assert order(sizes).bucket(7) == drawn.bucket(7), "whoever asks first"


@given(counts, st.integers(1, 6))
def test_the_steps_of_a_bucket_go_through_its_epochs(sizes: list[int], batch: int) -> None:
    drawn = order(sizes, batch=batch)
    seen: dict[int, list[str]] = {}
    for step in range(4 * sum(sizes)):
        bucket, _ = drawn.bucket(step)
        seen.setdefault(bucket, []).extend(drawn.id(*drawn.number(step, place)) for place in range(batch))
    for bucket, ids in seen.items():
        own = drawn.buckets[bucket].ids
        for start in range(0, len(ids) - len(own) + 1, len(own)):
            assert Counter(ids[start : start + len(own)]) == Counter(own)


def test_one_bucket_is_ordered_as_images_without_buckets_always_were() -> None:
    drawn = order([11], seed=9, batch=4)
    permutations = [torch.randperm(11, generator=generator(9, "order", epoch)).tolist() for epoch in range(4)]
    expected = [f"0.{place}" for permutation in permutations for place in permutation]
    assert [drawn.id(*drawn.number(step, place)) for step in range(10) for place in range(4)] == expected[:40]


def test_several_buckets_have_orders_of_their_own() -> None:
    drawn = order([30, 30])
    first, second = ([name.split(".")[1] for n in range(30) for name in [drawn.id(b, n)]] for b in (0, 1))
    assert sorted(first) == sorted(second)
    assert first != second
    assert [drawn.id(0, n) for n in range(90)] == [order([30, 30]).id(0, n) for n in range(90)]


# ---- batches ---------------------------------------------------------------------------------------------------------


def test_a_step_has_one_shape_and_all_shapes_come(shards: Path) -> None:
    config = parse_config(everything(shards))
    batches = open_batches(config, open_source(config), 1)
    sizes = set()
    for step in range(12):
        whole = batches.batch(step, range(4))
        parts = [batches.batch(step, positions) for positions in ([0, 1], [2, 3])]
        assert whole.ids == parts[0].ids + parts[1].ids
        assert torch.equal(whole.pixels_BCHW, torch.cat([part.pixels_BCHW for part in parts]))
        height, width = whole.pixels_BCHW.shape[2:]
        assert whole.conditions.patch_grid == (height * 256 // SIZE // 16, width * 256 // SIZE // 16)
        sizes.add((height, width))
    assert sizes == {bucket.scaled(SIZE) for bucket in BUCKETS}


# ---- training --------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Path]]:
    """Train in this process with a validation that only adds up weights; the run directory."""

    def start(name: str, block: dict[str, Any], stop: StopRequest | None = None, **options: Any) -> Path:
        if options.pop("fake", True):
            monkeypatch.setattr(session, "Validation", WeightSum)
            monkeypatch.setattr(Probe, "run", lambda *_: {})
        config = tmp_path / f"{name}.yaml"
        config.write_text(json.dumps({"seed": 7, "run": name, "trainer": block}))
        train.train(config, tmp_path / name, stop=StopRequest() if stop is None else stop, **options)
        return tmp_path / name

    return start


@pytest.mark.long
def test_a_run_with_workers_resumes_to_the_same_bits(run: Callable[..., Path], shards: Path) -> None:
    straight = run("straight", everything(shards, data={"workers": 0}))
    broken = run("broken", everything(shards), StopAt(11))  # 2 workers, in the middle of a step
    assert lines(broken, "event")[-1]["event"] == "stopped"
    assert 0 < max(line["step"] for line in lines(broken, "train")) < 6
    run("broken", everything(shards), resume=True)
    assert_same_checkpoint(straight, broken, 6)
    trained = [[line for line in comparable(one) if line["kind"] == "train"] for one in (straight, broken)]
    assert trained[0] == trained[1]
    active = {line["sys/active_tokens"] for line in lines(straight, "train")}
    tokens = {math.prod(size) // 16 for bucket in BUCKETS if (size := bucket.scaled(SIZE))}
    assert active <= {(2 * (n - n // 2) + 2 * n) / 4 for n in tokens}
    assert len(active) > 2
    started = lines(straight, "event")[0]
    assert list(started["buckets"]) == [bucket.name for bucket in BUCKETS]
    assert sum(started["buckets"].values()) == started["train_images"]
    assert any("fewer images than a step uses" in note for note in started["notes"])
    assert all(0 <= line["sys/data_wait_frac"] <= 1 for line in lines(broken, "train"))


def test_micro_batches_change_no_gradient_beyond_rounding(shards: Path) -> None:
    found = []
    for split in ({"batch": 4, "accumulation": 1}, {"batch": 1, "accumulation": 4}):
        config = parse_config(everything(shards, **split))
        source = open_source(config)
        learner = Learner(config, source.streams, 3, torch.device("cpu"))
        batches = Batches(source, 3, 4)
        results = [learner.step(batches, step, StopRequest()) for step in range(4)]
        found.append([result.losses_L for result in results if result is not None])
    for whole, parts in zip(*found, strict=True):
        torch.testing.assert_close(whole, parts, rtol=2e-3, atol=1e-4)


def test_training_and_real_validation_end_to_end(run: Callable[..., Path], shards: Path) -> None:
    small = {"workers": 0, "flip": 0.5}
    validation = {**EVERYTHING["validation"], "samples": 6}
    done = run("real", everything(shards, steps=2, data=small, validation=validation), fake=False)
    scored = {key for line in lines(done, "val") for key in line}
    assert {"val/recon_rmse", "val/recon_lpips", "val/text_rmse", "val/use_patches", "val/loss"} <= scored
    assert all(math.isfinite(value) for line in lines(done, "val") for value in line.values() if type(value) is float)
    [meta] = [json.loads(path.read_text()) for path in done.glob("validation/step_000002/meta.json")]
    assert any(label.startswith("validated images by bucket: ") for label in meta["labels"])
    assert sum(shape["held_out"] for shape in meta["shapes"]) == 6
    assert len(meta["shapes"]) > 2
    assert meta["train_ids_overlap"] == 0


class Recorded(Batches):
    """Batches that remember what was asked for."""

    asked: list[tuple[int, list[int]]]

    def batch(self, step: int, positions: Any) -> Batch:
        self.asked.append((step, list(positions)))
        return super().batch(step, positions)


@settings(max_examples=4)
@given(st.integers(0, 5), st.sampled_from([(4, 1), (2, 2), (1, 4)]))
def test_the_plan_is_what_a_step_asks_for(shards: Path, seed: int, split: tuple[int, int]) -> None:
    config = parse_config(everything(shards, batch=split[0], accumulation=split[1], repa={}, steps=3))
    source = open_source(config)
    learner = Learner(config, source.streams, seed, torch.device("cpu"))
    batches = Recorded(source, seed, 4)
    batches.asked = []
    for step in range(2):
        learner.step(batches, step, StopRequest())
    assert batches.asked == [(step, positions) for step in range(2) for positions in learner.plan(step)]


def test_a_run_tells_of_broken_samples_and_goes_on_alike_with_and_without_workers(
    run: Callable[..., Path], tmp_path: Path
) -> None:
    contents = [sample(f"s{number:02d}", 32, 32) for number in range(24)]
    healthy = open_source(parse_config(everything(square_set(tmp_path / "healthy", contents), data={"size": 16})))
    victim = healthy.train_ids[9]
    nan = {"dinov3.npy": np.full(WIDTH, np.nan, np.float16)}
    spoilt = square_set(tmp_path / "spoilt", [{**one, **nan} if one["__key__"] == victim else one for one in contents])
    runs = [run(f"w{count}", everything(spoilt, data={"size": 16, "workers": count})) for count in (0, 1)]
    assert_same_checkpoint(*runs, 6)
    for done in runs:
        [told] = [line for line in lines(done, "event") if line["event"] == "rejected"]
        assert told["name"] == f"bucket_32x32/shard-000000.tar: {victim}"
        assert "such as nan" in told["reason"]
        counted = [line for line in lines(done, "train") if "sys/data_rejected" in line]
        assert [line["sys/data_rejected"] for line in counted] == [1.0] * len(counted)
        assert min(line["step"] for line in counted) == told["step"]
    told_steps = {line["step"] for done in runs for line in lines(done, "event") if line["event"] == "rejected"}
    assert len(told_steps) == 1
    config = parse_config(everything(spoilt, data={"size": 16}))
    patches = list(training_patches(config, open_source(config)))
    assert len(patches) == len(healthy.train_ids) - 1, "a basis is fitted without it"


TECHNIQUES = {
    "pooled patches of odd grids": {"streams": {"patches": "pooled"}},
    "MaskDiT": {"model": {"maskdit": {"enabled": True}}, "tread": {}, "repa": {}},
    "rotary positions": {"model": {"positions": "rope"}},
    "AsymFlow": {"objective": {"prediction": "asymflow"}},
}


@pytest.mark.parametrize("name", TECHNIQUES)
def test_techniques_take_every_shape(shards: Path, tmp_path: Path, name: str) -> None:
    changes = {**TECHNIQUES[name], "model": {**EVERYTHING["model"], **TECHNIQUES[name].get("model", {})}}
    config = parse_config(everything(shards, steps=12, batch=1, accumulation=1, **changes))
    source = open_source(config)
    learner = Learner(config, source.streams, 3, torch.device("cpu"), basis_of_run(config, source, tmp_path))
    batches = Batches(source, 3, 1)
    results = [learner.step(batches, step, StopRequest()) for step in range(12)]
    assert all(result is not None and result.losses_L.isfinite().all() for result in results)
    assert {batches.batch(step, [0]).pixels_BCHW.shape[2:] for step in range(12)} == {
        bucket.scaled(SIZE) for bucket in BUCKETS
    }
