"""Text and image features through transformers: small models of random weights, read as the real ones are.

Shapes: B images or captions, T tokens, N patches, D features, C channels, H x W pixels.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.fakes.encoder_cases import (
    CAPTIONS,
    TINY,
    captioned,
    copied_stand_ins,
    folder_passes,
    made,
    own_cache,
    picture,
    pictured,
    refusal,
)
from trainer.data.buckets import BUCKETS
from trainer.prepare import t5
from trainer.prepare.colours import read_colours
from trainer.prepare.dinov3 import batch_at, dinov3_pass
from trainer.prepare.options import Options
from trainer.prepare.passes import Encode, Failed, Made
from trainer.prepare.run import checked
from trainer.prepare.t5 import t5_pass

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with own_cache(tmp_path_factory.mktemp("cache")):
        yield


@pytest.fixture(scope="module")
def text(_own_cache: None) -> Iterator[Encode]:
    with t5_pass(TINY).open() as encode:
        yield encode


@pytest.fixture(scope="module")
def images(_own_cache: None) -> Iterator[Encode]:
    with dinov3_pass(TINY).open() as encode:
        yield encode


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    """Copies of both stand-ins that a test may change, by the name of the option."""
    return copied_stand_ins(tmp_path)


# ---- text ------------------------------------------------------------------------------------------------------------


def test_text_is_trimmed_to_its_tokens(text: Encode) -> None:
    answers = text(captioned(*CAPTIONS))
    lengths = [len(files["t5h.npy"]) for files in made(answers)]
    assert lengths[1] < lengths[0] < lengths[2]
    for answer, files in zip(answers, made(answers), strict=True):
        hidden_TD, mask_T = files["t5h.npy"], files["t5m.npy"]
        assert hidden_TD.dtype == np.float16
        assert hidden_TD.shape == (len(mask_T), 1024)
        assert mask_T.dtype == np.uint8
        assert mask_T.all()
        assert answer.facts == {"tokens": len(mask_T), "truncated": 0}  # type: ignore[union-attr]


def test_text_features_are_those_of_the_model_alone(text: Encode, folders: dict[str, Path]) -> None:
    model = transformers.T5EncoderModel.from_pretrained(folders["t5"]).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folders["t5"])
    for caption, files in zip(CAPTIONS, made(text(captioned(*CAPTIONS))), strict=True):
        with torch.inference_mode():
            expected_TD = model(**tokenizer(caption, return_tensors="pt")).last_hidden_state[0]
        np.testing.assert_allclose(files["t5h.npy"], expected_TD.numpy(), atol=4e-3)


def test_the_encoder_is_taken_out_of_a_whole_t5(folders: dict[str, Path]) -> None:
    """As on the hub, where a decoder lies beside it."""
    config = transformers.T5Config.from_pretrained(folders["t5"], d_model=32, tie_word_embeddings=False)
    whole = transformers.T5ForConditionalGeneration(config).eval()
    whole.save_pretrained(folders["t5"])
    assert any(name.startswith("decoder.") for name in load_file(folders["t5"] / "model.safetensors"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folders["t5"])
    with folder_passes(folders)["t5"].open() as encode, torch.inference_mode():
        (files,) = made(encode(captioned(CAPTIONS[0])))
        expected_TD = whole.get_encoder()(**tokenizer(CAPTIONS[0], return_tensors="pt")).last_hidden_state[0]
    np.testing.assert_allclose(files["t5h.npy"], expected_TD.numpy(), atol=4e-3)


def test_a_caption_does_not_depend_on_its_place(text: Encode) -> None:
    there, back = made(text(captioned(*CAPTIONS))), made(text(captioned(*reversed(CAPTIONS))))
    for one, other in zip(there, reversed(back), strict=True):
        np.testing.assert_allclose(one["t5h.npy"], other["t5h.npy"], atol=4e-3)
    again = made(text(captioned(*CAPTIONS)))
    assert all(np.array_equal(one["t5h.npy"], other["t5h.npy"]) for one, other in zip(there, again, strict=True))


def test_a_long_caption_is_cut_and_counted(text: Encode, folders: dict[str, Path]) -> None:
    caption = " ".join(["a small boat"] * 300)
    whole = len(transformers.AutoTokenizer.from_pretrained(folders["t5"])(caption)["input_ids"])
    (answer,) = text(captioned(caption))
    assert isinstance(answer, Made)
    assert answer.facts == {"tokens": 512, "truncated": whole - 512}
    assert answer.files["t5h.npy"].shape == (512, 1024)  # type: ignore[union-attr]
    assert answer.files["t5m.npy"].shape == (512,)  # type: ignore[union-attr]


@pytest.mark.parametrize("empty", ["", " \n\t"])
def test_an_empty_caption_fails_and_spoils_no_other(text: Encode, empty: str) -> None:
    first, second, third = text(captioned(CAPTIONS[0], empty, CAPTIONS[1]))
    assert isinstance(second, Failed)
    assert "caption is empty" in second.reason
    for answer, expected in zip(made([first, third]), made(text(captioned(*CAPTIONS[:2]))), strict=True):
        assert np.array_equal(answer["t5h.npy"], expected["t5h.npy"])
    assert [type(answer) for answer in text(captioned(empty))] == [Failed]


def test_different_captions_have_different_features(text: Encode) -> None:
    captions = ("red", "rad", "Red", "日本", "中国", "🐈", "🐕", "red.", "a red", "red a", "e\u0301", "é")
    hidden = [files["t5h.npy"].tobytes() for files in made(text(captioned(*captions)))]
    assert len(set(hidden)) == len(captions)
    spaced, plain = made(text(captioned("a\n  red ", "a red")))
    assert np.array_equal(spaced["t5h.npy"], plain["t5h.npy"])


def test_what_half_precision_cannot_hold_is_refused(folders: dict[str, Path]) -> None:
    path = folders["t5"] / "model.safetensors"
    weights = load_file(path)
    weights["encoder.final_layer_norm.weight"] *= 1e6
    save_file(weights, path, metadata={"format": "pt"})
    work = folder_passes(folders)["t5"]
    with work.open() as encode:
        (answer,) = encode(captioned(CAPTIONS[0]))
    refused = checked(work, answer)
    assert isinstance(refused, Failed)
    assert "float16 cannot hold" in refused.reason


def test_another_precision_is_another_recipe(text: Encode, monkeypatch: pytest.MonkeyPatch) -> None:
    before = t5_pass(TINY).recipe
    monkeypatch.setattr(t5, "precision_on", lambda device: torch.bfloat16)  # as on a GPU
    work = t5_pass(TINY)
    assert work.recipe.options["precision"] == "bfloat16"
    assert work.recipe.hash != before.hash
    with work.open() as encode:
        half = made(encode(captioned(*CAPTIONS)))
    for files, expected in zip(half, made(text(captioned(*CAPTIONS))), strict=True):
        assert files["t5h.npy"].dtype == np.float16
        np.testing.assert_allclose(files["t5h.npy"], expected["t5h.npy"], atol=0.1)


def test_the_tokenizer_of_t5_itself_is_read(folders: dict[str, Path]) -> None:
    letters = [(letter, -3.0) for letter in "▁Aaphotgrfewnlksicm."]
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    for old in folders["t5"].glob("tokenizer*"):
        old.unlink()
    transformers.T5Tokenizer(vocab=[*special, *letters], extra_ids=0).save_pretrained(folders["t5"])
    with folder_passes(folders)["t5"].open() as encode:
        one, other = made(encode(captioned("a hat", "a path of rats")))
    assert len(one["t5h.npy"]) == 7  # two spaces, four letters, </s>
    assert len(other["t5h.npy"]) > 10


def test_a_tokenizer_that_knows_nothing_is_refused(folders: dict[str, Path]) -> None:
    transformers.T5Tokenizer().save_pretrained(folders["t5"])
    assert "does not know plain words" in refusal(folder_passes(folders)["t5"])


# ---- images ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bucket", BUCKETS, ids=lambda bucket: bucket.name)
def test_every_bucket_has_its_grid(images: Encode, bucket: Any) -> None:
    height, width = bucket.scaled(256)
    (files,) = made(images(pictured(picture(height, width))))
    assert files["dinov3.npy"].shape == (1024,)
    assert files["dinov3_patches.npy"].shape == (height // 16 * width // 16, 1024)
    assert {content.dtype for content in files.values()} == {np.dtype(np.float16)}


@pytest.mark.parametrize("registers", [0, 4])
def test_image_features_are_those_of_the_model_alone(folders: dict[str, Path], registers: int) -> None:
    """The colours too: those that the model's own image processor makes."""
    config = transformers.DINOv3ViTConfig(
        hidden_size=32, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, num_register_tokens=registers
    )
    model = transformers.DINOv3ViTModel(config).eval()
    model.save_pretrained(folders["dinov3"])
    processor = transformers.AutoImageProcessor.from_pretrained(folders["dinov3"])
    image = picture(64, 128)
    pixels = processor(torch.from_numpy(image), do_resize=False, return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        tokens_TD = model(pixel_values=pixels).last_hidden_state[0].numpy()
    with folder_passes(folders)["dinov3"].open() as encode:
        (files,) = made(encode(pictured(image)))
    assert len(tokens_TD) == 1 + registers + 4 * 8
    np.testing.assert_allclose(files["dinov3.npy"], tokens_TD[0], atol=4e-3)
    np.testing.assert_allclose(files["dinov3_patches.npy"], tokens_TD[1 + registers :], atol=4e-3)


def test_patches_are_in_raster_order(images: Encode) -> None:
    plain = np.full((3, 176, 336), 100, np.uint8)
    marked = plain.copy()
    row, column = 3, 17
    marked[:, row * 16 : (row + 1) * 16, column * 16 : (column + 1) * 16] = picture(32, 32)[:, :16, :16]
    before, after = (files["dinov3_patches.npy"].astype(float) for files in made(images(pictured(plain, marked))))
    changed_N = np.abs(after - before).mean(axis=1)
    assert int(changed_N.argmax()) == row * (336 // 16) + column
    assert changed_N.max() > 5 * np.sort(changed_N)[-2]


def test_an_image_does_not_depend_on_its_place(images: Encode) -> None:
    pictures = [picture(seed=seed) for seed in range(3)]
    there, back = made(images(pictured(*pictures))), made(images(pictured(*reversed(pictures))))
    for one, other in zip(there, reversed(back), strict=True):
        for name in one:
            np.testing.assert_allclose(one[name], other[name], atol=4e-3)
    assert len({files["dinov3.npy"].tobytes() for files in there}) == 3
    spread = np.stack([files["dinov3.npy"].astype(float) for files in there]).std(axis=0).mean()
    assert spread > 0.05  # the whole image reaches the class token


@pytest.mark.parametrize(("side", "batch"), [(256, 16), (512, 4), (768, 1), (1024, 1), (4096, 1)])
def test_the_batch_falls_with_the_pixels(side: int, batch: int) -> None:
    assert batch_at(side) == batch
    assert dinov3_pass(Options(side=side, tiny=True, device="cpu")).batch == max(1, batch // 4)
    assert dinov3_pass(Options(side=side, tiny=True, batch=7)).batch == 7
    assert t5_pass(Options(side=side, tiny=True)).batch == 32


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image_mean": None}, "image_mean is None; needed: three numbers"),
        ({"image_mean": [0.5]}, "image_mean is [0.5]"),
        ({"image_std": [1, 0, 1]}, "image_std is [1, 0, 1]; needed: three positive numbers"),
        ({"rescale_factor": "1/255"}, "rescale_factor is '1/255'; needed: a positive number"),
    ],
)
def test_colours_that_are_none(folders: dict[str, Path], change: dict[str, Any], words: str) -> None:
    path = folders["dinov3"] / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert words in refusal(folder_passes(folders)["dinov3"])


def test_colours_that_are_switched_off(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text('{"do_rescale": false, "do_normalize": false}')
    image = picture(32, 32)
    normal = read_colours(tmp_path / "p.json").normal(torch.from_numpy(image)[None])
    assert torch.equal(normal, torch.from_numpy(image)[None].float())
