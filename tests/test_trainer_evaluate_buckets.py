"""Validation, probes and autopsies of images in several shapes, of which one has a single held-out image."""

from __future__ import annotations

import csv
import json
import math
import shutil
from collections.abc import Iterator, Sequence
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.fakes.shards import WIDTH, sample, square_set, write_shards
from tests.fakes.trainer_evaluation import Oracle, eval_set
from tests.fakes.trainer_runs import metrics_at, trained
from tests.test_trainer_evaluate_pose import Recognising
from trainer.autopsy.command import autopsy
from trainer.autopsy.measure import Budget, measure
from trainer.autopsy.passes import plan_passes
from trainer.data import open_source
from trainer.data.buckets import BUCKETS
from trainer.data.split import id_hash, is_held_out, is_probe
from trainer.document import load_document, parse_config
from trainer.errors import DataError
from trainer.evaluate.calibration import Calibration
from trainer.evaluate.command import evaluate
from trainer.evaluate.perceptual import lpips_on
from trainer.evaluate.pose import PoseJudge
from trainer.evaluate.protocols import EvalSet, comparable_hash, eval_sets
from trainer.evaluate.reconstruction import rmse
from trainer.evaluate.scores import EMA_COMMON, PREFIXES, Variant
from trainer.evaluate.sheet import CELL, Row, contact_sheet
from trainer.indicators.routed_gap import Predicted, losses, predictions, routed_gap

SQUARE, WIDE, TALL = BUCKETS[0], BUCKETS[3], BUCKETS[4]
STORED, SIZE = 64, 32
CPU = torch.device("cpu")
LONE = 1


def ids_where(rule: Any, number: int) -> list[str]:
    """The first so many ids that a rule of the split takes, by their hashes."""
    found = islice((id for id in (f"s{index:04d}" for index in count()) if rule(id)), number)
    return sorted(found, key=id_hash)


HELD_OUT, PROBED = ids_where(is_held_out, 12), ids_where(is_probe, 8)
TRAINED = ids_where(lambda id: not (is_held_out(id) or is_probe(id)), 12)
# The only tall image is the last one of a validation and the first one of a probe.
BUCKET_OF = {
    **{id: (SQUARE, WIDE)[index % 2] for ids in (HELD_OUT, PROBED, TRAINED) for index, id in enumerate(ids)},
    **dict.fromkeys((HELD_OUT[-1], PROBED[0], TRAINED[0]), TALL),
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shards")
    for bucket in (SQUARE, WIDE, TALL):
        height, width = bucket.scaled(STORED) or (0, 0)
        own = [sample(id, height, width) for id in BUCKET_OF if BUCKET_OF[id] == bucket]
        write_shards(root / f"bucket_{width}x{height}", own)
    return root


@pytest.fixture(scope="module")
def run_dir(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(
        tmp_path_factory.mktemp("runs") / "buckets",
        steps=2,
        data={"source": "shards", "path": str(shards), "size": SIZE, "workers": 0},
        validation={"every": 2, "samples": 12, "sampler_steps": 1, "grid": {"every": 2, "samples": 4}},
        ema={"half_lives": [0.05, 0.2]},
    )


@pytest.fixture(scope="module")
def sets(shards: Path) -> tuple[EvalSet, ...]:
    return opened(shards)


def opened(shards: Path, **validation: int) -> tuple[EvalSet, ...]:
    data = {"source": "shards", "path": str(shards), "size": SIZE}
    config = parse_config({"steps": 2, "data": data, "validation": {"samples": 12, "sampler_steps": 2, **validation}})
    return eval_sets(config, open_source(config), CPU)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def ids_of(found: Sequence[dict[str, str]], metric: str, weights: str = "ema") -> set[str]:
    chosen = [row for row in found if (row["metric"], row["weights"], row["sampler"]) == (metric, weights, "common")]
    assert len({row["sample_id"] for row in chosen}) == len(chosen)
    return {row["sample_id"] for row in chosen}


# ---- which samples ---------------------------------------------------------------------------------------------------


def test_one_set_a_shape_in_the_order_of_their_first_samples(sets: tuple[EvalSet, ...]) -> None:
    assert [inputs.x_BCHW.shape[2:] for inputs in sets] == [SQUARE.scaled(SIZE), WIDE.scaled(SIZE), TALL.scaled(SIZE)]
    assert sorted(place for inputs in sets for place in inputs.places) == list(range(12))
    for inputs in sets:
        assert inputs.ids == tuple(HELD_OUT[place] for place in inputs.places)
    assert [inputs.first_third for inputs in sets] == [2, 2, 0]
    assert [inputs.first_sixth for inputs in sets] == [1, 1, 0]


@given(st.lists(st.integers(0, 6), min_size=1, max_size=40), st.integers(0, 45))
def test_the_first_samples_of_all_are_the_first_of_every_set(shape_of: list[int], first: int) -> None:
    whole = [f"s{place}" for place in range(len(shape_of))]
    taken = []
    for shape in set(shape_of):
        places = [place for place, own in enumerate(shape_of) if own == shape]
        inputs = EvalSet.__new__(EvalSet)
        inputs.places = tuple(places)
        taken += [whole[place] for place in places[: inputs.among_first(first)]]
    assert sorted(taken) == sorted(whole[:first])


def test_fewer_samples_are_the_first_ones_of_all_buckets(shards: Path) -> None:
    fewer = opened(shards, samples=5)
    assert sorted(id for inputs in fewer for id in inputs.ids) == sorted(HELD_OUT[:5])
    config = fewer[0].config
    with pytest.raises(DataError, match="no image is held out"):
        eval_sets(config, open_source(config), CPU, ())


def test_images_of_one_shape_have_the_hash_that_they_always_had(tmp_path: Path) -> None:
    portraits = eval_set(samples=12)
    assert comparable_hash([portraits], "judge") == "0416b7b97c2855fb"
    square_set(tmp_path, [sample(f"s{number:02d}", 32, 32) for number in range(40)])
    [inputs] = opened(tmp_path, samples=8)
    assert (inputs.first_third, inputs.first_sixth) == (2, 1)
    assert comparable_hash([inputs], "judge") == "57a6761d9dba6200"


def test_the_hash_is_that_of_all_buckets(shards: Path, sets: tuple[EvalSet, ...]) -> None:
    hashes = [comparable_hash(some, "judge") for some in (sets, opened(shards), sets[:2], sets[:1], sets[1:])]
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 4


# ---- a run -----------------------------------------------------------------------------------------------------------


def test_every_held_out_image_of_every_bucket_is_scored(run_dir: Path) -> None:
    found = rows(run_dir / "validation" / "step_000002" / "scores.csv")
    together = set(HELD_OUT) - {HELD_OUT[-1]}
    assert ids_of(found, "recon_rmse") == ids_of(found, "recon_lpips") == set(HELD_OUT)
    for metric, weights in (("recon_rmse", "raw"), ("text_lpips", "ema"), ("cfg_divergence_text_dino", "ema")):
        assert ids_of(found, metric, weights) == set(HELD_OUT[:4]), metric
    assert ids_of(found, "loss") == ids_of(found, "loss_t0.5", "raw") == set(HELD_OUT[:2])
    for stream in ("text", "cls", "patches", "pose"):
        assert ids_of(found, f"use_{stream}") == together
    assert ids_of(found, "dino_swap_lpips") == set(HELD_OUT[:4]), "a pair of the first two of both buckets"


def test_means_are_over_the_samples_of_all_buckets(run_dir: Path) -> None:
    gathered: dict[str, list[float]] = {}
    for row in rows(run_dir / "validation" / "step_000002" / "scores.csv"):
        name = f"{PREFIXES[Variant(row['weights'], row['sampler'])]}/{row['metric']}"
        gathered.setdefault(name, []).append(float(row["value"]))
    metrics = metrics_at(run_dir, 2)
    assert set(gathered) == {name for name in metrics if not name.startswith(("val_probe/", "opt/"))}
    for name, values in gathered.items():
        assert metrics[name] == math.fsum(values) / len(values), name


def test_light_steps_score_what_full_ones_score(run_dir: Path) -> None:
    light = rows(run_dir / "validation" / "step_000000" / "scores.csv")
    assert ids_of(light, "recon_rmse") == set(HELD_OUT)
    assert ids_of(light, "recon_rmse", "raw") == set(HELD_OUT[:4])
    drawn = {path.stem for path in (run_dir / "validation" / "step_000000" / "images" / "ema_common").iterdir()}
    assert drawn == set(HELD_OUT[:8])


def test_meta_says_how_many_of_which_shape_and_who_is_alone(run_dir: Path) -> None:
    meta = json.loads((run_dir / "validation" / "step_000002" / "meta.json").read_text())
    assert (meta["held_out"], meta["first_third"], meta["first_sixth"], meta["train_ids_overlap"]) == (12, 4, 2, 0)
    keys = ("width", "height", "held_out", "first_third", "first_sixth")
    assert [tuple(shape[key] for key in keys) for shape in meta["shapes"]] == [
        (32, 32, 6, 2, 1),
        (40, 24, 5, 2, 1),
        (24, 40, LONE, 0, 0),
    ]
    labels = " / ".join(meta["labels"])
    assert "validated images by bucket: 1024x1024 (6), 1280x768 (5), 768x1280 (1)" in labels
    assert "probed images by bucket: 1024x1024 (3), 1280x768 (4), 768x1280 (1)" in labels
    assert "the only one of its shape, and not in the metrics use_* and dino_swap_*: 1 of 12 samples" in labels
    assert meta["distributions"]["val/recon_rmse"]["valid"] == 12
    assert meta["distributions"]["val/use_pose"]["valid"] == 11


def test_images_keep_their_shape_and_sheets_have_room_for_all(run_dir: Path) -> None:
    folder = run_dir / "validation" / "step_000002"
    for id in HELD_OUT:
        with Image.open(folder / "images" / "reference" / f"{id}.png") as image:
            assert image.size == (BUCKET_OF[id].scaled(SIZE) or ())[::-1]
    assert sorted(path.stem for path in (folder / "sheets").iterdir()) == ["cfg_divergence", "dino_swap"]
    with Image.open(run_dir / "validation" / "grids" / "step_000002.png") as image:
        assert image.width > 5 * CELL
        assert image.height > 4 * CELL


def test_evaluate_gives_every_byte_again(run_dir: Path, tmp_path: Path) -> None:
    again = Path(shutil.copytree(run_dir, tmp_path / "again"))
    shutil.rmtree(again / "validation" / "step_000002")
    found = evaluate(again, step=2)[2]
    written = {n: repr(v) for n, v in metrics_at(run_dir, 2).items() if not n.startswith(("val_probe/", "opt/"))}
    assert {name: repr(value) for name, value in found.items()} == written
    for path in sorted((run_dir / "validation").rglob("*")):
        if path.is_file():
            assert path.read_bytes() == (again / path.relative_to(run_dir)).read_bytes(), path.name


def test_probes_look_at_every_bucket(run_dir: Path) -> None:
    found, metrics = rows(run_dir / "probes" / "step_000002.csv"), metrics_at(run_dir, 2)
    for weights, prefix in (("ema", "val_probe/"), ("raw", "val_probe/raw_")):
        assert ids_of(found, "recon_rmse", weights) == set(PROBED)
        assert ids_of(found, "loss", weights) == set(PROBED[:4])
        for metric in ("recon_rmse", "recon_lpips", "loss"):
            values = [float(row["value"]) for row in found if (row["metric"], row["weights"]) == (metric, weights)]
            assert metrics[prefix + metric] == math.fsum(values) / len(values)
    assert metrics["opt/dense_routed_gap"] > 0


def test_an_autopsy_looks_at_every_bucket(run_dir: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run_dir, tmp_path / "copy"))
    document = autopsy(copy)
    assert (document["samples"], document["samples_available"]) == (12, 12)
    examined = rows(copy / "autopsy" / "scores.csv")
    assert {row["sample_id"] for row in examined} == set(HELD_OUT)
    assert document["eval_set"] == comparable_hash(sets_of(run_dir), lpips_on("cpu").hash)


def sets_of(run_dir: Path) -> tuple[EvalSet, ...]:
    document = load_document(run_dir / "config.yaml")
    return eval_sets(document.config, open_source(document.config), CPU)


def test_an_autopsy_in_a_hurry_takes_the_first_samples_of_all(sets: tuple[EvalSet, ...]) -> None:
    clock = iter(range(100))
    lefts: Iterator[float] = iter((9.0, 2.7, 0.0))  # two first, at half a second each four more, then none
    blank = {1: {"raw": Oracle(lambda z_BCHW, _: z_BCHW)}}
    dense = plan_passes(sets[0].config).all[:1]
    found = measure(sets, blank, dense, rmse, Budget(lambda: next(lefts)), lambda: float(next(clock)))
    assert {row.sample_id for row in found} == set(HELD_OUT[:6])
    assert len(found) == 6


# ---- floors, gaps, poses, sheets -------------------------------------------------------------------------------------


def test_floors_between_images_are_those_of_one_shape(sets: tuple[EvalSet, ...]) -> None:
    lpips = lpips_on("cpu")
    found = Calibration([(inputs.x_BCHW, inputs.noise(0)) for inputs in sets], lpips)
    levels, square, wide = found.levels()["recon_rmse"], sets[0].x_BCHW, sets[1].x_BCHW
    others = torch.cat([rmse(x_BCHW.roll(1, 0), x_BCHW) for x_BCHW in (square, wide)])
    middle = torch.cat([rmse(x_BCHW.mean(0, keepdim=True).expand_as(x_BCHW), x_BCHW) for x_BCHW in (square, wide)])
    noise = torch.cat([rmse(inputs.noise(0), inputs.x_BCHW) for inputs in sets])
    assert levels["other_portrait"] == pytest.approx(others.mean().item())
    assert levels["mean_image"] == pytest.approx(middle.mean().item())
    assert levels["noise"] == pytest.approx(noise.mean().item())
    assert len(others) == len(middle) == 11
    first = found.levels_of(["text_rmse"], [inputs.first_third for inputs in sets])["text_rmse"]
    assert first["other_portrait"] == pytest.approx(torch.cat([others[:2], others[6:8]]).mean().item())
    assert first["noise"] == pytest.approx(torch.cat([noise[:2], noise[6:8]]).mean().item())


def test_where_every_image_is_alone_there_are_no_others(sets: tuple[EvalSet, ...]) -> None:
    alone = [(inputs.x_BCHW[:1], inputs.noise(0)[:1]) for inputs in sets]
    levels = Calibration(alone, lpips_on("cpu")).levels()["recon_rmse"]
    assert levels["other_portrait"] is None
    assert levels["mean_image"] is None
    assert levels["identical"] == 0.0
    assert (levels["noise"] or 0.0) > 0.3


def parted(inputs: EvalSet) -> list[EvalSet]:
    """The same samples as if every third one had another shape."""
    samples = [inputs.source.load(id) for id in inputs.ids]
    places = [[place for place in range(len(samples)) if (place % 3 == 0) == third] for third in (True, False)]
    return [
        EvalSet(inputs.config, inputs.source, CPU, [samples[place] for place in own], own, len(samples))
        for own in places
    ]


def test_the_gap_of_several_sets_is_that_of_their_union() -> None:
    inputs = eval_set(samples=9)
    dense = Oracle(lambda z_BCHW, _: z_BCHW * 0.5)
    routed = Oracle(lambda z_BCHW, conditions: z_BCHW * 0.4 + 0.1 * conditions.cls_BD.mean(1)[:, None, None, None])
    found = []
    for sets in ([inputs], parted(inputs)):
        first = [(each, each.among_first(5)) for each in sets]
        shapes = [
            Predicted(each, *(predictions(each, model, number) for model in (dense, routed))) for each, number in first
        ]
        assert sum(len(losses(each.inputs, each.dense)) for each in shapes) == 5
        found.append(routed_gap(shapes))
    assert list(found[0]) == list(found[1])
    assert len(found[0]) == 7
    for name, value in found[0].items():
        assert found[1][name] == pytest.approx(value, rel=1e-5)


class RecognisingAll:
    """A detector that knows the images of every shape."""

    hash = "0123456789abcdef"

    def __init__(self, sets: Sequence[EvalSet]) -> None:
        self._by_shape = {inputs.x_BCHW.shape[1:]: Recognising(inputs, 0.002) for inputs in sets}

    def __call__(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        return self._by_shape[x_BCHW.shape[1:]](x_BCHW)


def test_one_judge_scores_the_poses_of_all_shapes(tmp_path: Path) -> None:
    """The noise of other tests has no eyes; here every pose has two, well in the frame."""
    draw = np.random.default_rng(5)
    for bucket, number in ((SQUARE, 24), (TALL, 8)):
        height, width = bucket.scaled(STORED) or (0, 0)
        own = []
        for index in range(number):
            pose = np.concatenate([draw.uniform(-0.9, 0.9, (133, 2)), np.ones((133, 1))], axis=1)
            pose[1:3, :2] = [[-0.5, 0.0], [0.5, 0.0]]
            own.append(sample(f"{bucket.name}-{index}", height, width, **{"pose.npy": pose.astype(np.float16)}))
        write_shards(tmp_path / f"bucket_{width}x{height}", own)
    sets = opened(tmp_path, samples=8)
    assert len(sets) == 2
    judge = PoseJudge(sets, RecognisingAll(sets))  # type: ignore[arg-type]
    parts = [PoseJudge([inputs], RecognisingAll(sets)) for inputs in sets]  # type: ignore[arg-type]
    numbers = [len(inputs.ids) for inputs in sets]
    for level, (ceiling, floor) in judge.levels.items():
        for place, value in enumerate((ceiling, floor)):
            own = [part.levels[level][place] for part in parts]
            assert value == pytest.approx(np.average(own, weights=numbers))
    assert "mpjpe" in judge.levels
    blank = [torch.zeros_like(inputs.x_BCHW) for inputs in sets]
    missed = [s for inputs, x in zip(sets, blank, strict=True) for s in judge.scores(inputs, EMA_COMMON, 0, x)]
    assert {score.value for score in missed if score.metric == "mpjpe"} == {judge.levels["mpjpe"][1]}
    stand_ins = [{"identical": inputs.x_BCHW} for inputs in sets]
    assert judge.calibration(stand_ins)["mpjpe"]["identical"] == pytest.approx(judge.levels["mpjpe"][0])


def test_a_lone_pose_is_scored_and_sets_no_level(sets: tuple[EvalSet, ...]) -> None:
    judge, pair = (PoseJudge(some, RecognisingAll(some)) for some in (sets, sets[:2]))  # type: ignore[arg-type]
    assert judge.levels == pair.levels
    assert "mpjpe" in judge.levels
    scores = judge.scores(sets[2], EMA_COMMON, 0, sets[2].x_BCHW)
    assert {score.sample_id for score in scores} == {HELD_OUT[-1]}


def test_images_of_other_shapes_stand_in_the_middle_of_a_common_cell() -> None:
    red = torch.tensor((1.0, -1.0, -1.0))[:, None, None]
    wide, tall = red.expand(3, 64, 128), red.expand(3, 128, 32)
    sheet = np.asarray(contact_sheet("t", ("a", "b"), [Row((wide, tall), "one"), Row((None, wide), "two")]))
    is_red = (sheet == (255, 0, 0)).all(axis=2)
    assert is_red.sum() == 2 * 64 * 128 + 128 * 32
    down, across = np.nonzero(is_red[: is_red.shape[0] // 2])
    left = across < sheet.shape[1] // 2
    assert (np.ptp(down[left]), np.ptp(across[left])) == (63, 127)
    assert (np.ptp(down[~left]), np.ptp(across[~left])) == (127, 31)
    assert abs(down[left].mean() - down[~left].mean()) <= 0.5, "both in the middle of their row"


def test_features_are_those_of_the_set(sets: tuple[EvalSet, ...]) -> None:
    assert [inputs.conditions.patch_grid for inputs in sets] == [(4, 4), (3, 5), (5, 3)]
    assert {inputs.conditions.patches_BPD.shape[2] for inputs in sets} == {WIDTH}
