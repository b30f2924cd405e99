"""A run that begins with another run's checkpoint: the same bits where nothing changed, and what begins anew."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from tests.fakes.trainer_parts import NoiseSource, WeightSum, tiny, tiny_config
from tests.fakes.trainer_runs import training_on_noise
from tests.test_trainer_train import EVERYTHING, assert_same_checkpoint, comparable, lines
from trainer import checkpoint, train
from trainer.__main__ import main
from trainer.control import StopRequest
from trainer.errors import CheckpointError, ConfigError, UsageError
from trainer.rescue import fits_optimizer
from trainer.step import Learner

Train = Callable[..., tuple[int, Path]]
CPU = torch.device("cpu")
ALIGNED = {"enabled": True, "samples": "all", "stop": {"kind": "gradient_cosine", "end": 1.0}}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Train:
    """Train on noise."""
    return training_on_noise(tmp_path, monkeypatch)


def weights(run_dir: Path, step: int, stem: str = "model") -> dict[str, torch.Tensor]:
    return load_file(checkpoint.folder(run_dir, step) / f"{stem}.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def rescued_event(run_dir: Path) -> dict[str, Any]:
    (event,) = [line for line in lines(run_dir, "event") if line["event"] == "rescued"]
    return event


def optimizer_of(run_dir: Path, step: int) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(checkpoint.folder(run_dir, step) / "optimizer.pt", weights_only=True)
    return found


# ---- the same recipe -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "block",
    [
        tiny(indicators={"every": 2}),
        EVERYTHING,
        tiny(log_every=3),
        tiny(repa=ALIGNED, ema={"every": 3, "half_lives": [0.1, 0.4]}),
    ],
    ids=["plain", "everything", "log3", "aligned"],
)
@pytest.mark.parametrize("at", [4, 6])
def test_with_the_same_recipe_it_goes_on_as_the_other_would_have(run: Train, block: dict[str, Any], at: int) -> None:
    _, whole = run("whole", block)
    assert run("parent", block, stop_after=at)[0] == 75
    code, child = run("child", block, from_run=whole.parent / "parent", from_step=at)
    assert code == 0
    assert_same_checkpoint(whole, child, 8)
    # Step 6 has no regular validation: there the new run has one of its own.
    after = [[line for line in comparable(run_dir) if line["step"] > at] for run_dir in (whole, child)]
    assert after[0] == after[1] != []
    assert rescued_event(child)["optimizer"] == "kept"
    assert rescued_event(child)["anew"] == []


def test_it_begins_with_the_event_a_checkpoint_and_a_validation_and_with_the_seconds_so_far(run: Train) -> None:
    _, parent = run("parent", tiny(), stop_after=6)
    _, child = run("child", tiny(), from_run=parent, from_step=6, stop_after=7)
    own = [(line["step"], line.get("event", line["kind"])) for line in _lines(child)]
    assert own[:4] == [(0, "started"), (6, "rescued"), (6, "checkpoint"), (6, "val")]
    event = rescued_event(child)
    assert (event["from_run"], event["from_step"]) == ("parent", 6)
    assert same(weights(parent, 6), weights(child, 6))
    before, now = (checkpoint.read_state(run_dir, 6) for run_dir in (parent, child))
    assert (before["train_s"], before["eval_s"]) == (now["train_s"], now["eval_s"])
    assert lines(child, "train")[0]["sys/train_s"] > before["train_s"] > 0


def _lines(run_dir: Path) -> Iterator[dict[str, Any]]:
    return (json.loads(line) for line in (run_dir / "attempt-1/metrics.jsonl").read_text().splitlines())


def test_afterwards_it_resumes_alone(run: Train, tmp_path: Path) -> None:
    block = tiny(optimizer={"lr": 0.02})
    _, parent = run("parent", tiny(), stop_after=4)
    _, whole = run("whole", block, from_run=parent, from_step=4)
    run("parts", block, from_run=parent, from_step=4, stop_after=5)
    parent.rename(tmp_path / "moved-away")
    code, parts = run("parts", block, resume=True)
    assert code == 0
    assert_same_checkpoint(whole, parts, 8)
    # The stop at step 5 gave that step a validation.
    assert comparable(whole) == [line for line in comparable(parts) if (line["step"], line["kind"]) != (5, "val")]


def test_a_run_may_begin_with_the_last_step_or_with_step_0(run: Train) -> None:
    _, parent = run("parent", tiny())
    _, child = run("last", tiny(), from_run=parent, from_step=8)
    assert WeightSum.calls == [("full", 8)]
    assert same(weights(parent, 8, "ema_0.05"), weights(child, 8, "ema_0.05"))
    assert [line["step"] for line in lines(child, "train")] == []
    _, young = run("young", tiny(), stop_after=2)
    _, child = run("first", tiny(), from_run=young, from_step=0)
    assert_same_checkpoint(parent, child, 8)


# ---- another recipe --------------------------------------------------------------------------------------------------


def test_kept_moments_move_at_the_rate_and_decay_of_the_new_recipe(run: Train) -> None:
    _, parent = run("parent", tiny(), stop_after=4)
    changed = {"lr": 0.02, "weight_decay": 0.3, "beta1": 0.5}
    _, child = run("child", tiny(optimizer=changed), from_run=parent, from_step=4, stop_after=4)
    assert rescued_event(child)["optimizer"] == "kept"
    before, now = (optimizer_of(run_dir, 4)["optimizer"]["adamw"] for run_dir in (parent, child))
    assert torch.equal(before["state"][0]["exp_avg_sq"], now["state"][0]["exp_avg_sq"])
    groups = now["param_groups"]
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0]
    assert {group["betas"][0] for group in groups} == {0.5}


def test_another_optimizer_begins_anew_and_says_so(run: Train) -> None:
    _, parent = run("parent", tiny(), stop_after=4)
    muon = tiny(optimizer={"name": "muon", "lr": 0.01})
    _, child = run("child", muon, from_run=parent, from_step=4, stop_after=4)
    assert rescued_event(child)["optimizer"] == "fresh"
    assert {name: part["state"] for name, part in optimizer_of(child, 4)["optimizer"].items()} == {
        "adamw": {},
        "muon": {},
    }
    assert optimizer_of(child, 4)["indicators"]["previous_step"] is None
    assert same(weights(parent, 4), weights(child, 4))


def test_an_average_that_the_parent_lacks_begins_as_the_weights(run: Train) -> None:
    _, parent = run("parent", tiny(ema={"half_lives": [0.05, 0.2]}), stop_after=4)
    _, child = run("child", tiny(ema={"half_lives": [0.2, 0.5]}), from_run=parent, from_step=4, stop_after=4)
    assert same(weights(child, 4, "ema_0.2"), weights(parent, 4, "ema_0.2"))
    assert same(weights(child, 4, "ema_0.5"), weights(parent, 4))
    assert not same(weights(child, 4, "ema_0.2"), weights(parent, 4))
    assert rescued_event(child)["anew"] == ["ema_0.5"]


@pytest.mark.parametrize(
    ("before", "after", "anew"),
    [
        ({"enabled": False}, ALIGNED, ["projector"]),
        (ALIGNED, {"enabled": False}, []),
        (ALIGNED, {**ALIGNED, "projector": "linear"}, ["projector"]),
    ],
    ids=["switched on", "switched off", "another projector"],
)
def test_a_projector_that_does_not_fit_begins_anew(
    run: Train, before: dict[str, Any], after: dict[str, Any], anew: list[str]
) -> None:
    _, parent = run("parent", tiny(repa=before), stop_after=4)
    code, child = run("child", tiny(repa=after), from_run=parent, from_step=4)
    assert code == 0
    event = rescued_event(child)
    assert (event["optimizer"], event["anew"]) == ("fresh", anew)


def test_what_stopped_the_alignment_counts_only_where_the_same_rule_decides(run: Train) -> None:
    _, parent = run("parent", tiny(repa=ALIGNED), stop_after=4)
    path = checkpoint.folder(parent, 4) / "optimizer.pt"
    stopped = {"cosine": -0.5, "negative_checks": 3, "stopped": True}
    torch.save({**torch.load(path, weights_only=True), "repa": stopped}, path)
    fixed = {**ALIGNED, "stop": {"kind": "fixed", "end": 1.0}}
    _, same_rule = run("same", tiny(repa=ALIGNED), from_run=parent, from_step=4)
    _, other_rule = run("other", tiny(repa=fixed), from_run=parent, from_step=4)
    assert not any("train/repa_loss" in line for line in lines(same_rule, "train"))
    assert all("train/repa_loss" in line for line in lines(other_rule, "train"))


@given(st.data())
def test_only_the_same_groups_of_the_same_shapes_fit(data: st.DataObject) -> None:
    config = tiny_config(optimizer={"name": "muon", "lr": 0.01})
    learner = Learner(config, NoiseSource(config, 0).streams, 0, CPU)
    saved = learner.optimizer.state_dict()
    names = {"adamw": (*learner.optimizer.groups.decayed, *learner.optimizer.groups.plain)}
    names["muon"] = learner.optimizer.groups.muon
    parameters = dict(learner.modules.named_parameters())
    name = data.draw(st.sampled_from(sorted(saved)))
    index = data.draw(st.integers(0, len(names[name]) - 1))
    moments = torch.zeros_like(parameters[names[name][index]])
    saved[name]["state"] = {index: {"step": torch.tensor(3.0), "moments": moments}}
    assert fits_optimizer(learner, saved)
    saved[name]["state"][index]["moments"] = torch.zeros((*moments.shape, 2))
    assert not fits_optimizer(learner, saved)
    saved[name]["state"] = {}
    saved[name]["param_groups"][0]["params"].pop()
    assert not fits_optimizer(learner, saved)
    assert not fits_optimizer(learner, {"adamw": saved["adamw"]})


def test_a_checkpoint_from_before_there_were_indicators_is_good_enough(run: Train) -> None:
    _, parent = run("parent", tiny(), stop_after=4)
    path = checkpoint.folder(parent, 4) / "optimizer.pt"
    content = torch.load(path, weights_only=True)
    del content["indicators"]
    torch.save(content, path)
    assert run("child", tiny(), from_run=parent, from_step=4)[0] == 0
    state = checkpoint.folder(parent, 4) / "state.json"
    old = json.loads(state.read_text())
    del old["config"]["indicators"]
    state.write_text(json.dumps(old))
    assert run("parent", tiny(), resume=True)[0] == 0


# ---- refusals --------------------------------------------------------------------------------------------------------


def test_a_checkpoint_that_is_not_there_is_named_with_those_that_are(run: Train, tmp_path: Path) -> None:
    _, parent = run("parent", tiny(), stop_after=6)
    with pytest.raises(UsageError, match=r"no checkpoint of that step; allowed: 0, 4, 6$"):
        run("child", tiny(), from_run=parent, from_step=5)
    with pytest.raises(UsageError, match="allowed: none"):
        run("child", tiny(), from_run=tmp_path / "nowhere", from_step=4)
    with pytest.raises(UsageError, match="8 steps only"):
        run("child", tiny(), from_run=parent, from_step=9)
    assert not (tmp_path / "child").exists(), "a refusal leaves nothing"


def test_weights_that_are_not_finite_are_no_beginning(run: Train) -> None:
    explodes = tiny(optimizer={"lr": 1e30, "clip": None}, checkpoint={"keep": {"last": 9}})
    _, parent = run("parent", explodes)
    assert not checkpoint.read_state(parent, 8)["finite"]
    with pytest.raises(UsageError, match=r"not finite there; allowed: 0; not finite: 4, 8"):
        run("child", tiny(), from_run=parent, from_step=8)
    assert run("child", tiny(), from_run=parent, from_step=0)[0] == 0


@pytest.mark.parametrize(
    ("changes", "seed", "keys"),
    [
        ({"model": {"width": 32, "depth": 4, "heads": 2, "patch": 2}}, 7, r"model\.width$"),
        ({"model": {"width": 16, "depth": 4, "heads": 4, "patch": 2}}, 7, r"model\.heads$"),
        ({"streams": {"pose": "off"}}, 7, r"streams\.pose$"),
        ({"data": {"size": 8, "samples": 6, "held_out": 4}}, 7, r"data\.samples$"),
        ({}, 8, "seed$"),
    ],
)
def test_another_model_is_refused_by_name(run: Train, changes: dict[str, Any], seed: int, keys: str) -> None:
    _, parent = run("parent", tiny(), stop_after=4)
    with pytest.raises(ConfigError, match=keys):
        run("child", tiny(**changes), seed=seed, from_run=parent, from_step=4)


def test_conditions_of_another_width_are_refused(run: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    class Wider(NoiseSource):
        def __init__(self, config: Any, seed: int) -> None:
            super().__init__(config, seed)
            self.streams = replace(self.streams, text_width=self.streams.text_width + 1)

    _, parent = run("parent", tiny(), stop_after=4)
    monkeypatch.setattr(train, "open_source", Wider)
    with pytest.raises(ConfigError, match=r"other conditions: .*text_width"):
        run("child", tiny(), from_run=parent, from_step=4)


def test_a_damaged_checkpoint_is_named(run: Train) -> None:
    _, parent = run("parent", tiny(), stop_after=4)
    (checkpoint.folder(parent, 4) / "ema_0.05.safetensors").write_bytes(b"\x00")
    with pytest.raises(CheckpointError, match=r"ema_0\.05"):
        run("child", tiny(), from_run=parent, from_step=4)


def test_a_run_with_checkpoints_is_not_begun_again(run: Train) -> None:
    _, parent = run("parent", tiny(), stop_after=4)
    run("child", tiny(), stop_after=2)
    with pytest.raises(UsageError, match="holds checkpoints up to step 2"):
        run("child", tiny(), from_run=parent, from_step=4)
    with pytest.raises(UsageError, match="holds checkpoints up to step 4"):
        run("parent", tiny(), from_run=parent, from_step=4)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--from-run", "elsewhere"], "--from-run needs --from-step"),
        (["--from-run", "elsewhere", "--from-step", "4", "--resume"], "allowed: one of them"),
        (["--from-step", "4"], "--from-step needs --resume or --from-run"),
        (["--from-run", "elsewhere", "--from-step", "4"], "elsewhere has no checkpoint of that step; allowed: none"),
    ],
)
def test_options_that_contradict_each_other_end_in_exit_code_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    said: str,
) -> None:
    monkeypatch.setattr("trainer.__main__._tell_stacks_on_sigusr1", lambda: None)
    monkeypatch.setattr(train, "_listening", StopRequest)
    config = tmp_path / "c.yaml"
    config.write_text(json.dumps({"seed": 7, "trainer": tiny()}))
    assert main(["train", str(config), "--run-dir", str(tmp_path / "r"), *options]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "r").exists()
