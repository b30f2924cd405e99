"""Captions from text files: what is read, what is refused, and that an edited file is seen."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.caption_sets import caption_record, caption_set, captions_of
from trainer.prepare.captions.caption_pass import caption_pass
from trainer.prepare.captions.sidecar import MOST_CHARACTERS, read_sidecar
from trainer.prepare.options import Options
from trainer.prepare.passes import Encode, Failed, Made
from trainer.prepare.recipe import Recipe
from trainer.prepare.run import run_pass


def test_text_files_become_captions_of_one_paragraph(tmp_path: Path) -> None:
    samples, manifest = caption_set(tmp_path, 3)
    contents = (b"A woman\r\n  with dark hair.\n", b"\xef\xbb\xbfEin Mann.", "Ünïcode — ok".encode())
    for entry, content in zip(manifest.images, contents, strict=True):
        (tmp_path / "photos" / entry.path).with_suffix(".txt").write_bytes(content)
    outcome = run_pass(caption_pass(Options()), samples, manifest)
    assert (outcome.made, outcome.failed) == (3, [])
    assert captions_of(samples, manifest) == ["A woman with dark hair.", "Ein Mann.", "Ünïcode — ok"]
    assert caption_record(samples, manifest, 0).recipe == Recipe(options={"from": "sidecar"})
    assert run_pass(caption_pass(Options()), samples, manifest).done == 3


class CountsWords:
    """Stands for t5: made from the caption alone."""

    artefact, files, needs, batch = "t5", ("t5.txt",), ("caption",), 4
    recipe = Recipe()

    def __init__(self) -> None:
        self.asked: list[str] = []

    def open(self) -> CountsWords:
        """Nothing to load."""
        return self

    def __enter__(self) -> Encode:
        return self._encode

    def __exit__(self, *error: object) -> None:
        pass

    def _encode(self, batch: list) -> list[Made | Failed]:
        self.asked += [inputs.caption for inputs in batch]
        return [Made({"t5.txt": str(len(inputs.caption.split()))}) for inputs in batch]


def test_an_edited_file_makes_the_caption_and_what_depends_on_it_again(tmp_path: Path) -> None:
    samples, manifest = caption_set(tmp_path, 2)
    texts = [(tmp_path / "photos" / entry.path).with_suffix(".txt") for entry in manifest.images]
    for text in texts:
        text.write_text("one two")
    run_pass(caption_pass(Options()), samples, manifest)
    run_pass(CountsWords(), samples, manifest)
    untouched = (samples.folder(manifest.images[0].id) / "caption.record.json").stat().st_mtime_ns

    texts[1].write_text("one two three")
    outcome = run_pass(caption_pass(Options()), samples, manifest)
    assert (outcome.done, outcome.made) == (1, 1)
    assert captions_of(samples, manifest) == ["one two", "one two three"]
    assert (samples.folder(manifest.images[0].id) / "caption.record.json").stat().st_mtime_ns == untouched
    after = run_pass(CountsWords(), samples, manifest)
    assert (after.done, after.made) == (1, 1)
    assert samples.read(manifest.images[1].id, "t5.txt") == b"3"

    texts[1].unlink()
    outcome = run_pass(caption_pass(Options()), samples, manifest)
    assert [reason for _, reason in outcome.failed] == [
        "there is no 01.txt beside the photograph; write one, or name a --caption-url"
    ]
    assert run_pass(CountsWords(), samples, manifest).waiting == [manifest.images[1].id]

    texts[1].write_text("one two three")
    assert run_pass(caption_pass(Options()), samples, manifest).made == 1
    assert run_pass(CountsWords(), samples, manifest).done == 2


def test_a_state_can_be_asked_for_without_the_photographs(tmp_path: Path) -> None:
    samples, manifest = caption_set(tmp_path, 1)
    text = (tmp_path / "photos" / manifest.images[0].path).with_suffix(".txt")
    text.write_text("one two")
    work = caption_pass(Options())
    run_pass(work, samples, manifest)
    text.write_text("three")
    id = manifest.images[0].id
    assert samples.state(id, "caption", work.recipe, {}) == "done"
    assert samples.state(id, "caption", work.recipe, {}, work.beside(text)) == "stale"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "holds no words"),
        (b" \n\t...", "holds no words"),
        (b"caf\xe9", "is no UTF-8: byte 3 is 0xe9"),
        ("A woman".encode("utf-16"), "is no UTF-8: byte 0 is 0xff"),
        (b"A\0 woman", "control characters (U+0000)"),
        ("A wom\ufffdn".encode(), "U+FFFD"),
        (b"a " * MOST_CHARACTERS, f"is longer than {MOST_CHARACTERS:,} characters"),
        (b"a" * (9 * MOST_CHARACTERS), f"is longer than {MOST_CHARACTERS:,} characters"),
    ],
)
def test_what_is_no_caption_fails_with_the_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "portrait.txt"
    path.write_bytes(content)
    found = read_sidecar(path)
    assert isinstance(found, Failed)
    assert "portrait.txt" in found.reason
    assert reason in found.reason


def test_what_is_no_file_fails(tmp_path: Path) -> None:
    (tmp_path / "a.txt").mkdir()
    assert read_sidecar(tmp_path / "a.txt") == Failed("a.txt is no plain file")
    (tmp_path / "b.txt").symlink_to(tmp_path / "nowhere")
    assert isinstance(read_sidecar(tmp_path / "b.txt"), Failed)


@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode(errors="surrogatepass")))
def test_any_content_is_a_caption_or_a_reason(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.txt"
    path.write_bytes(content)
    found = read_sidecar(path)
    if isinstance(found, Made):
        caption = found.files["caption.txt"]
        assert isinstance(caption, str)
        assert caption == " ".join(content.decode("utf-8-sig").split()) != ""
