"""The published protocol: what each of its switches does, that ours is untouched, and that it is labelled."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from runner.spec import ResolvedArm, read_study_arms
from runner.spec.factors import factors
from runner.spec.lint import blocking, lint, published_early_share
from tests.fakes.small_arms import config_of, fingerprint, full_size, small_arms, small_portraits, steps_of
from tests.fakes.trainer_parts import SHAPES, tiny_config
from tests.fakes.trainer_runs import trained
from trainer import checkpoint
from trainer.autopsy.weights import averages_of, load_sets
from trainer.config import EmaConfig
from trainer.errors import ConfigError
from trainer.model.nanodit import build
from trainer.objective.flow import corrupt
from trainer.objective.timesteps import draw_timesteps
from trainer.optim.ema import Ema
from trainer.optim.groups import parameter_groups, published_groups
from trainer.optim.optimizers import Optimizers

PATHS = sorted((Path(__file__).parents[1] / "arms/portrait_1024/parity").glob("*.yaml"))


@pytest.mark.parametrize(
    ("block", "path"),
    [
        ({"ema": {"published": True}}, "ema.published"),
        ({"objective": {"clamp": 0.001}}, "objective.clamp"),
        ({"optimizer": {"groups": "published"}}, "optimizer.groups"),
        ({"model": {"initial_weights": "published"}}, "model.initial_weights"),
    ],
)
def test_each_piece_needs_reference_parity(block: dict[str, Any], path: str) -> None:
    with pytest.raises(ConfigError, match=r"needs reference_parity: true") as caught:
        tiny_config(**block)
    assert path in [issue.path for issue in caught.value.issues]
    tiny_config(**block, reference_parity=True)


def test_the_published_groups_are_not_divided_among_processes() -> None:
    block = {"optimizer": {"name": "muon", "groups": "published"}, "reference_parity": True}
    with pytest.raises(ConfigError, match=r"fsdp and optimizer\.groups"):
        tiny_config(**block, distributed={"strategy": "fsdp"})
    tiny_config(**block)


def test_the_published_average_is_the_one_of_its_formula() -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    ema = Ema(EmaConfig(published=True, half_lives=(0.5,)), model, 1000)
    assert list(ema.models) == ["published", 0.5]
    expected = float(model.weight.detach())
    for step in range(1, 701):
        with torch.no_grad():
            model.weight.fill_(math.sin(step))
        ema.update(model, step)
        d = 0.9999 * min(step / 500, 1.0)
        expected = d * expected + (1 - d) * math.sin(step)
    assert float(ema.first.weight.detach()) == pytest.approx(expected, abs=1e-5)


def test_the_lint_knows_what_the_published_average_remembers() -> None:
    assert published_early_share(5000) == pytest.approx(0.9999**4500)
    assert published_early_share(5000) == pytest.approx(0.638, abs=0.001)
    assert published_early_share(100) < 1e-30


def test_both_averages_are_stored_scored_and_found_by_an_autopsy(tmp_path: Path) -> None:
    run_dir = trained(tmp_path / "run", reference_parity=True, ema={"published": True, "half_lives": [0.05]})
    state = checkpoint.read_state(run_dir, 6)
    assert {path.stem for path in checkpoint.folder(run_dir, 6).glob("ema_*")} == {"ema_published", "ema_0.05"}
    found = averages_of(state)
    assert (found.first, found.other, found.stored) == ("published", 0.05, True)
    sets = load_sets(run_dir, 6).tensors
    scored, *_ = checkpoint.load_for_evaluation(run_dir, 6, "ema", torch.device("cpu"))
    for name, tensor in scored.state_dict().items():
        assert torch.equal(tensor, sets["ema"][name])
    assert any(not torch.equal(tensor, sets["ema_alt"][name]) for name, tensor in sets["ema"].items())


def test_times_are_clamped_where_they_lie_outside_and_nowhere_else() -> None:
    wide = {"timestep_std": 8.0}
    free = draw_timesteps(tiny_config(objective=wide).objective, 1, 0, range(200))
    clamped = tiny_config(objective={**wide, "clamp": 0.001}, reference_parity=True).objective
    assert ((free < 0.001) | (free > 0.999)).any()
    assert torch.equal(draw_timesteps(clamped, 1, 0, range(200)), free.clamp(0.001, 0.999))


def test_pixels_from_zero_to_one_against_unit_noise_are_ours_against_noise_of_two() -> None:
    x_BCHW, noise_BCHW = torch.rand(3, 3, 4, 4) * 2 - 1, torch.randn(3, 3, 4, 4)
    t_B = torch.tensor([0.1, 0.5, 0.9])
    published = corrupt((x_BCHW + 1) / 2, noise_BCHW, t_B)
    ours = corrupt(x_BCHW, noise_BCHW, t_B, 2.0)
    torch.testing.assert_close((ours + (1 - t_B[:, None, None, None])) / 2, published)


def test_the_published_groups_are_what_has_two_dimensions_and_everything_decays() -> None:
    config = tiny_config(
        model={"width": 16, "depth": 2, "heads": 2, "patch": 2, "null_joints": True},
        optimizer={"name": "muon", "weight_decay": 0.03, "groups": "published"},
        reference_parity=True,
    )
    model = build(config.model, SHAPES, 0)
    groups = published_groups(model, use_muon=True)
    shapes = {name: parameter.ndim for name, parameter in model.named_parameters()}
    assert {name for name, dimensions in shapes.items() if dimensions == 2} == set(groups.muon)
    assert {"embed.pose.joint_JD", "head.weight", "blocks.0.modulation.weight"} <= {
        name.removeprefix("conditioning.") for name in groups.muon
    }
    assert set(groups.decayed) == set(shapes) - set(groups.muon)
    assert groups.plain == ()
    optimizers = Optimizers(config.optimizer, model)
    assert {optimizers.weight_decay(parameter) for parameter in model.parameters()} == {0.03}
    assert set(parameter_groups(model, use_muon=True).muon) < set(groups.muon)
    everything = published_groups(model, use_muon=False)
    assert (everything.muon, set(everything.decayed), everything.plain) == ((), set(shapes), ())


def test_the_published_initial_weights_are_zero_in_other_places() -> None:
    def built(**model: Any) -> dict[str, torch.Tensor]:
        sizes = {"width": 16, "depth": 2, "heads": 2, "patch": 2, "null_joints": True}
        config = tiny_config(model={**sizes, **model}, reference_parity=True)
        return dict(build(config.model, SHAPES, 0).named_parameters())

    ours, published = built(), built(initial_weights="published")
    zero = [{name for name, value in each.items() if not value.any()} for each in (ours, published)]
    assert {name for name in zero[0] - zero[1] if "modulation" not in name} == {"head.weight"}
    assert {name.rpartition(".")[2] for name in zero[1] - zero[0]} == {"null_D", "unseen_JD"}
    assert not published["smooth.weight"].any()
    (joints,) = (value for name, value in published.items() if name.endswith("joint_JD"))
    assert float(joints.detach().std()) == pytest.approx(1.0, abs=0.2)
    assert torch.equal(ours["blocks.1.mlp.fc1.weight"], published["blocks.1.mlp.fc1.weight"])


# ---- the arms --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def arms() -> dict[str, ResolvedArm]:
    return {arm.arm: arm for arm in read_study_arms(PATHS)}


def test_the_arms_are_the_published_ones(arms: dict[str, ResolvedArm]) -> None:
    assert sorted(arms) == ["A", "B", "C", "D"]
    for arm in arms.values():
        config = config_of(arm)
        assert config.reference_parity
        assert (config.ema.averages, config.objective.shift) == (("published", 0.05), 1.0)
        assert config.optimizer.lr * config.optimizer.final_lr_share == pytest.approx(1e-6)
    d = config_of(arms["D"])
    assert full_size(d) == (239_571_540, 239_571_540)
    assert (d.repa_block, d.repa_end, d.repa.projector, d.repa.samples) == (9, 1.0, "linear", "all")
    assert [config_of(arms[name]).sampler.native.kind for name in "ABCD"] == ["dual_cfg", *["self_guidance"] * 3]
    assert [factors(arms[base], arms[name]) for base, name in ("AB", "BC", "CD")] == [
        ("TREAD",), ("optimizer",), ("REPA",)
    ]  # fmt: skip


def test_the_lint_objects_to_the_published_average_and_to_nothing_else(arms: dict[str, ResolvedArm]) -> None:
    remarks = lint(list(arms.values()))
    assert {remark.rule for remark in blocking(remarks)} == {"F06"}
    assert len(blocking(remarks)) == 4
    assert "63.8% of the EMA" in blocking(remarks)[0].message
    assert blocking(lint(list(arms.values()), allow={"F06": "the published average"})) == ()


def test_the_published_arms_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNNER_DATA_PORTRAITS", str(small_portraits(tmp_path / "portraits")))
    reduced = {"trainer.model.depth": 11}
    small = small_arms(PATHS[:1], **reduced)
    small |= small_arms(PATHS[1:], **reduced, **{"trainer.tread.keep_multiple": 8})
    trained = {}
    for name, arm in small.items():
        learner, results = steps_of(config_of(arm), tmp_path / name)
        assert all(torch.isfinite(result.losses_L).all() for result in results)
        trained[name] = fingerprint(learner)
    assert len(set(trained.values())) == 4
