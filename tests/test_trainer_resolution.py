"""Smaller images at first: schedule, sources, draws, exact resume across the change, sizes, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.fakes.shards import WIDTH, sample, square_set, write_set
from tests.fakes.trainer_parts import TINY, NoiseSource, tiny, tiny_config
from tests.fakes.trainer_runs import training_on_noise
from tests.test_trainer_train import StopAt, assert_same_checkpoint, comparable, lines
from trainer import checkpoint, rules, size
from trainer.config import TrainerConfig
from trainer.control import StopRequest
from trainer.data import open_source
from trainer.data.batches import Batches, open_batches
from trainer.data.shapes import stream_shapes
from trainer.document import parse_config
from trainer.errors import ConfigError, DataError
from trainer.objective.draws import StepDraws
from trainer.step import Learner

HALF = [{"until": 0.5, "size": 4}]
STAGED = tiny(
    resolution=HALF,
    accumulation=2,
    tread={"enabled": True},
    repa={"enabled": True, "samples": "all", "stop": {"kind": "fixed", "end": 0.5}},
    optimizer={"name": "muon", "lr": 0.01},
)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, Path]]:
    """Train on noise."""
    return training_on_noise(tmp_path, monkeypatch)


# ---- schedule --------------------------------------------------------------------------------------------------------


@given(st.integers(3, 1000), st.lists(st.floats(0.01, 0.99), min_size=1, max_size=4, unique=True))
def test_every_step_has_the_size_of_its_stage(steps: int, shares: list[float]) -> None:
    stages = [{"until": share, "size": 2 + 2 * index} for index, share in enumerate(sorted(shares))]
    config = TrainerConfig(steps=steps, resolution=stages, data={"size": 64})  # type: ignore[arg-type]
    for step in (0, steps // 2, steps - 1):
        passed = sum(round(share * steps) <= step for share in shares)
        assert config.size_at(step) == (2 + 2 * passed if passed < len(shares) else 64)


def test_one_event_tells_the_change_and_routing_and_alignment_follow(run: Callable[..., tuple[int, Path]]) -> None:
    code, done = run("staged", STAGED)
    assert code == 0
    said = [(line["step"], line["event"], line.get("size")) for line in lines(done, "event")]
    assert [entry for entry in said if entry[1] in ("resolution", "repa_off")] == [
        (4, "resolution", 8),
        (4, "repa_off", None),
    ]
    tokens = [line["sys/active_tokens"] for line in lines(done, "train")]
    assert tokens == [0.5 * 2 + 0.5 * 4] * 4 + [0.5 * 8 + 0.5 * 16] * 4
    assert ["train/repa_loss" in line for line in lines(done, "train")] == [True] * 4 + [False] * 4


@pytest.mark.parametrize("stop_after", [3, 4, 5])
def test_resuming_around_the_change_changes_no_bit(run: Callable[..., tuple[int, Path]], stop_after: int) -> None:
    _, whole = run("whole", STAGED)
    assert run("parts", STAGED, stop_after=stop_after)[0] == 75
    code, parts = run("parts", STAGED, resume=True)
    assert code == 0
    assert_same_checkpoint(whole, parts, 8)
    train_lines = [[line for line in comparable(one) if line["kind"] == "train"] for one in (whole, parts)]
    assert train_lines[0] == train_lines[1]
    assert [line["step"] for line in lines(parts, "event") if line["event"] == "resolution"] == [4]


def test_a_stop_amid_the_first_step_of_the_new_size_changes_no_bit(run: Callable[..., tuple[int, Path]]) -> None:
    _, whole = run("whole", STAGED)
    code, parts = run("parts", STAGED, stop=StopAt(16))
    assert (code, checkpoint.list_steps(parts)[-1]) == (75, 4)
    assert run("parts", STAGED, resume=True)[0] == 0
    assert_same_checkpoint(whole, parts, 8)


def trained(block: dict[str, Any], steps: int) -> tuple[list[float], torch.Tensor]:
    """Losses of the first steps and the weights after them."""
    config = parse_config(block)
    learner = Learner(config, stream_shapes(config), 7, torch.device("cpu"))
    batches = open_batches(config, NoiseSource(config, 7), 7)
    results = [learner.step(batches, step, StopRequest()) for step in range(steps)]
    weights = torch.cat([parameter.detach().flatten() for parameter in learner.modules.parameters()])
    return [float(result.losses_L[0]) for result in results if result is not None], weights


def test_before_the_change_a_run_is_one_at_the_smaller_size_and_afterwards_no_more() -> None:
    small = {**STAGED, "resolution": [], "data": {**TINY["data"], "size": 4}}
    losses, weights = trained(STAGED, 4)
    twin_losses, twin_weights = trained(small, 4)
    assert losses == twin_losses
    assert torch.equal(weights, twin_weights)
    assert trained(STAGED, 5)[0][4] != trained(small, 5)[0][4]
    assert trained({**STAGED, "resolution": []}, 1)[0] != losses[:1]


def test_stages_change_no_draw_but_noise_and_routes() -> None:
    plain, staged = (StepDraws(tiny_config(**more), 3, 0) for more in ({}, {"resolution": HALF}))
    assert torch.equal(plain.t_E, staged.t_E)
    assert all(torch.equal(value, staged.present[name]) for name, value in plain.present.items())


# ---- sources ---------------------------------------------------------------------------------------------------------


def sides(batches: Batches, steps: int = 4) -> list[set[tuple[int, ...]]]:
    return [{tuple(batches.batch(step, [p]).pixels_BCHW.shape[2:]) for p in range(4)} for step in range(steps)]


def opened(block: dict[str, Any]) -> tuple[Batches, Batches]:
    """The batches of a block with stages and without."""
    staged, plain = (parse_config({**block, "resolution": stages}) for stages in (block["resolution"], []))
    source = open_source(staged)
    return open_batches(staged, source, 0), open_batches(plain, source, 0)


@pytest.mark.parametrize("workers", [0, 1])
def test_drawn_portraits_come_in_the_size_of_the_stage(workers: int) -> None:
    data = {"size": 16, "samples": 12, "held_out": 4, "workers": workers}
    config = parse_config({"steps": 4, "batch": 4, "resolution": [{"until": 0.5, "size": 8}], "data": data,
                           "model": TINY["model"], "validation": {"samples": 4}})  # fmt: skip
    source = open_source(config)
    with open_batches(config, source, 0) as batches:
        batches.read_ahead(lambda step: [[position] for position in range(4)], 4, workers, False)
        assert sides(batches) == [{(8, 8)}] * 2 + [{(16, 16)}] * 2
        plain = Batches(source, 0, 4)
        assert [batches.ids(step, range(4)) for step in range(4)] == [plain.ids(step, range(4)) for step in range(4)]
        assert torch.equal(batches.batch(3, [1]).pixels_BCHW, plain.batch(3, [1]).pixels_BCHW)
    assert source.load(source.train_ids[0]).pixels_HWC.shape == (16, 16, 3), "what is scored keeps its size"


def test_images_of_a_folder_come_in_the_size_of_the_stage(tmp_path: Path) -> None:
    for index in range(6):
        Image.new("RGB", (40, 30), (40 * index, 9, 9)).save(tmp_path / f"{index}.png")
        (tmp_path / f"{index}.txt").write_text(f"picture {index}")
    block = {"steps": 4, "batch": 4, "resolution": [{"until": 0.25, "size": 8}],
             "data": {"source": "folder", "path": str(tmp_path), "size": 16}}  # fmt: skip
    staged, plain = opened(block)
    assert sides(staged) == [{(8, 8)}] + [{(16, 16)}] * 3
    assert sides(plain) == [{(16, 16)}] * 4
    assert staged.batch(0, [0]).captions == plain.batch(0, [0]).captions


def test_every_bucket_of_shards_is_scaled_with_the_stage(tmp_path: Path) -> None:
    write_set(tmp_path, features=WIDTH)
    block = {"steps": 24, "batch": 4, "model": {**TINY["model"], "patch": 2},
             "resolution": [{"until": 0.5, "size": 32}],
             "data": {"source": "shards", "path": str(tmp_path), "size": 64, "workers": 0}}  # fmt: skip
    staged, plain = opened(block)
    small, large = sides(staged, 24), sides(plain, 24)
    assert small[12:] == large[12:]
    assert [{(2 * height, 2 * width) for height, width in shapes} for shapes in small[:12]] == large[:12]
    assert len({next(iter(shapes)) for shapes in small[:12]}) > 3
    one, other = staged.batch(0, [0]).conditions, plain.batch(0, [0]).conditions
    assert one.patches_BPD is not None
    assert other.patches_BPD is not None
    assert torch.equal(one.patches_BPD, other.patches_BPD), "stored features stay what they are"


def test_a_source_of_one_size_is_refused() -> None:
    with pytest.raises(DataError, match="images of one size"):
        Batches(object(), 0, 4, stages=[(1, 8)])  # type: ignore[arg-type]


# ---- sizes -----------------------------------------------------------------------------------------------------------


def test_operations_are_the_mean_over_the_stages() -> None:
    def flops(**changes: Any) -> float:
        config = parse_config(tiny(**changes))
        return size.flops_per_sample(config, stream_shapes(config))

    small, large = flops(data={**TINY["data"], "size": 4}), flops()
    quarter = [{"until": 0.25, "size": 4}]
    assert flops(resolution=quarter) == pytest.approx(0.25 * small + 0.75 * large, rel=1e-12)
    tail = {"enabled": True, "dense_tail": 0.5}
    full = {"enabled": True}
    expected = (
        2 * flops(data={**TINY["data"], "size": 4}, tread=full)
        + 2 * flops(tread=full)
        + 4 * large
    ) / 8  # fmt: skip
    assert flops(resolution=quarter, tread=tail) == pytest.approx(expected, rel=1e-12)


def test_memory_is_that_of_the_largest_images_and_of_all_that_is_kept() -> None:
    def memory(**changes: Any) -> float:
        config = parse_config(tiny(**changes))
        return size.memory_mib(config, stream_shapes(config))

    assert memory() < memory(resolution=HALF) < memory() + 0.1


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("block", "paths", "words"),
    [
        ({"resolution": [{"until": 0.5, "size": 8}]}, ["resolution.0.size"], "between the size before it, 0, and"),
        ({"resolution": [{"until": 0.5, "size": 16}]}, ["resolution.0.size"], "sizes that grow, all below data.size"),
        ({"resolution": [{"until": 0.5, "size": 5}]}, ["resolution.0.size"], "patches of 2 do not divide images of 5"),
        (
            {"resolution": [{"until": 0.5, "size": 4}, {"until": 0.25, "size": 6}]},
            ["resolution.1.until"],
            "shares that grow",
        ),
        (
            {"resolution": [{"until": 0.25, "size": 6}, {"until": 0.5, "size": 4}]},
            ["resolution.1.size"],
            "4 is not between the size before it, 6, and data.size, 8",
        ),
        ({"resolution": [{"until": 0.01, "size": 4}]}, ["resolution.0.until"], "end after step 0"),
        ({"resolution": [{"until": 0.99, "size": 4}]}, ["resolution.0.until"], "end after step 8"),
        ({"resolution": [{"until": 1.0, "size": 4}]}, ["resolution.0.until"], "below 1"),
        ({"resolution": [{"until": 0.5}]}, ["resolution.0.size"], "this key is required"),
        ({"resolution": [{"until": 0.5, "size": 4, "sizes": 3}]}, ["resolution.0.sizes"], "did you mean 'size'?"),
        ({"resolution": 4}, ["resolution"], ""),
        ({"resolution": [4]}, ["resolution.0"], ""),
        (
            {"resolution": HALF, "tread": {"enabled": True, "keep_multiple": 4}},
            ["resolution.0.size"],
            "at 4 pixels: tread.ratio: all 4 tokens are kept",
        ),
        (
            {"resolution": HALF, "perceptual": {"lpips": {"enabled": True}}, "data": {**TINY["data"], "size": 32}},
            ["resolution.0.size"],
            "at 4 pixels: perceptual.lpips.size: images of 4 pixels are too small",
        ),
    ],
)
def test_a_schedule_that_cannot_work_is_refused(block: dict[str, Any], paths: list[str], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        tiny_config(**block)
    assert [issue.path for issue in caught.value.issues] == paths
    assert words in str(caught.value)


def test_a_bucket_that_a_stage_cannot_scale_is_named(tmp_path: Path) -> None:
    write_set(tmp_path)
    data = {"source": "shards", "path": str(tmp_path), "size": 64}
    with pytest.raises(ConfigError, match=r"resolution\.0\.size: at 20 pixels: data\.size: bucket 1216x832 scaled to"):
        parse_config({"steps": 8, "model": TINY["model"], "data": data, "resolution": [{"until": 0.5, "size": 20}]})


def test_a_square_set_takes_any_size_that_patches_divide(tmp_path: Path) -> None:
    square_set(tmp_path, [sample(f"s{index}", 32, 32) for index in range(6)])
    data = {"source": "shards", "path": str(tmp_path), "size": 32, "workers": 0}
    config = parse_config(
        {"steps": 8, "model": TINY["model"], "data": data, "resolution": [{"until": 0.5, "size": 20}]}
    )
    batches = open_batches(config, open_source(config), 0)
    assert batches.batch(0, [0]).pixels_BCHW.shape == (1, 3, 20, 20)


def test_alignment_that_outlives_the_small_images_is_noted() -> None:
    def noted(end: float) -> bool:
        config = tiny_config(resolution=HALF, repa={"enabled": True, "stop": {"end": end}})
        return any("alignment goes on there" in note for note in rules.notes(config))

    assert noted(0.6)
    assert not noted(0.5)
