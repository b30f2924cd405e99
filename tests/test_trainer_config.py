"""The configuration: strict, complete, and clear about what is wrong with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer import rules
from trainer.config import TrainerConfig, filled
from trainer.document import load_document, parse_config
from trainer.errors import ConfigError, Issue


def issues(**block: object) -> tuple[Issue, ...]:
    with pytest.raises(ConfigError) as caught:
        parse_config({"steps": 100, **block})
    return caught.value.issues


def test_only_steps_has_no_default() -> None:
    assert parse_config({"steps": 7}).steps == 7
    with pytest.raises(ConfigError, match="steps: this key is required"):
        parse_config({})


@pytest.mark.parametrize(
    ("block", "path", "nearest"),
    [
        ({"treat": {}}, "treat", "tread"),
        ({"tread": {"enabeld": True}}, "tread.enabeld", "enabled"),
        ({"repa": {"stop": {"begin": 0.1}}}, "repa.stop.begin", None),
        ({"optimizer": {"name": "adam"}}, "optimizer.name", "adamw"),
        ({"sampler": {"native": {"kind": "self-guidance"}}}, "sampler.native.kind", "self_guidance"),
        (
            {"checkpoint": {"keep": {"best": {"metrik": "x", "metric": "val/loss"}}}},
            "checkpoint.keep.best.metrik",
            "metric",
        ),
    ],
)
def test_a_wrong_word_names_its_place_and_the_nearest_allowed_one(block: dict, path: str, nearest: str | None) -> None:
    (issue,) = issues(**block)
    assert (issue.path, issue.nearest) == (path, nearest)
    assert issue.allowed
    assert nearest is None or nearest in issue.allowed


@pytest.mark.parametrize(
    "block",
    [
        {"batch": "16"},
        {"batch": 0},
        {"batch": True},
        {"tread": {"enabled": 1}},
        {"optimizer": {"lr": float("nan")}},
        {"optimizer": {"lr": -1e-3}},
        {"ema": {"half_lives": []}},
        {"ema": {"half_lives": [0.0]}},
        {"tread": []},
        {"data": {"path": 3}},
    ],
)
def test_values_of_the_wrong_kind_are_refused_and_explained(block: dict) -> None:
    assert all(issue.path and issue.allowed for issue in issues(**block))


TREAD = {"enabled": True}
REPA = {"enabled": True}


@pytest.mark.parametrize(
    ("block", "path"),
    [
        ({"model": {"width": 60, "heads": 7}}, "model.heads"),
        ({"model": {"width": 6, "heads": 2}}, "model.width"),
        ({"model": {"patch": 5}}, "model.patch"),
        ({"data": {"source": "folder"}}, "data.path"),
        ({"data": {"path": "/tmp/x"}}, "data.path"),
        ({"streams": dict.fromkeys(("text", "cls", "patches", "pose"), "off")}, "streams"),
        ({"data": {"source": "folder", "path": "x"}, "streams": {"text": "off"}}, "streams"),
        ({"objective": {"noise_scale": 2.0, "shift": 3.0}}, "objective.noise_scale"),
        ({"objective": {"prediction": "x", "asymflow": {}}}, "objective.asymflow"),
        ({"objective": {"prediction": "v", "asymflow": {"rank": 4}}}, "objective.asymflow"),
        ({"objective": {"prediction": "asymflow", "asymflow": {"rank": 49}}}, "objective.asymflow.rank"),
        ({"objective": {"prediction": "asymflow", "asymflow": {"basis": "b"}}}, "objective.asymflow.basis"),
        ({"optimizer": {"warmup_steps": 101}}, "optimizer.warmup_steps"),
        ({"tread": {**TREAD, "first": 4, "last": 2}}, "tread.first"),
        ({"tread": {**TREAD, "last": 6}}, "tread.last"),
        ({"tread": {**TREAD, "first": -7}}, "tread.first"),
        ({"tread": {**TREAD, "keep_multiple": 128}}, "tread.ratio"),
        ({"tread": {**TREAD, "dense_tail": 1.0}}, "tread.dense_tail"),
        ({"repa": REPA, "streams": {"patches": "off"}}, "repa.enabled"),
        ({"repa": REPA, "data": {"source": "folder", "path": "x"}}, "repa.enabled"),
        ({"repa": {**REPA, "after_block": 6}}, "repa.after_block"),
        ({"repa": {**REPA, "stop": {"end": 0.0}}}, "repa.stop.end"),
        ({"repa": {**REPA, "stop": {"kind": "linear", "start": 0.25}}}, "repa.stop.start"),
        ({"repa": {**REPA, "projector": "conv"}, "tread": TREAD}, "repa.projector"),
        ({"sampler": {"native": {"kind": "self_guidance"}}}, "sampler.native.kind"),
        ({"sampler": {"native": {"kind": "nested_cfg", "scale": 2.0}}}, "sampler.native.scale"),
        ({"validation": {"samples": 49}}, "validation.samples"),
        ({"ema": {"half_lives": [0.1, 0.1]}}, "ema.half_lives"),
        (
            {"validation": {"every": 10}, "checkpoint": {"keep": {"milestones": [20, 25]}}},
            "checkpoint.keep.milestones.1",
        ),
        ({"checkpoint": {"keep": {"milestones": [200]}}}, "checkpoint.keep.milestones.0"),
    ],
)
def test_keys_that_contradict_each_other_are_refused(block: dict, path: str) -> None:
    (issue,) = issues(**block)
    assert issue.path == path
    assert issue.allowed


def test_all_mistakes_are_reported_at_once() -> None:
    assert {issue.path for issue in issues(batch=0, tred={}, model={"depth": 0})} == {"batch", "tred", "model.depth"}


@pytest.mark.parametrize(
    ("block", "words"),
    [
        ({"validation": {"every": 101}}, "validation.every"),
        ({"tread": {"ratio": 0.7}}, "tread is switched off"),
        ({"repa": {"weight": 0.7}}, "repa is switched off"),
        ({"repa": {"enabled": True, "samples": "all"}}, "copy the answer"),
        ({"optimizer": {"name": "muon"}}, "optimizer.clip"),
        ({"data": {"source": "folder", "path": "x"}}, "data.source folder"),
        ({"checkpoint": {"keep": {"best": {"metric": "val_native/recon_rmse"}}}}, "no best is kept"),
    ],
)
def test_dead_settings_are_noted(block: dict, words: str) -> None:
    assert any(words in note for note in rules.notes(parse_config({"steps": 100, **block})))


def test_defaults_cause_no_notes() -> None:
    assert rules.notes(parse_config({"steps": 800})) == []


def test_filled_writes_out_every_default_and_means_the_same() -> None:
    config = parse_config({"steps": 800, "tread": TREAD, "repa": REPA, "sampler": {"native": {"kind": "nested_cfg"}}})
    document = filled(config)
    assert (document["tread"]["first"], document["tread"]["last"]) == (1, 4)
    assert document["repa"]["after_block"] == 1
    assert document["repa"]["stop"]["end"] == 0.25
    scales = {"text": 3.0, "dino": 2.5, "pose": 1.0}
    assert document["sampler"]["native"] == {"kind": "nested_cfg", "scale": None, "interval": None, **scales}
    assert filled(parse_config(document)) == document


def test_gradient_cosine_may_align_longer() -> None:
    assert parse_config({"steps": 10, "repa": {**REPA, "stop": {"kind": "gradient_cosine"}}}).repa_end == 0.30


@pytest.mark.parametrize(
    ("size", "ratio", "multiple", "kept"),
    [(32, 0.5, 1, 32), (32, 0.33, 1, 43), (32, 0.5, 24, 48), (28, 0.5, 1, 25), (1024, 0.5, 128, 32768)],
)
def test_kept_tokens(size: int, ratio: float, multiple: int, kept: int) -> None:
    tread = {"enabled": True, "ratio": ratio, "keep_multiple": multiple}
    assert parse_config({"steps": 1, "data": {"size": size}, "tread": tread}).kept_tokens == kept


def test_configurations_are_values() -> None:
    config = TrainerConfig(steps=3)
    assert config == TrainerConfig(steps=3)
    with pytest.raises(ValueError, match="frozen"):
        config.steps = 4


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_a_document_is_yaml_1_2(tmp_path: Path) -> None:
    text = "seed: 010\nrun: try\nstudy: ignored\ntrainer: {steps: 1_0, optimizer: {lr: 2e-3}, streams: {pose: off}}"
    with pytest.raises(ConfigError, match="steps"):
        load_document(write(tmp_path / "underscore.yaml", text))
    document = load_document(write(tmp_path / "c.yaml", text.replace("1_0", "10")))
    assert (document.seed, document.run) == (10, "try")
    assert document.config.optimizer.lr == 0.002
    assert document.config.streams.pose == "off"


def test_the_folder_names_a_run_without_a_name(tmp_path: Path) -> None:
    assert load_document(write(tmp_path / "c.yaml", "seed: 1\ntrainer: {steps: 1}")).run == tmp_path.name


@pytest.mark.parametrize(
    "text",
    [
        "trainer: {steps: 1}",
        "seed: true\ntrainer: {steps: 1}",
        "seed: 0",
        "- seed",
        "seed: 0\nseed: 1\ntrainer: {steps: 1}",
        "seed: !!python/name:os.system\ntrainer: {steps: 1}",
        "seed: [",
    ],
)
def test_unusable_documents_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError):
        load_document(write(tmp_path / "c.yaml", text))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.yaml cannot be read"):
        load_document(tmp_path / "absent.yaml")
