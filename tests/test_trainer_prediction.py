"""What the head of the model means: x-prediction, v-prediction and AsymFlow, and the basis that AsymFlow needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.fakes.trainer_parts import NoiseSource, tiny, tiny_config
from tests.fakes.trainer_runs import metrics_at, trained
from trainer import randomness
from trainer.__main__ import main
from trainer.checkpoint import load_for_evaluation
from trainer.control import StopRequest
from trainer.data.batches import Batches
from trainer.data.sample import to_unit_range
from trainer.errors import ConfigError, DataError
from trainer.model.nanodit import Output
from trainer.model.patches import from_patches, to_patches
from trainer.objective.asymflow import AsymFlow
from trainer.objective.basis import basis_hash, basis_of_run, fit_basis, read_basis, training_patches, write_basis
from trainer.objective.flow import Noisy, corrupt, velocity
from trainer.objective.prediction import Objective, VPrediction, XPrediction
from trainer.step import Learner

PATCH, FEATURES, SIZE = 2, 12, 8
TIMES = torch.tensor([0.01, 0.3, 0.95])


def noisy(noise_scale: float = 1.0) -> Noisy:
    x, noise = (randomness.normal((3, 3, SIZE, SIZE), 0, "noise", index) for index in (0, 1))
    return Noisy(x, noise, TIMES, corrupt(x, noise, TIMES, noise_scale), noise_scale)


def basis(rank: int) -> Tensor:
    """An orthonormal basis in general position."""
    return torch.linalg.qr(randomness.normal((FEATURES, FEATURES), 3, "basis"))[0][:, :rank].contiguous()


def asymflow(rank: int) -> AsymFlow:
    return AsymFlow(PATCH, FEATURES, rank, basis(rank))


def said(objective: Objective, y_BCHW: Tensor, case: Noisy) -> Output:
    return Output(objective.clean(y_BCHW, case.z_BCHW, case.t_B), None, y_BCHW)


def loss(objective: Objective, y_BCHW: Tensor, case: Noisy) -> Tensor:
    return objective.loss(said(objective, y_BCHW, case), case)


def truth(kind: str, objective: Any, case: Noisy) -> Tensor:
    """What a perfect head would say."""
    if kind == "x":
        return case.x_BCHW
    if kind == "v":
        return case.velocity_BCHW
    return objective.project(case.noise_scale * case.noise_BCHW) - case.x_BCHW


OBJECTIVES: dict[str, Any] = {"x": XPrediction(), "v": VPrediction(), "asymflow": asymflow(5)}


@pytest.mark.parametrize("kind", OBJECTIVES)
@pytest.mark.parametrize("noise_scale", [1.0, 2.5])
def test_a_perfect_head_has_no_loss_and_gives_the_clean_image(kind: str, noise_scale: float) -> None:
    case, objective = noisy(noise_scale), OBJECTIVES[kind]
    y = truth(kind, objective, case)
    torch.testing.assert_close(objective.clean(y, case.z_BCHW, case.t_B), case.x_BCHW, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(loss(objective, y, case), torch.zeros(3), rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_the_loss_is_the_squared_error_of_the_velocity_above_the_floor(kind: str) -> None:
    """Inside AsymFlow's subspace and in v-prediction at every t, else where t is not below 0.05."""
    case, objective = noisy(), OBJECTIVES[kind]
    y = randomness.normal(case.x_BCHW.shape, 0, "noise", 7)
    implied = velocity(case.z_BCHW, objective.clean(y, case.z_BCHW, case.t_B), case.t_B, floor=0.0)
    expected_B = (implied - case.velocity_BCHW).square().flatten(1).mean(1)
    above = case.t_B >= 0.05
    torch.testing.assert_close(loss(objective, y, case)[above], expected_B[above], rtol=1e-3, atol=1e-5)


def test_below_the_floor_an_error_of_the_image_counts_four_hundred_times() -> None:
    x = randomness.normal((3, 3, SIZE, SIZE), 0, "noise", 0)
    case = Noisy(x, x, torch.tensor([0.0, 0.05, 0.1]), x)
    torch.testing.assert_close(loss(XPrediction(), x + 0.1, case), torch.tensor([4.0, 4.0, 1.0]))


def test_asymflow_without_directions_is_x_prediction_of_minus_y() -> None:
    case = noisy(1.5)
    y = randomness.normal(case.x_BCHW.shape, 0, "noise", 7)
    empty = AsymFlow(PATCH, FEATURES, 0)
    torch.testing.assert_close(loss(empty, y, case), loss(XPrediction(), -y, case))
    torch.testing.assert_close(empty.clean(y, case.z_BCHW, case.t_B), -y)


def test_asymflow_in_all_directions_is_v_prediction() -> None:
    case = noisy(1.5)
    y = randomness.normal(case.x_BCHW.shape, 0, "noise", 7)
    torch.testing.assert_close(loss(asymflow(FEATURES), y, case), loss(VPrediction(), y, case), rtol=1e-4, atol=1e-4)
    clean = asymflow(FEATURES).clean(y, case.z_BCHW, case.t_B)
    torch.testing.assert_close(clean, VPrediction().clean(y, case.z_BCHW, case.t_B), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rank", [1, 5, 11])
def test_the_true_asymmetric_velocity_gives_back_the_velocity(rank: int) -> None:
    """u^ = P y + (I - P)(z + y) / t, written out as published, recovers s noise - x; so does the clean image."""
    case, objective = noisy(1.5), asymflow(rank)
    y = truth("asymflow", objective, case)
    t = case.t_B[:, None, None, None]
    rest = case.z_BCHW + y
    recovered = objective.project(y) + (rest - objective.project(rest)) / t
    torch.testing.assert_close(recovered, case.velocity_BCHW, rtol=1e-3, atol=1e-3)
    clean = objective.clean(y, case.z_BCHW, case.t_B)
    torch.testing.assert_close(clean, case.z_BCHW - t * recovered, rtol=1e-3, atol=1e-4)


def test_the_projection_is_one_and_works_patch_by_patch() -> None:
    image = randomness.normal((2, 3, SIZE, SIZE), 0, "noise", 5)
    once = asymflow(5).project(image)
    torch.testing.assert_close(asymflow(5).project(once), once, rtol=1e-4, atol=1e-5)
    patches = to_patches(image, PATCH)
    expected = from_patches(patches @ basis(5) @ basis(5).T, (SIZE // PATCH, SIZE // PATCH), PATCH)
    torch.testing.assert_close(once, expected)
    moved = image.clone()
    moved[:, :, :PATCH, :PATCH] += 1.0
    changed = (asymflow(5).project(moved) - once).abs().amax(dim=(0, 1)) > 1e-6
    assert changed[:PATCH, :PATCH].any()
    changed[:PATCH, :PATCH] = False
    assert not changed.any()


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_weights_of_pixels_move_the_loss_to_where_they_are(kind: str) -> None:
    case, objective = noisy(), OBJECTIVES[kind]
    y = randomness.normal(case.x_BCHW.shape, 0, "noise", 7)
    everywhere = torch.ones(3, 1, SIZE, SIZE)
    output = said(objective, y, case)
    torch.testing.assert_close(objective.loss(output, case, everywhere), objective.loss(output, case))
    left, right = everywhere.clone(), everywhere.clone()
    left[..., SIZE // 2 :], right[..., : SIZE // 2] = 0.0, 0.0
    halves = objective.loss(output, case, left) + objective.loss(output, case, right)
    torch.testing.assert_close(halves, objective.loss(output, case))
    assert not torch.allclose(objective.loss(output, case, left), objective.loss(output, case, right))


# ---- the basis -------------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 11), st.integers(0, 2**31), st.integers(1, 5))
def test_the_directions_are_those_in_which_patches_vary_most(rank: int, seed: int, parts: int) -> None:
    source = torch.Generator().manual_seed(seed)
    spread_F = torch.logspace(0, -2, FEATURES)
    turned = torch.linalg.qr(torch.randn(FEATURES, FEATURES, generator=source))[0]
    patches = torch.randn(400, FEATURES, generator=source) * spread_F @ turned.T + 0.5
    found, variance = fit_basis(patches.chunk(parts), rank)
    torch.testing.assert_close(found.T @ found, torch.eye(rank), rtol=0, atol=1e-5)
    centred = (patches - patches.mean(dim=0)).double()
    kept = (centred @ found.double()).square().sum() / (len(patches) - 1)
    torch.testing.assert_close(kept, variance[:rank].sum(), rtol=1e-4, atol=1e-8)
    expected = torch.linalg.svdvals(centred).square() / (len(patches) - 1)
    torch.testing.assert_close(variance, expected, rtol=1e-4, atol=1e-8)
    assert (found.gather(0, found.abs().argmax(dim=0, keepdim=True)) > 0).all()


def test_too_few_patches_make_no_basis() -> None:
    with pytest.raises(DataError, match="12 patches cannot tell 12 directions apart"):
        fit_basis([torch.randn(12, 12)], 2)


ASYMFLOW = {"prediction": "asymflow", "asymflow": {"rank": 3}}


def test_patches_of_a_basis_are_those_of_training_images_only() -> None:
    config = tiny_config(objective=ASYMFLOW)
    source = NoiseSource(config, 0)
    patches = torch.cat(list(training_patches(config, source)))
    images = [torch.from_numpy(source.load(id).pixels_HWC).permute(2, 0, 1) for id in source.train_ids]
    expected = to_patches(to_unit_range(torch.stack(images)), 2).flatten(0, 1)
    assert sorted(map(tuple, patches.tolist())) == sorted(map(tuple, expected.tolist()))


def test_a_run_keeps_its_basis_and_a_damaged_or_foreign_file_is_refused(tmp_path: Path) -> None:
    config = tiny_config(objective=ASYMFLOW)
    fitted = basis_of_run(config, NoiseSource(config, 0), tmp_path)
    assert fitted is not None
    assert fitted.shape == (12, 3)
    assert torch.equal(read_basis(tmp_path / "basis.safetensors", config), fitted)
    given_file = tiny_config(objective={"prediction": "asymflow", "asymflow": {"rank": 2, "basis": f"{tmp_path}/b"}})
    with pytest.raises(ConfigError, match="cannot be read"):
        basis_of_run(given_file, NoiseSource(config, 0), tmp_path / "other")
    write_basis(tmp_path / "b", basis(4))
    assert torch.equal(read_basis(tmp_path / "b", given_file), basis(4)[:, :2])
    save_file({"basis": basis(4) + 1}, tmp_path / "b", metadata={"hash": basis_hash(basis(4))})
    with pytest.raises(ConfigError, match="damaged"):
        read_basis(tmp_path / "b", given_file)
    write_basis(tmp_path / "b", torch.eye(9)[:, :4].contiguous())
    with pytest.raises(ConfigError, match="4 directions of 9 numbers; this run needs 2 of 12"):
        read_basis(tmp_path / "b", given_file)
    assert basis_of_run(tiny_config(), NoiseSource(config, 0), tmp_path) is None


def test_the_command_writes_a_basis_that_a_run_can_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(yaml.safe_dump({"seed": 0, "trainer": tiny(device="cpu")}))
    out = tmp_path / "basis"
    assert main(["fit-basis", str(config), "--out", str(out), "--rank", "5"]) == 0
    assert "5 directions of 12 hold" in capsys.readouterr().out
    assert load_file(out)["basis"].shape == (12, 5)
    for wrong, words in (
        (["--rank", "13"], "allowed: 1 to that"),
        (["--out", str(tmp_path / "no" / "b")], "no folder"),
    ):
        assert main(["fit-basis", str(config), "--out", str(out), *wrong]) == 2
        assert words in capsys.readouterr().err


# ---- the switch ------------------------------------------------------------------------------------------------------


def first_losses(**objective: Any) -> tuple[list[float], Learner]:
    config = tiny_config(objective=objective, optimizer={"lr": 0.01})
    source = NoiseSource(config, 0)
    basis_FR = None if config.asymflow is None else fit_basis(training_patches(config, source), config.asymflow.rank)[0]
    learner = Learner(config, source.streams, 1, torch.device("cpu"), basis_FR)
    batches = Batches(source, 1, config.samples_per_step)
    found = [learner.step(batches, step, StopRequest()) for step in range(2)]
    return [float(result.losses_L[1]) for result in found if result is not None], learner


def test_every_prediction_has_a_loss_and_a_course_of_its_own() -> None:
    courses = {
        "x": first_losses(prediction="x")[0],
        "v": first_losses(prediction="v")[0],
        "asymflow 2": first_losses(prediction="asymflow", asymflow={"rank": 2})[0],
        "asymflow 8": first_losses(prediction="asymflow", asymflow={"rank": 8})[0],
    }
    assert len({tuple(losses) for losses in courses.values()}) == 4, courses
    assert len({losses[0] for losses in courses.values()}) == 4, "the first loss differs already"


@pytest.mark.parametrize("prediction", ["v", "asymflow"])
def test_a_run_validates_and_comes_back_from_its_checkpoint(tmp_path: Path, prediction: str) -> None:
    run_dir = trained(tmp_path / "run", objective={"prediction": prediction}, steps=2, sampler={})
    metrics = metrics_at(run_dir, 2)
    assert metrics["val/loss"] > 0
    assert {f"val/loss_t{t}" for t in (0.1, 0.3, 0.5, 0.7, 0.9)} <= metrics.keys()
    model, step, document = load_for_evaluation(run_dir, None, "ema", "cpu")
    assert step == 2
    stored = load_file(run_dir / "checkpoints" / "step_000002" / "model.safetensors")
    if prediction == "asymflow":
        assert torch.equal(stored["prediction.basis_FR"], load_file(run_dir / "basis.safetensors")["basis"])
        assert torch.equal(model.prediction.basis_FR, stored["prediction.basis_FR"])
        assert document.config.asymflow is not None
        assert document.config.asymflow.rank == 8
