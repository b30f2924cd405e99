"""Perceptual losses: what the frozen networks compute, whom they cover, and that nothing else learns or is stored."""

from __future__ import annotations

import json
import re
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.fakes.trainer_parts import NoiseSource, WeightSum, tiny, tiny_config
from trainer import checkpoint, randomness, session, size, train
from trainer.control import StopRequest
from trainer.data.batches import Batches
from trainer.data.shapes import stream_shapes
from trainer.document import parse_config
from trainer.errors import ConfigError
from trainer.evaluate.perceptual import ensure_torchvision, lpips_on
from trainer.frozen.dino_net import DinoNet
from trainer.frozen.lpips_net import LpipsNet
from trainer.frozen.sides import looked_at
from trainer.model.nanodit import Output
from trainer.objective.auxiliary import MicroBatch
from trainer.objective.draws import StepDraws
from trainer.objective.flow import Noisy
from trainer.objective.perceptual import PerceptualLoss
from trainer.rules import notes
from trainer.session import stored_modules
from trainer.step import Learner, StepResult

LPIPS = {"enabled": True, "net": "squeeze", "size": 32}
DINO = {"enabled": True, "size": 28, "weight": 0.05}


def images(count: int = 2, side: int = 32, key: int = 0) -> Tensor:
    return randomness.normal((count, 3, side, side), 0, "noise", key).clamp(-1, 1)


@pytest.fixture(scope="module")
def squeeze() -> LpipsNet:
    return LpipsNet("squeeze", "random")


@pytest.fixture(scope="module")
def dino() -> DinoNet:
    return DinoNet("random")


# ---- the networks ----------------------------------------------------------------------------------------------------


def test_lpips_is_that_of_the_package_on_the_same_weights(tmp_path: Path) -> None:
    ensure_torchvision()
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import lpips

        package = lpips.LPIPS(net="squeeze", pretrained=True, pnet_rand=True, verbose=False).eval()
    backbone = {re.sub(r"net\.slice\d+", "features", name): value for name, value in package.state_dict().items()}
    torch.save({name: value for name, value in backbone.items() if name.startswith("features")}, tmp_path / "w.pth")
    own = LpipsNet("squeeze", str(tmp_path / "w.pth"))
    one, other = images(side=48), images(side=48, key=1)
    torch.testing.assert_close(own(one, other), package(one, other).flatten(), rtol=1e-4, atol=1e-7)


def test_vgg_is_laid_out_as_the_published_weights_are() -> None:
    ensure_torchvision()
    import torchvision

    with torch.device("meta"):
        published = torchvision.models.vgg16(init_weights=False).features
    own = LpipsNet("vgg", "random")
    shapes = {name: tuple(value.shape) for name, value in own.features.state_dict().items()}
    assert shapes == {name: tuple(value.shape) for name, value in published.state_dict().items()}
    # The package compares after the last activation of each of the five sizes, and leaves the last halving out.
    assert [type(layer).__name__ for layer in own.features] == [type(layer).__name__ for layer in published][:-1]
    assert own._taps == (3, 8, 15, 22, 29)
    assert own.hash not in (LpipsNet("squeeze", "random").hash, lpips_on("cpu").hash)


@pytest.mark.parametrize("name", ["squeeze", "dino"])
def test_a_distance_is_zero_for_the_same_and_grows_with_the_noise(name: str, request: pytest.FixtureRequest) -> None:
    net = request.getfixturevalue(name)
    side = 32 if name == "squeeze" else 28
    true = images(side=side)
    distances = [net(true + spread * images(side=side, key=3), true) for spread in (0.0, 0.1, 0.5, 2.0)]
    assert distances[0].shape == (2,)
    assert distances[0].tolist() == pytest.approx([0, 0], abs=1e-6)
    assert all(bool((near < far).all()) for near, far in pairwise(distances))


@pytest.mark.parametrize("name", ["squeeze", "dino"])
def test_gradients_reach_the_prediction_and_nothing_else(name: str, request: pytest.FixtureRequest) -> None:
    net = request.getfixturevalue(name)
    side = 32 if name == "squeeze" else 28
    predicted, true = images(side=side).requires_grad_(), images(side=side, key=1).requires_grad_()
    net(predicted, true).sum().backward()
    assert predicted.grad is not None
    assert bool(predicted.grad.flatten(1).any(1).all())
    assert true.grad is None
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in net.parameters())
    assert not net.training


def test_values_outside_the_range_of_images_are_pulled_back(squeeze: LpipsNet) -> None:
    config = tiny_config(perceptual={"lpips": LPIPS})
    far, true = (3.0 + images(1)).requires_grad_(), images(1, key=1)
    noisy = Noisy(true, true, torch.zeros(1), true)
    batch = Batches(NoiseSource(config, 0), 1, 4).batch(0, [0])
    loss = PerceptualLoss("lpips", config.perceptual.lpips, squeeze, 16)
    loss.loss(MicroBatch(batch, noisy, None, Output(far, None, far)), torch.tensor([0])).backward()
    assert far.grad is not None
    assert bool((far.grad != 0).float().mean() > 0.9)


def test_cells_in_which_nothing_responds_are_no_nan() -> None:
    net = LpipsNet("squeeze", "random")
    for parameter in net.features.parameters():
        parameter.data.zero_()
    predicted = images().requires_grad_()
    distance_B = net(predicted, images(key=1))
    distance_B.sum().backward()
    assert predicted.grad is not None
    assert distance_B.tolist() == [0.0, 0.0]
    assert not predicted.grad.any()


def test_random_weights_are_the_same_everywhere_and_touch_no_other_draw() -> None:
    before = torch.get_rng_state()
    torch.manual_seed(1)
    one = LpipsNet("squeeze", "random").hash, DinoNet("random").hash
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert (LpipsNet("squeeze", "random").hash, DinoNet("random").hash) == one
    assert torch.equal(torch.get_rng_state(), state)
    torch.set_rng_state(before)


def test_dino_knows_the_place_of_a_patch(dino: DinoNet) -> None:
    """A stand-in without positions would see the same bag of patches: moved patches would only move their features."""
    image = images(1, 42)
    features_BhwF, moved_BhwF = (dino.encoder(each).unflatten(1, (3, 3)) for each in (image, image.roll(14, dims=3)))
    assert float((moved_BhwF - features_BhwF.roll(1, dims=2)).abs().mean()) > 0.01


@given(st.integers(16, 2000), st.integers(16, 2000), st.integers(2, 40), st.sampled_from([14, 16]))
def test_images_keep_their_area_and_shape_in_whole_cells(height: int, width: int, cells: int, multiple: int) -> None:
    size_px = cells * multiple
    sides = looked_at(height, width, size_px, multiple)
    assert all(side % multiple == 0 and side > 0 for side in sides)
    assert looked_at(height, height, size_px, multiple) == (size_px, size_px)
    exact = (size_px * (height / width) ** 0.5, size_px * (width / height) ** 0.5)
    assert all(abs(own - wanted) <= multiple for own, wanted in zip(sides, exact, strict=True))
    assert looked_at(height, width, None, multiple) == (height, width)


# ---- files of weights ------------------------------------------------------------------------------------------------


def issue_of(block: dict[str, Any], name: str) -> tuple[str, str, str]:
    """What is wrong with the `name` block when the networks are built: path, message, allowed."""
    config = tiny_config(perceptual={name: block})
    with pytest.raises(ConfigError) as caught:
        learner_of(config)
    (issue,) = caught.value.issues
    return issue.path, issue.message, str(issue.allowed)


def learner_of(config: Any) -> Learner:
    return Learner(config, stream_shapes(config), 1, torch.device("cpu"))


def test_weights_of_a_file_are_used_and_named(tmp_path: Path, squeeze: LpipsNet) -> None:
    stored = {f"features.{name}": value.contiguous() + 0.01 for name, value in squeeze.features.state_dict().items()}
    save_file(stored, tmp_path / "mine.safetensors")
    own = LpipsNet("squeeze", str(tmp_path / "mine.safetensors"))
    assert own.hash != squeeze.hash
    assert own.label == "LPIPS squeeze, backbone mine.safetensors"
    torch.testing.assert_close(own.features.state_dict()["0.bias"], stored["features.0.bias"])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read"),
        (b"not weights", "cannot be read"),
        ({"classifier.weight": torch.ones(2)}, "has no features.0.bias"),
        ([torch.ones(2)], "no table of weights"),
    ],
)
def test_a_file_without_the_weights_is_refused_and_says_which_to_put_there(
    tmp_path: Path, content: Any, words: str
) -> None:
    path = tmp_path / "w.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    place, message, allowed = issue_of({**LPIPS, "backbone": str(path)}, "lpips")
    assert place == "perceptual.lpips.backbone"
    assert words in message
    assert "squeezenet1_1-b8a52dc0.pth" in allowed


def test_weights_of_another_net_are_refused(tmp_path: Path, squeeze: LpipsNet) -> None:
    stored = {f"features.{name}": value.contiguous() for name, value in squeeze.features.state_dict().items()}
    stored["features.0.weight"] = torch.ones(3, 3)
    save_file(stored, tmp_path / "w.safetensors")
    assert "does not fit squeeze" in issue_of({**LPIPS, "backbone": f"{tmp_path}/w.safetensors"}, "lpips")[1]


def test_a_dino_that_is_not_there_says_what_to_put_where(tmp_path: Path) -> None:
    place, message, allowed = issue_of({**DINO, "backbone": str(tmp_path)}, "dino")
    assert place == "perceptual.dino.backbone"
    assert "config.json" in message or "pip install" in message
    assert "model.safetensors" in allowed


@pytest.mark.parametrize("registers", [None, 4])
def test_a_real_dino_is_read_from_its_folder(tmp_path: Path, registers: int | None) -> None:
    transformers = pytest.importorskip("transformers")
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    if registers is None:
        net = transformers.Dinov2Model(transformers.Dinov2Config(**shape)).eval()
    else:
        shape |= {"intermediate_size": 32, "patch_size": 16, "num_register_tokens": registers}
        net = transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**shape)).eval()
    net.save_pretrained(tmp_path)
    own = DinoNet(str(tmp_path))
    side = 4 * own.patch
    one = images(side=side)
    assert own.encoder(one).shape == (2, 16, 16)
    expected = net(pixel_values=one).last_hidden_state[:, 1 + (registers or 0) :]
    torch.testing.assert_close(own.encoder(one), expected)
    assert own(one, one).tolist() == pytest.approx([0, 0], abs=1e-5)
    weights = load_file(tmp_path / "model.safetensors")
    lost = next(name for name in weights if "patch_embeddings" in name)
    save_file({name: tensor for name, tensor in weights.items() if name != lost}, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match=f"holds no {lost}"):
        DinoNet(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        DinoNet(str(tmp_path))


# ---- configuration ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("perceptual", "path", "words"),
    [
        ({"lpips": {**LPIPS, "net": "alex"}}, "perceptual.lpips.net", "vgg, squeeze"),
        ({"lpips": {**LPIPS, "net": "resnet"}}, "perceptual.lpips.net", "vgg"),
        ({"lpips": {**LPIPS, "size": None}}, "perceptual.lpips.size", "multiple of 16 from 32"),
        ({"lpips": {**LPIPS, "size": 40}}, "perceptual.lpips.size", "multiple of 16"),
        ({"lpips": {**LPIPS, "size": 16}}, "perceptual.lpips.size", "from 32"),
        ({"lpips": {**LPIPS, "backbone": "vgg.pth"}}, "perceptual.lpips.backbone", "absolute"),
        ({"lpips": {**LPIPS, "max_t": 0.0}}, "perceptual.lpips.max_t", "above 0"),
        ({"lpips": {**LPIPS, "max_t": 1.1}}, "perceptual.lpips.max_t", "at most 1"),
        ({"lpips": {**LPIPS, "weight": 0}}, "perceptual.lpips.weight", ""),
        ({"dino": {**DINO, "size": 30}}, "perceptual.dino.size", "multiple of 14"),
        ({"dino": {**DINO, "backbone": "dinov2"}}, "perceptual.dino.backbone", "owner/name"),
        ({"dino": {**DINO, "backbone": "../net"}}, "perceptual.dino.backbone", "owner/name"),
        ({"dino": {**DINO, "net": "vit"}}, "perceptual.dino.net", "backbone"),
        ({"clip": {}}, "perceptual.clip", "lpips"),
    ],
)
def test_what_cannot_be_meant_is_refused(perceptual: dict[str, Any], path: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        tiny_config(perceptual=perceptual)
    (issue,) = caught.value.issues
    assert issue.path == path
    assert words in str(issue)


def test_random_and_dead_settings_are_noted() -> None:
    found = notes(tiny_config(perceptual={"lpips": LPIPS, "dino": {"weight": 0.3}}))
    assert any("perceptual.lpips.backbone random" in note for note in found)
    assert any("perceptual.dino is switched off" in note for note in found)


def test_the_memory_of_the_networks_is_counted() -> None:
    def memory(**perceptual: Any) -> float:
        config = parse_config({"steps": 10, "data": {"size": 64}, "perceptual": perceptual})
        return size.memory_mib(config, stream_shapes(config))

    vgg = {"enabled": True}
    assert memory() < memory(dino={"enabled": True}) < memory(lpips=vgg) < memory(lpips={**vgg, "size": 128})
    assert memory(dino={"enabled": True, "backbone": "a/b"}) > memory(dino={"enabled": True}) + 300


# ---- the optimizer step ----------------------------------------------------------------------------------------------


def stepped(steps: int = 1, **changes: Any) -> tuple[Learner, StepResult, dict[str, Tensor]]:
    """A learner after some steps, what the last one said, and the gradients that it took."""
    config = tiny_config(**{"optimizer": {"lr": 0.01, "clip": None}, **changes})
    source = NoiseSource(config, 0)
    learner = Learner(config, source.streams, 1, torch.device("cpu"))
    taken: dict[str, Tensor] = {}
    real = learner.optimizer.step

    def step(lr: float) -> None:
        named = learner.modules.named_parameters()
        taken.update({name: value.grad.clone() for name, value in named if value.grad is not None})
        real(lr)

    learner.optimizer.step = step  # type: ignore[method-assign]
    batches = Batches(source, 1, config.samples_per_step)
    for index in range(steps):
        result = learner.step(batches, index, StopRequest())
        assert result is not None
    return learner, result, taken


def value(learner: Learner, result: StepResult, name: str) -> float:
    return float(result.losses_L[learner.loss_names.index(name)])


@pytest.mark.parametrize(("name", "block"), [("lpips", LPIPS), ("dino", DINO)])
def test_a_switch_changes_loss_and_gradient_and_leaves_everything_else(name: str, block: dict[str, Any]) -> None:
    plain, before, without = stepped()
    learner, result, taken = stepped(perceptual={name: block})
    assert value(learner, result, "flow_loss") == value(plain, before, "flow_loss"), "the same draws"
    own = value(learner, result, f"{name}_loss")
    assert own > 0
    weight = tiny_config(perceptual={name: block}).perceptual.model_dump()[name]["weight"]
    expected = value(learner, result, "flow_loss") + weight * own
    assert value(learner, result, "loss") == pytest.approx(expected, rel=1e-5)
    assert taken.keys() == without.keys()
    assert any(not torch.equal(taken[key], without[key]) for key in taken)
    # Neither trained nor averaged nor stored.
    assert learner.modules.state_dict().keys() == plain.modules.state_dict().keys()
    assert learner.optimizer.groups == plain.optimizer.groups
    assert stored_modules(learner).keys() == stored_modules(plain).keys()
    assert all(model.state_dict().keys() == plain.model.state_dict().keys() for model in learner.ema.models.values())


@pytest.mark.parametrize("changes", [{}, {"lpips": {**LPIPS, "max_t": 0.5}, "dino": {**DINO, "max_t": 0.5}}])
def test_micro_batches_change_no_gradient(changes: dict[str, Any]) -> None:
    perceptual = {"lpips": {**LPIPS, "weight": 1.0}, "dino": {**DINO, "weight": 1.0}, **changes}
    whole = stepped(batch=8, accumulation=1, perceptual=perceptual)
    parts = stepped(batch=2, accumulation=4, perceptual=perceptual)
    for name in ("lpips_loss", "dino_loss", "loss"):
        assert value(*whole[:2], name) == pytest.approx(value(*parts[:2], name), rel=1e-5)
    for name, gradient in whole[2].items():
        torch.testing.assert_close(gradient, parts[2][name], rtol=1e-4, atol=1e-5)


def test_exactly_the_samples_up_to_max_t_are_covered() -> None:
    config = tiny_config(batch=8)
    times = StepDraws(config, 1, 0).t_E
    middle = float(times.sort().values[3])
    perceptual = {"dino": {**DINO, "max_t": middle}}
    learner, result, _ = stepped(batch=8, perceptual=perceptual)
    (loss,) = learner.auxiliaries
    covered = loss.covers(times, {})
    assert covered.tolist() == (times <= middle).tolist()
    assert int(covered.sum()) == 4
    # Each covered sample alone, the mean over them by hand.
    each = []
    for position in covered.nonzero()[:, 0].tolist():
        alone = {"dino": {**DINO, "max_t": float(times[position])}}
        alone_loss = PerceptualLoss("dino", tiny_config(perceptual=alone).perceptual.dino, DinoNet("random"), 14)
        each.append(_of_position(config, alone_loss, position))
    assert value(learner, result, "dino_loss") == pytest.approx(sum(each) / 4, rel=1e-4)


def _of_position(config: Any, loss: PerceptualLoss, position: int) -> float:
    """The loss of one sample of the first step of a fresh learner."""
    source = NoiseSource(config, 0)
    learner = Learner(config, source.streams, 1, torch.device("cpu"))
    batch = Batches(source, 1, config.samples_per_step).batch(0, [position])
    micro = learner._forward(batch, StepDraws(config, 1, 0).of([position], (8, 8)), [])
    return float(loss.loss(micro, torch.tensor([0])).detach())


def test_a_step_that_covers_nobody_has_no_loss_and_no_line(tmp_path: Path) -> None:
    block = tiny(steps=4, batch=1)
    times = [float(StepDraws(parse_config(block), 7, step).t_E) for step in range(4)]
    max_t = sorted(times)[1]
    covered = [t <= max_t for t in times]
    run_dir = trained(tmp_path, "r", {**block, "perceptual": {"dino": {**DINO, "max_t": max_t}}})
    lines = [line for line in train_lines(run_dir) if line["kind"] == "train"]
    assert ["train/dino_loss" in line for line in lines] == covered
    assert sum(covered) == 2
    for line, has in zip(lines, covered, strict=True):
        assert has or line["train/loss"] == line["train/flow_loss"]


# ---- a run -----------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs train on noise, and their validation adds up weights."""
    monkeypatch.setattr(train, "open_source", NoiseSource)
    monkeypatch.setattr(session, "Validation", WeightSum)


ALL = {
    "accumulation": 2,
    "perceptual": {"lpips": {**LPIPS, "max_t": 0.7}, "dino": DINO},
    "segmentation": {"enabled": True},
    "tread": {"enabled": True},
    "repa": {"enabled": True, "samples": "all", "spatial_norm": True, "probe": True, "stop": {"end": 0.5}},
}


def trained(tmp_path: Path, name: str, block: dict[str, Any], code: int = 0, **options: Any) -> Path:
    config = tmp_path / "c.yaml"
    config.write_text(json.dumps({"seed": 7, "run": "r", "trainer": block}))
    assert train.train(config, tmp_path / name, stop=StopRequest(), **options) == code
    return tmp_path / name


def train_lines(run_dir: Path) -> list[dict[str, Any]]:
    files = sorted(run_dir.glob("attempt-*/metrics.jsonl"))
    return [json.loads(line) for path in files for line in path.read_text().splitlines()]


def comparable(run_dir: Path) -> list[dict[str, Any]]:
    return [
        {key: entry for key, entry in line.items() if key != "time" and not key.startswith(("sys/", "memory/"))}
        for line in train_lines(run_dir)
        if line["kind"] == "train"
    ]


def test_everything_at_once_resumes_bit_for_bit_and_is_labelled(tmp_path: Path) -> None:
    block = tiny(steps=4, **ALL)
    whole = trained(tmp_path, "whole", block)
    parts = trained(tmp_path, "parts", block, code=75, stop_after=2)
    parts = trained(tmp_path, "parts", block, resume=True)
    assert comparable(whole) == comparable(parts)
    one, other = (checkpoint.folder(run_dir, 4) for run_dir in (whole, parts))
    stems = sorted(path.name for path in one.iterdir())
    assert stems == [
        *("ema_0.05.safetensors", "ema_0.2.safetensors", "model.safetensors", "optimizer.pt"),
        *("projector.safetensors", "state.json"),
    ]
    for path in one.glob("*.safetensors"):
        assert path.read_bytes() == (other / path.name).read_bytes(), path.name
        assert not [name for name in load_file(path) if "features" in name or "encoder" in name]
    started = train_lines(whole)[0]
    assert any(f"weights {LpipsNet('squeeze', 'random').hash}" in note for note in started["notes"])
    assert any("stand-in" in note and DinoNet("random").hash in note for note in started["notes"])
    assert started["parameters"] == sum(
        tensor.numel() for stem in ("model", "projector") for tensor in load_file(one / f"{stem}.safetensors").values()
    )


def test_other_weights_under_the_same_path_are_not_resumed_with(tmp_path: Path, squeeze: LpipsNet) -> None:
    path = tmp_path / "w.safetensors"
    stored = {f"features.{name}": tensor.contiguous().clone() for name, tensor in squeeze.features.state_dict().items()}
    save_file(stored, path)
    block = tiny(steps=2, perceptual={"lpips": {**LPIPS, "backbone": str(path)}})
    trained(tmp_path, "r", block, code=75, stop_after=1)
    stored["features.0.bias"] += 1.0
    save_file(stored, path)
    with pytest.raises(ConfigError, match=r"perceptual\.lpips\.backbone: weights .* were trained with"):
        trained(tmp_path, "r", block, resume=True)
