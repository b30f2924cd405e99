"""A run on features of transformers' own code is asked for new images; the models are small and random."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.fakes.asked_sets import id_of, photograph_shards
from tests.fakes.encoder_cases import own_cache
from tests.fakes.trainer_runs import trained
from trainer.__main__ import main
from trainer.asking.answer import conditions_of
from trainer.asking.question import Question
from trainer.asking.trained_run import trained_run
from trainer.data import open_source
from trainer.data.sample import collate

transformers = pytest.importorskip("transformers")

CHANGES = {
    "steps": 2,
    "batch": 2,
    "validation": {"every": 2, "samples": 1, "sampler_steps": 1},
    "checkpoint": {"keep": {"last": 1, "best": None}},
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("asking")


@pytest.fixture(scope="module", autouse=True)
def _own_cache(root: Path) -> Iterator[None]:
    with own_cache(root / "cache"):
        yield


@pytest.fixture(scope="module")
def run(root: Path) -> Path:
    shards = photograph_shards(root, "--encoders", "tiny", "--passes", "caption,t5,dinov3,pose,pack")
    data = {"source": "shards", "path": str(shards), "size": 64, "workers": 0}
    (root / "runs").mkdir()
    return trained(root / "runs" / "tiny", data=data, **CHANGES)


def test_what_is_asked_is_encoded_as_the_shards_were(run: Path, root: Path) -> None:
    asked_run = trained_run(run)
    coffee = root / "photos" / "coffee.png"
    stored = collate([open_source(asked_run.config).load(id_of(coffee))]).conditions
    [asked] = conditions_of(asked_run, [Question("a photograph of coffee", coffee, str(coffee))])
    assert asked.conditions.streams == stored.streams == ("text", "cls", "patches", "pose")
    for name in ("text_BTD", "cls_BD", "patches_BPD", "pose_BJ3"):
        mine, theirs = getattr(asked.conditions, name).float(), getattr(stored, name).float()
        # The set was encoded in batches, which changes the last bits.
        assert torch.allclose(mine, theirs, atol=2e-3 * theirs.abs().max()), name
    [other] = conditions_of(asked_run, [Question("a photograph of tea", root / "photos" / "rocket.png")])
    assert not torch.allclose(other.conditions.cls_BD, asked.conditions.cls_BD, atol=0.1)


@pytest.mark.long
def test_the_command_says_that_its_encoders_are_stand_ins(
    run: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def drawn(prompt: str, *options: str) -> np.ndarray:
        out = tmp_path / "image.png"
        assert main(["sample", str(run), "--prompt", prompt, "--out", str(out), *options]) == 0
        return np.asarray(Image.open(out))

    first = drawn("a cat on a brick wall")
    told = capsys.readouterr().out
    assert "note: t5 by tiny-t5, revision " in told
    assert "random stand-in (seed 0): says nothing about T5" in told
    assert not np.array_equal(drawn("a dog"), first)
    wide = drawn("a dog", "--reference", str(root / "photos" / "coffee.png"))
    assert wide.shape == (52, 76, 3)
    assert "note: dinov3 by tiny-dinov3" in capsys.readouterr().out
    drawn("a cat " * 600)
    assert "the prompt is too long: its last " in capsys.readouterr().out


def test_a_stand_in_is_built_again_where_it_is_not_there(run: Path, tmp_path: Path) -> None:
    asked_run = trained_run(run)
    [before] = conditions_of(asked_run, [Question("a cat")])
    with own_cache(tmp_path / "empty"):
        [after] = conditions_of(asked_run, [Question("a cat")])
    assert torch.equal(before.conditions.text_BTD, after.conditions.text_BTD)
