"""Guidance that acts at some times only, and the published guidance that only parity runs may use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.fakes.trainer_parts import random_conditions, random_model
from tests.fakes.trainer_runs import metrics_at, trained
from trainer import randomness, rules
from trainer.autopsy.passes import plan_passes, told
from trainer.config import NativeSamplerConfig
from trainer.data.sample import Conditions
from trainer.document import parse_config
from trainer.errors import ConfigError
from trainer.model.nanodit import NanoDiT
from trainer.model.tread import Route, keep_from_noise
from trainer.sampler import dense, dual_cfg, euler, predictor, time_grid, within

KINDS = ("self_guidance", "nested_cfg")


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def model() -> NanoDiT:
    return random_model().eval()


def noise() -> Tensor:
    return randomness.normal((3, 3, 8, 8), 1, "eval", "x", 0)


def route() -> Route:
    return Route(keep_from_noise(randomness.uniform((3, 16), 1, "eval", "x", 0, "route"), 8), 1, 2)


def drawn(model: NanoDiT, guidance: NativeSamplerConfig) -> Tensor:
    return euler(predictor(model, random_conditions(3), guidance, route()), noise(), time_grid(5))


# ---- interval --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_an_interval_of_everything_changes_no_bit(model: NanoDiT, kind: Any) -> None:
    everywhere = drawn(model, NativeSamplerConfig(kind=kind))
    assert torch.equal(drawn(model, NativeSamplerConfig(kind=kind, interval=(0.0, 1.0))), everywhere)


@pytest.mark.parametrize("kind", KINDS)
def test_an_interval_limits_guidance_to_its_times(model: NanoDiT, kind: Any) -> None:
    conditions, z_BCHW = random_conditions(3), noise()
    limited = predictor(model, conditions, NativeSamplerConfig(kind=kind, interval=(0.3, 0.7)), route())
    guided = predictor(model, conditions, NativeSamplerConfig(kind=kind), route())
    plain = dense(model, conditions)
    for t in (0.3, 0.5, 0.7):
        assert torch.equal(limited(z_BCHW, t), guided(z_BCHW, t))
        assert not torch.allclose(limited(z_BCHW, t), plain(z_BCHW, t))
    for t in (1.0, 0.71, 0.29, 0.01):
        assert torch.equal(limited(z_BCHW, t), plain(z_BCHW, t))


@pytest.mark.parametrize("kind", KINDS)
def test_an_interval_between_two_steps_is_no_guidance(model: NanoDiT, kind: Any) -> None:
    nowhere = drawn(model, NativeSamplerConfig(kind=kind, interval=(0.61, 0.79)))
    assert torch.equal(nowhere, drawn(model, NativeSamplerConfig()))
    some = drawn(model, NativeSamplerConfig(kind=kind, interval=(0.5, 0.79)))
    assert not torch.allclose(some, nowhere)


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_either_prediction_is_asked_and_never_both(low: float, high: float, t: float) -> None:
    asked: list[str] = []

    def named(name: str):
        return lambda z_BCHW, t: asked.append(name) or z_BCHW

    within((low, high), named("guided"), named("plain"))(torch.zeros(1), t)
    assert asked == ["guided" if low <= t <= high else "plain"]


def test_an_interval_outside_of_guidance_costs_one_pass(model: NanoDiT) -> None:
    calls = []

    def counted(z_BCHW: Tensor, t_B: Tensor, conditions: Conditions, route: object = None):
        calls.append(route is not None)
        return model(z_BCHW, t_B, conditions)

    guidance = NativeSamplerConfig(kind="self_guidance", interval=(0.5, 1.0))
    euler(predictor(counted, random_conditions(3), guidance, route()), noise(), time_grid(4))
    assert (len(calls), sum(calls)) == (3 * 2 + 1, 3)


@pytest.mark.parametrize(
    ("native", "path"),
    [
        ({"kind": "dense", "interval": [0.1, 0.9]}, "sampler.native.interval"),
        ({"kind": "nested_cfg", "interval": [0.9, 0.1]}, "sampler.native.interval"),
        ({"kind": "nested_cfg", "interval": [0.5, 0.5]}, "sampler.native.interval"),
        ({"kind": "nested_cfg", "interval": [-0.1, 0.5]}, "sampler.native.interval.0"),
        ({"kind": "nested_cfg", "interval": [0.1, 0.5, 0.9]}, "sampler.native.interval"),
        ({"kind": "dual_cfg"}, "sampler.native.kind"),
    ],
)
def test_guidance_that_contradicts_itself_is_refused(native: dict, path: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config({"steps": 1, "sampler": {"native": native}})
    assert [issue.path for issue in caught.value.issues] == [path]
    assert all(issue.allowed for issue in caught.value.issues)


def test_an_interval_that_no_step_meets_is_remarked() -> None:
    def remarks(interval: list[float]) -> list[str]:
        native = {"kind": "nested_cfg", "interval": interval}
        block = {"steps": 1, "validation": {"sampler_steps": 4, "every": 1}, "sampler": {"native": native}}
        return [note for note in rules.notes(parse_config(block)) if "interval" in note]

    assert remarks([0.1, 0.6]) == []
    assert "1, 0.75, 0.5, 0.25" in remarks([0.26, 0.49])[0]


def test_an_autopsy_guides_at_the_same_times() -> None:
    native = {"kind": "self_guidance", "scale": 1.5, "interval": [0.2, 0.8]}
    passes = plan_passes(parse_config({"steps": 1, "tread": {"enabled": True}, "sampler": {"native": native}}))
    assert passes.sweep == {1.0: "dense", 1.5: "guided", 3.0: "w=3"}
    assert (
        told(NativeSamplerConfig(kind="self_guidance", interval=(0.2, 0.8)))
        == "self_guidance (scale 3, t in [0.2, 0.8])"
    )


# ---- the published guidance ------------------------------------------------------------------------------------------


def test_dual_guidance_follows_its_formula_and_drops_the_pose(model: NanoDiT) -> None:
    conditions, z_BCHW = random_conditions(3), noise()
    nothing, text, images = (
        dense(model, conditions.keep(kept))(z_BCHW, 0.4) for kept in ((), ("text",), ("cls", "patches"))
    )
    found = predictor(model, conditions, NativeSamplerConfig(kind="dual_cfg", dino=2.0))(z_BCHW, 0.4)
    torch.testing.assert_close(found, nothing + 3.0 * (text - nothing) + 2.0 * (images - nothing))
    without_pose = conditions.keep(("text", "cls", "patches"))
    assert torch.equal(dual_cfg(model, without_pose, {"text": 3.0, "dino": 2.0})(z_BCHW, 0.4), found)
    only_text = dual_cfg(model, conditions.keep(("text",)), {"text": 1.0, "dino": 9.0})(z_BCHW, 0.4)
    torch.testing.assert_close(only_text, text)


def test_dual_guidance_is_for_runs_that_reproduce_the_published_protocol() -> None:
    block = {"steps": 1, "reference_parity": True, "sampler": {"native": {"kind": "dual_cfg"}}}
    config = parse_config(block)
    assert config.sampler.native.scales == {"text": 3.0, "dino": 2.5}
    assert any("not comparable" in note for note in rules.notes(config))
    assert not any("parity" in note for note in rules.notes(parse_config({"steps": 1})))
    for native in ({"kind": "dual_cfg", "pose": 1.0}, {"kind": "dual_cfg", "interval": [0.1, 0.9]}):
        with pytest.raises(ConfigError, match="has no meaning"):
            parse_config({**block, "sampler": {"native": native}})
    assert "sweep" in plan_passes(config).why_not


def test_a_parity_run_is_labelled_and_another_guidance_gives_other_scores(tmp_path: Path) -> None:
    changes = {"steps": 2, "reference_parity": True, "tread": {"enabled": False}}
    with torch.enable_grad():
        run = trained(tmp_path / "parity", **changes, sampler={"native": {"kind": "dual_cfg"}})
    meta = json.loads((run / "validation" / "step_000002" / "meta.json").read_text())
    assert next(label for label in meta["labels"] if "published" in label).startswith("reference_parity")
    assert meta["samplers"]["native"]["kind"] == "dual_cfg"
    metrics = metrics_at(run, 2)
    assert metrics["val_native/recon_rmse"] != metrics["val/recon_rmse"]
    assert metrics["val/cfg_divergence_guidance"] > 0
