"""Checkpoints are complete or absent, and only plain data is ever read back."""

from __future__ import annotations

import copy
import errno
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.fakes.trainer_parts import SHAPES, TINY, tiny_config
from trainer import checkpoint
from trainer.document import Document
from trainer.errors import CheckpointError, ConfigError, UsageError
from trainer.model.nanodit import build

DOCUMENT = Document(tiny_config(), seed=3, run="r")
STATE = {"step": 4, "finite": True, **checkpoint.describe(DOCUMENT, SHAPES)}


def contents(seed: int = 0, **optimizer: Any) -> checkpoint.Contents:
    model, average = (build(DOCUMENT.config.model, SHAPES, number) for number in (seed, seed + 100))
    return checkpoint.Contents({"model": model, "ema_0.05": average}, {"step": torch.ones(2), **optimizer}, STATE)


def make_run(run_dir: Path, *steps: int) -> Path:
    run_dir.mkdir(exist_ok=True)
    (run_dir / "config.yaml").write_text(
        json.dumps({"seed": 3, "run": "r", "trainer": tiny_config().model_dump(mode="json")})
    )
    for step in steps:
        checkpoint.save(run_dir, step, contents(step))
    return run_dir


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", 4)
    saved, model = contents(4), build(DOCUMENT.config.model, SHAPES, 1)
    optimizer, state = checkpoint.load(run_dir, 4, {"model": model}, torch.device("cpu"))
    assert all(
        torch.equal(value, saved.modules["model"].state_dict()[key]) for key, value in model.state_dict().items()
    )
    assert torch.equal(optimizer["step"], torch.ones(2))
    assert state == STATE
    assert sorted(path.name for path in (run_dir / "checkpoints/step_000004").iterdir()) == [
        "ema_0.05.safetensors",
        "model.safetensors",
        "optimizer.pt",
        "state.json",
    ]


@pytest.mark.parametrize(("weights", "seed"), [("raw", 8), ("ema", 108)])
def test_a_run_directory_is_all_that_evaluation_needs(tmp_path: Path, weights: str, seed: int) -> None:
    run_dir = make_run(tmp_path / "run", 4, 8)
    model, step, document = checkpoint.load_for_evaluation(run_dir, None, weights, "cpu")
    assert (step, document) == (8, DOCUMENT)
    expected = build(DOCUMENT.config.model, SHAPES, seed).state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_checkpoint_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", 4, 8)
    with pytest.raises(UsageError, match="no checkpoint of step 5; complete ones: 4, 8"):
        checkpoint.load_for_evaluation(run_dir, 5, "raw", "cpu")
    with pytest.raises(UsageError, match="complete ones: none"):
        checkpoint.load_for_evaluation(tmp_path, None, "raw", "cpu")


def test_a_folder_without_state_is_no_checkpoint(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", 4)
    (run_dir / "checkpoints/step_000008").mkdir()
    (run_dir / "checkpoints/.unfinished-step_000012").mkdir()
    (run_dir / "checkpoints/.unfinished-step_000012/state.json").write_text("{}")
    assert checkpoint.list_steps(run_dir) == [4]


def test_an_existing_checkpoint_is_never_rewritten(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", 4)
    before = (run_dir / "checkpoints/step_000004/model.safetensors").stat()
    checkpoint.save(run_dir, 4, contents(99))
    assert (run_dir / "checkpoints/step_000004/model.safetensors").stat().st_mtime_ns == before.st_mtime_ns


def test_a_full_disk_leaves_the_last_checkpoint_intact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir = make_run(tmp_path / "run", 4)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(CheckpointError, match=r"No space left on device; .*step_000004 is intact"):
        checkpoint.save(run_dir, 8, contents())
    assert [path.name for path in (run_dir / "checkpoints").iterdir()] == ["step_000004"]
    assert checkpoint.load_for_evaluation(run_dir, None, "raw", "cpu")[1] == 4


class Killed(BaseException):
    """Ends a function as kill -9 would: nothing that handles errors may run."""


@pytest.mark.parametrize("flushes", range(6))
def test_dying_while_writing_leaves_whole_checkpoints_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flushes: int
) -> None:
    run_dir = make_run(tmp_path / "run", 4)
    real, flushed = checkpoint._flush, []

    def flush_or_die(path: Path) -> None:
        if len(flushed) == flushes:
            raise Killed
        flushed.append(path)
        real(path)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_flush", flush_or_die)
        with pytest.raises(Killed):
            checkpoint.save(run_dir, 8, contents(8))
    # Four files and their folder are flushed before the rename; the sixth flush is that of the parent folder.
    assert checkpoint.list_steps(run_dir) == ([4, 8] if flushes == 5 else [4])
    for step in checkpoint.list_steps(run_dir):
        assert checkpoint.load_for_evaluation(run_dir, step, "ema", "cpu")[1] == step
    checkpoint.save(run_dir, 8, contents(8))
    assert checkpoint.list_steps(run_dir) == [4, 8]


def test_pruning_keeps_what_it_is_told_and_clears_leftovers(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", 0, 4, 8, 12)
    (run_dir / "checkpoints/.unfinished-step_000016").mkdir()
    checkpoint.prune(run_dir, {4, 12, 99})
    assert sorted(path.name for path in (run_dir / "checkpoints").iterdir()) == ["step_000004", "step_000012"]


def test_pruning_that_was_interrupted_is_finished_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir = make_run(tmp_path / "run", 4, 8)

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.shutil, "rmtree", interrupted)
        with pytest.raises(KeyboardInterrupt):
            checkpoint.prune(run_dir, {8})
    assert checkpoint.list_steps(run_dir) == [8]
    checkpoint.prune(run_dir, {8})
    assert [path.name for path in (run_dir / "checkpoints").iterdir()] == ["step_000008"]


EVIL = Path(tempfile.gettempdir()) / "armature-evil-checkpoint"


class Evil:
    """Unpickling it would create a file."""

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return (Path.touch, (EVIL,))


def test_code_inside_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", 4)
    torch.save({"optimizer": Evil()}, run_dir / "checkpoints/step_000004/optimizer.pt")
    with pytest.raises(CheckpointError, match="more than plain data"):
        checkpoint.load(run_dir, 4, {}, torch.device("cpu"))
    assert not EVIL.exists()


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "state.json"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    run_dir = make_run(tmp_path / "run", 4)
    (run_dir / "checkpoints/step_000004" / name).write_bytes(b"\x00\x01")
    model = build(DOCUMENT.config.model, SHAPES, 1)
    with pytest.raises(CheckpointError, match=name if name != "state.json" else "step_000004"):
        checkpoint.load(run_dir, 4, {"model": model}, torch.device("cpu"))


def test_a_checkpoint_older_than_a_key_is_resumed_with_its_default() -> None:
    old = {**STATE, "config": json.loads(json.dumps(STATE["config"]))}
    del old["config"]["optimizer"]["normuon_beta2"]
    checkpoint.require_same_run(old, DOCUMENT)
    other = tiny_config(optimizer={"name": "normuon", "normuon_beta2": 0.5})
    with pytest.raises(ConfigError, match=r"keys: optimizer\.name, optimizer\.normuon_beta2"):
        checkpoint.require_same_run(old, Document(other, 3, "r"))


def test_another_run_is_not_resumed() -> None:
    checkpoint.require_same_run(STATE, DOCUMENT)
    free = tiny_config(log_every=3, device="cpu", checkpoint={"keep": {"last": 5}}, indicators={"enabled": False})
    checkpoint.require_same_run(STATE, Document(free, 3, "other name"))
    other = tiny_config(batch=8, optimizer={"lr": 0.5})
    with pytest.raises(ConfigError, match=r"keys: seed, batch, optimizer\.lr"):
        checkpoint.require_same_run(STATE, Document(other, 4, "r"))


def test_a_checkpoint_from_before_a_key_existed_had_its_default() -> None:
    older = copy.deepcopy(STATE)
    del older["config"]["model"]["adaln"], older["config"]["model"]["positions"]
    checkpoint.require_same_run(older, DOCUMENT)
    checkpoint.require_same_model(older, DOCUMENT)
    turning = Document(tiny_config(model={**TINY["model"], "positions": "rope"}), 3, "r")
    with pytest.raises(ConfigError, match=r"keys: model\.positions$"):
        checkpoint.require_same_run(older, turning)
    with pytest.raises(ConfigError, match=r"differing: model\.positions$"):
        checkpoint.require_same_model(older, turning)
