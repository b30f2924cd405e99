"""The speedrun: two arms that differ in the sizes of their images, and that train across the change."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from runner.spec import ResolvedArm, read_study_arms
from runner.spec.factors import factors
from runner.spec.lint import blocking, lint
from tests.fakes.small_arms import config_of, fingerprint, full_size, small_arms, small_portraits, steps_of
from trainer import size
from trainer.data.shapes import stream_shapes

PATHS = sorted((Path(__file__).parents[1] / "arms/speedrun").glob("*.yaml"))


@pytest.fixture(scope="module")
def arms() -> dict[str, ResolvedArm]:
    return {arm.arm: arm for arm in read_study_arms(PATHS)}


def test_the_recipe_is_what_it_says(arms: dict[str, ResolvedArm]) -> None:
    assert sorted(arms) == ["A", "S"]
    config = config_of(arms["S"])
    model = config.model
    assert (model.width, model.depth, model.patch, model.bottleneck) == (1024, 24, 32, 256)
    assert (config.optimizer.name, config.objective.shift, config.objective.uniform_share) == ("muon", 3.0, 0.1)
    assert (config.tread_blocks, config.repa_block) == ((1, 22), 7)
    assert [config.size_at(step) for step in (0, 15_999, 16_000, 19_999)] == [512, 512, 1024, 1024]
    assert config.repa_end == config.resolution[-1].until, "alignment ends with the small images"
    assert (config.tokens, config.at_size(512).tokens, config.at_size(512).kept_tokens) == (1024, 256, 128)


def test_its_arms_differ_in_the_schedule_alone(arms: dict[str, ResolvedArm]) -> None:
    assert factors(arms["A"], arms["S"]) == ("resolution schedule",)
    remarks = lint(list(arms.values()))
    assert blocking(remarks) == ()
    assert [remark.rule for remark in remarks] == ["F12"]
    assert not any("alignment goes on" in note for arm in arms.values() if arm.check for note in arm.check.notes)


def test_sizes_by_arithmetic_are_those_of_the_modules_and_small_images_save_operations(
    arms: dict[str, ResolvedArm],
) -> None:
    for arm in arms.values():
        built, counted = full_size(config_of(arm))
        assert built == counted == 666_548_308
    whole, staged = (config_of(arms[name]) for name in "AS")
    assert whole.at_size(512).resolution == ()
    at_512 = size.flops_per_sample(whole.at_size(512), stream_shapes(whole))
    at_1024 = size.flops_per_sample(whole, stream_shapes(whole))
    assert size.flops_per_sample(staged, stream_shapes(staged)) == pytest.approx(0.8 * at_512 + 0.2 * at_1024)


def test_both_arms_train_across_the_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNNER_DATA_PORTRAITS", str(small_portraits(tmp_path / "portraits")))
    reduced = {"trainer.steps": 2, "trainer.tread.keep_multiple": 8, "trainer.model.bottleneck": 16}
    small = small_arms(PATHS[:1], **reduced)
    small |= small_arms(PATHS[1:], **reduced, **{"trainer.resolution": "[{until: 0.5, size: 16}]"})
    trained = {}
    for name, arm in small.items():
        learner, results = steps_of(config_of(arm), tmp_path / name)
        assert all(torch.isfinite(result.losses_L).all() for result in results)
        trained[name] = fingerprint(learner), [result.active_tokens for result in results]
    assert trained["A"][0] != trained["S"][0]
    routed_share = 7 / 9
    per_size = {32: routed_share * 32 + (1 - routed_share) * 64, 16: routed_share * 8 + (1 - routed_share) * 16}
    assert trained["A"][1] == pytest.approx([per_size[32]] * 2)
    assert trained["S"][1] == pytest.approx([per_size[16], per_size[32]])
