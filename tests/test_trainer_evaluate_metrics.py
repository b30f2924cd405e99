"""Scores and their floors: what they are for images that are known."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.fakes.trainer_evaluation import Oracle, eval_set
from trainer import randomness
from trainer.data.sample import Conditions, Edit, to_unit_range
from trainer.evaluate.calibration import Calibration, distortions
from trainer.evaluate.manipulation import hits, manipulate
from trainer.evaluate.perceptual import Lpips, ensure_torchvision, lpips_on
from trainer.evaluate.pictures import to_image, write_images
from trainer.evaluate.protocols import EvalSet
from trainer.evaluate.reconstruction import LOSS_TIMES, displayed, image_scores, loss_scores, rmse
from trainer.evaluate.scores import COLUMNS, Score, Variant, means, scores_of, write_csv
from trainer.evaluate.streams import shuffled, stream_scores

EMA = Variant("ema", "common")


@pytest.fixture(scope="module")
def lpips() -> Lpips:
    return lpips_on("cpu")


@pytest.fixture(scope="module")
def inputs() -> EvalSet:
    return eval_set()


# ---- LPIPS -----------------------------------------------------------------------------------------------------------


def test_torchvision_can_be_imported_again_and_again() -> None:
    ensure_torchvision()
    ensure_torchvision()
    import torchvision

    assert torchvision.models.alexnet


def test_the_random_backbone_is_always_the_same_and_leaves_other_draws_alone(lpips: Lpips) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    again = Lpips("cpu")
    assert torch.equal(torch.rand(3), expected)
    assert again.hash == lpips.hash == "0b301e7095e28e87"


def test_lpips_is_a_symmetric_distance_at_any_size(lpips: Lpips, inputs: EvalSet) -> None:
    one, other = inputs.x_BCHW[:4], inputs.x_BCHW[4:8]
    assert lpips(one, one).abs().max() == 0
    assert lpips(one, other).min() > 0.01
    torch.testing.assert_close(lpips(one, other), lpips(other, one))
    large = torch.nn.functional.interpolate(one[:1], size=(64, 64), mode="bilinear", align_corners=False)
    torch.testing.assert_close(lpips(large, large.flip(3)), lpips(one[:1], one[:1].flip(3)), atol=1e-3, rtol=1e-2)
    assert lpips(torch.rand(1, 3, 20, 31), torch.rand(1, 3, 20, 31)).shape == (1,)


# ---- RMSE and pictures -----------------------------------------------------------------------------------------------


def test_rmse_is_measured_on_the_displayed_image() -> None:
    real = torch.zeros(3, 3, 4, 4)
    generated = torch.stack([torch.full((3, 4, 4), value) for value in (0.0, 0.5, 9.0)])
    assert rmse(generated, real).tolist() == [0.0, 0.5, 1.0]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_value_that_is_not_finite_spoils_its_image_only(bad: float) -> None:
    generated = torch.zeros(2, 3, 4, 4)
    generated[1, 0, 2, 2] = bad
    scores = rmse(generated, torch.zeros(2, 3, 4, 4))
    assert scores[0] == 0
    assert scores[1].isnan()
    assert displayed(generated)[1].isnan().all()


def test_reference_pixels_out_of_range_are_our_own_bug() -> None:
    with pytest.raises(AssertionError, match=r"\[-1, 1\]"):
        rmse(torch.zeros(1, 3, 2, 2), torch.full((1, 3, 2, 2), 1.5))


def test_a_picture_hits_every_byte_and_survives_the_disk(tmp_path: Path) -> None:
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(2, 3, 16, 16)
    write_images(tmp_path / "reference", ["a", "b"], to_unit_range(pixels), ["one", "two"])
    with Image.open(tmp_path / "reference" / "b.png") as image:
        assert image.info["caption"] == "two"
        np.testing.assert_array_equal(np.asarray(image), pixels[1].permute(1, 2, 0))
    wild = torch.tensor([math.nan, math.inf, -math.inf, 3.0]).reshape(1, 2, 2).expand(3, 2, 2)
    assert np.asarray(to_image(wild))[..., 0].ravel().tolist() == [0, 255, 0, 255]


# ---- floors ----------------------------------------------------------------------------------------------------------

ORDER = ["identical", "jittered", "blurred", "other_portrait", "noise"]


@pytest.mark.parametrize(("size", "samples"), [(32, 48), (16, 12), (64, 12), (128, 6)])
def test_the_primary_metric_orders_the_floors(lpips: Lpips, size: int, samples: int) -> None:
    inputs = eval_set(size, samples, model={"patch": size // 8})
    floors = Calibration([(inputs.x_BCHW, inputs.noise(0))], lpips).levels()
    values = [floors["recon_rmse"][name] for name in ORDER]
    assert values[0] == 0
    assert values == sorted(set(values))
    assert floors["recon_lpips"]["identical"] == 0
    assert floors["recon_lpips"]["jittered"] < floors["recon_lpips"]["other_portrait"]
    assert floors["recon_rmse"]["mean_image"] < floors["recon_rmse"]["other_portrait"]


def test_a_single_image_has_no_other(lpips: Lpips, inputs: EvalSet) -> None:
    floors = Calibration([(inputs.x_BCHW[:1], inputs.noise(0)[:1])], lpips).levels()
    assert floors["recon_rmse"]["other_portrait"] is None
    assert floors["recon_rmse"]["noise"] > 0.5


def test_other_metrics_have_levels_over_the_samples_they_are_measured_on(lpips: Lpips, inputs: EvalSet) -> None:
    calibration = Calibration([(inputs.x_BCHW, inputs.noise(0))], lpips)
    metrics = ["text_rmse", "text_lpips", "dino_swap_lpips", "dino_swap_toward", "cfg_divergence_text_dino", "use_text"]
    found = calibration.levels_of([*metrics, "text_manip_delta", "text_manip_hit", "recon_rmse", "loss"], [8])
    assert set(found) == {"text_manip_delta", *metrics[:3], "cfg_divergence_text_dino"}
    other_BCHW = inputs.x_BCHW.roll(1, 0)[:8]
    assert found["text_rmse"]["other_portrait"] == pytest.approx(rmse(other_BCHW, inputs.x_BCHW[:8]).mean().item())
    expected = lpips(other_BCHW, inputs.x_BCHW[:8]).mean().item()
    for name in ("text_lpips", "dino_swap_lpips", "text_manip_delta"):
        assert found[name]["other_portrait"] == pytest.approx(expected, rel=1e-4)
        assert found[name]["identical"] == 0.0


def test_distortions_keep_the_mean_where_they_should(inputs: EvalSet) -> None:
    flat = torch.full((2, 3, 32, 32), 0.25)
    drawn = distortions(flat, inputs.noise(0)[:2])
    for name in ("jittered", "blurred", "mean_image"):
        torch.testing.assert_close(drawn[name], flat)


# ---- what every checkpoint is asked ----------------------------------------------------------------------------------


def test_noise_and_masks_depend_on_sample_and_eval_seed_only(inputs: EvalSet) -> None:
    fewer = eval_set(samples=5, tread={"enabled": True}, optimizer={"lr": 0.5})
    assert fewer.ids == tuple(id for id in inputs.ids if id in fewer.ids)
    places = [inputs.ids.index(id) for id in fewer.ids]
    assert torch.equal(fewer.noise(0), inputs.noise(0)[places])
    assert not torch.equal(fewer.noise(1), fewer.noise(0))
    assert torch.equal(fewer.noise(0)[0], randomness.normal((3, 32, 32), 0, "eval", fewer.ids[0], 0))
    route = fewer.route(0)
    assert route.keep_BK.shape == (5, 32)
    assert (route.first, route.last) == (1, 4)
    assert torch.equal(route.keep_BK, fewer.route(0).keep_BK)
    assert not torch.equal(route.keep_BK[0], route.keep_BK[1])


def test_a_sample_does_not_depend_on_its_neighbours(inputs: EvalSet, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = Oracle(lambda z_BCHW, conditions: z_BCHW * 0.5 + conditions.cls_BD.mean(dim=1)[:, None, None, None])
    together = inputs.generate(answer, inputs.conditions)
    monkeypatch.setattr("trainer.evaluate.protocols._TOKENS_AT_ONCE", 64 * 5)
    torch.testing.assert_close(inputs.generate(answer, inputs.conditions), together)
    assert torch.equal(inputs.generate(answer, inputs.conditions, count=3), together[:3])


def test_the_loss_follows_its_formula(inputs: EvalSet) -> None:
    chosen = inputs.x_BCHW[: inputs.first_sixth]
    perfect = loss_scores(inputs, Oracle(lambda z_BCHW, _: chosen), "ema")
    assert {score.value for score in perfect} == {0.0}
    blank = means(loss_scores(inputs, Oracle(lambda z_BCHW, _: torch.zeros_like(z_BCHW)), "raw"))
    power = chosen.square().flatten(1).mean(1).mean().item()
    for t in LOSS_TIMES:
        assert blank[f"val_raw/loss_t{t}"] == pytest.approx(power / t**2, rel=1e-4)
    assert blank["val_raw/loss"] == pytest.approx(np.mean([power / t**2 for t in LOSS_TIMES]), rel=1e-4)


# ---- use of streams --------------------------------------------------------------------------------------------------


def test_a_stream_that_is_ignored_has_no_use(inputs: EvalSet) -> None:
    blind = Oracle(lambda z_BCHW, conditions: z_BCHW * 0.3)
    found = means(stream_scores(inputs, blind, 0, inputs.generate(blind, inputs.conditions)))
    assert found == {f"val/use_{stream}": 0.0 for stream in ("text", "cls", "patches", "pose")}


def test_a_stream_that_is_followed_has_a_use(inputs: EvalSet) -> None:
    table_BD = inputs.conditions.cls_BD

    def recall(z_BCHW: Tensor, conditions: Conditions) -> Tensor:
        return inputs.x_BCHW[torch.cdist(conditions.cls_BD, table_BD).argmin(dim=1)]

    found = stream_scores(inputs, Oracle(recall), 0, inputs.x_BCHW)
    assert means(found)["val/use_cls"] > 0.3
    assert {score.value for score in found if score.metric != "use_cls"} == {0.0}
    assert len(found) == 4 * len(inputs.ids)


def test_shuffling_moves_one_stream_and_its_mask(inputs: EvalSet) -> None:
    moved = shuffled(inputs.conditions, "text")
    assert torch.equal(moved.text_BTD[1:], inputs.conditions.text_BTD[:-1])
    assert torch.equal(moved.text_mask_BT[0], inputs.conditions.text_mask_BT[-1])
    assert torch.equal(moved.pose_BJ3, inputs.conditions.pose_BJ3)


def test_one_sample_has_no_other_to_borrow_from() -> None:
    alone = eval_set(samples=1)
    assert alone.first_third == 1
    assert stream_scores(alone, Oracle(lambda z_BCHW, _: z_BCHW), 0, alone.x_BCHW) == []


# ---- words -----------------------------------------------------------------------------------------------------------


class Reader(Oracle):
    """Draws exactly what a caption says: knows the text features of all captions and edits of an evaluation set."""

    def __init__(self, inputs: EvalSet) -> None:
        self._table: dict[bytes, Tensor] = {}
        for index, id in enumerate(inputs.ids):
            edit = inputs.source.edit(id)
            edited = to_unit_range(torch.from_numpy(edit.pixels_HWC.transpose(2, 0, 1).copy()))
            for caption, image in (
                (inputs.captions[index], inputs.x_BCHW[index]),
                (edit.paraphrase, inputs.x_BCHW[index]),
                (edit.caption, edited),
            ):
                self._table[inputs.encode([caption]).text_BTD[0].numpy().tobytes()] = image
        super().__init__(self._look_up)

    def _look_up(self, z_BCHW: Tensor, conditions: Conditions) -> Tensor:
        return torch.stack([self._table[text.numpy().tobytes()] for text in conditions.text_BTD])


def test_a_model_that_reads_hits_every_edit(inputs: EvalSet, lpips: Lpips) -> None:
    found = means(manipulate(inputs, Reader(inputs), lpips, 0).scores)
    assert found["val/text_manip_hit"] == 1.0
    assert found["val/text_manip_floor"] == 0.0
    assert found["val/text_manip_spread"] == 0.0
    assert found["val/text_manip_delta"] > 0.01


def test_a_model_that_ignores_words_hits_nothing(inputs: EvalSet, lpips: Lpips) -> None:
    manipulation = manipulate(inputs, Oracle(lambda z_BCHW, _: z_BCHW), lpips, 0)
    found = means(manipulation.scores)
    assert [found[f"val/text_manip_{name}"] for name in ("delta", "floor", "hit")] == [0.0, 0.0, 0.0]
    assert found["val/text_manip_spread"] > 0.01, "another noise gives another image"
    assert torch.equal(manipulation.original_BCHW, manipulation.edited_BCHW)
    assert len(manipulation.scores) == 4 * inputs.first_third


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0.0), (0.49, 0.0), (0.51, 1.0), (1.0, 1.0), (1.6, 0.0)])
def test_a_hit_is_more_than_half_of_the_way(share: float, expected: float) -> None:
    region_HW = np.zeros((4, 4), bool)
    region_HW[:2] = True
    edit = Edit("shirt", "", "", np.full((4, 4, 3), 255, np.uint8), region_HW)
    before = torch.zeros(1, 3, 4, 4)
    after = torch.full((1, 3, 4, 4), -1.0)
    after[:, :, :2] = share
    assert hits(before, after, [edit]).tolist() == [expected]
    assert hits(before, after * math.nan, [edit]).isnan().all()


# ---- tables ----------------------------------------------------------------------------------------------------------


def test_means_are_over_valid_samples_and_named_by_protocol() -> None:
    scores = [
        *scores_of(EMA, "recon_rmse", ["a", "b", "c"], 0, [1.0, math.nan, 2.0]),
        *scores_of(Variant("raw", "native"), "recon_rmse", ["a"], 0, [math.inf]),
    ]
    found = means(scores)
    assert found["val/recon_rmse"] == 1.5
    assert math.isnan(found["val_raw_native/recon_rmse"])
    assert [score.valid for score in scores] == [True, False, True, False]


def test_scores_csv_has_one_row_a_sample(tmp_path: Path) -> None:
    scores = [Score(EMA, "recon_rmse", "p1", 0, 0.1), Score(Variant("raw", "native"), "use_text", "p2", 3, math.nan)]
    write_csv(tmp_path / "scores.csv", "run-1", 500, scores)
    with (tmp_path / "scores.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert ",".join(rows[0]) == "run,step,weights,sampler,metric,sample_id,eval_seed,value,valid,reason"
    assert tuple(rows[0]) == COLUMNS
    assert rows[1] == ["run-1", "500", "ema", "common", "recon_rmse", "p1", "0", "0.1", "1", ""]
    assert rows[2] == ["run-1", "500", "raw", "native", "use_text", "p2", "3", "", "0", "not finite"]
    assert [path.name for path in tmp_path.iterdir()] == ["scores.csv"]


def test_image_scores_belong_to_the_first_samples(inputs: EvalSet, lpips: Lpips) -> None:
    found = image_scores(inputs, lpips, EMA, "text", 1, inputs.x_BCHW[:3])
    assert [score.sample_id for score in found] == [*inputs.ids[:3], *inputs.ids[:3]]
    assert {score.metric for score in found} == {"text_rmse", "text_lpips"}
    assert {score.value for score in found} == {0.0}
