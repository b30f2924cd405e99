"""A folder of photographs becomes a manifest and crops; what is there is not made again, whatever was interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import trainer
from tests.fakes.photographs import drawn, encoded, icc_profile, put
from trainer.errors import DataError
from trainer.prepare.ingest import image_recipe, ingest, near_duplicates
from trainer.prepare.ingest.discover import Found, discover, part_of
from trainer.prepare.manifest import Manifest, Part, read_manifest, whole_manifest
from trainer.prepare.records import Samples

SIDE = 256
NOBODY = 65534
CHECKOUT = Path(str(trainer.__file__)).parents[1]
PICTURES = [encoded(drawn(seed), "PNG") for seed in range(4)]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    put(folder, {"b.png": PICTURES[0], "sub/a.png": PICTURES[1], "sub/deep/c.PNG": PICTURES[2]})
    return folder


def prepared(photos: Path, part: Part = Part(), side: int = SIDE, allowed_share: float = 0.5) -> Manifest:  # noqa: B008
    return ingest(photos, photos.parent / "data", part, side, allowed_share)


def files_of(data: Path) -> dict[str, tuple[int, int]]:
    """Every file with its identity and time of change: a file that was written again has another."""
    return {
        str(path.relative_to(data)): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in data.rglob("*")
        if path.is_file() and path.name != "manifest.json"
    }


def contents_of(data: Path) -> dict[str, bytes]:
    return {str(path.relative_to(data)): path.read_bytes() for path in data.rglob("*") if path.is_file()}


def test_images_of_all_folders_in_the_order_of_their_paths(photos: Path) -> None:
    put(photos, {"note.txt": b"no image", "sub/.x.png": PICTURES[3], ".hidden/x.png": PICTURES[3]})
    put(photos, {"B.jpeg": encoded(drawn(9), "JPEG")})
    manifest = prepared(photos)
    assert [image.path for image in manifest.images] == ["B.jpeg", "b.png", "sub/a.png", "sub/deep/c.PNG"]
    assert manifest == read_manifest(photos.parent / "data")
    assert manifest.source_root == photos.resolve()
    samples = Samples(photos.parent / "data")
    for image in manifest.images:
        status = (photos / image.path).stat()
        assert (image.size, image.mtime_ns) == (status.st_size, status.st_mtime_ns)
        assert samples.state(image.id, "image", image_recipe(SIDE), {}) == "done"
        image_CHW = np.load(samples.folder(image.id) / "image.npy")
        assert (image_CHW.dtype, image_CHW.shape) == (np.uint8, (3, 208, 304))


def test_a_copy_is_listed_and_used_once(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(photos, {"a.png": PICTURES[1], "z.png": PICTURES[0]})
    manifest = prepared(photos)
    assert [image.path for image in manifest.images] == ["a.png", "b.png", "sub/deep/c.PNG"]
    assert manifest.copies == (("sub/a.png", "a.png"), ("z.png", "b.png"))
    assert "2 copies of another file, left out" in capsys.readouterr().out
    (photos / "a.png").unlink()
    assert [image.path for image in prepared(photos).images] == ["b.png", "sub/a.png", "sub/deep/c.PNG"]


def test_copies_side_by_side_are_decoded_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(tmp_path / "photos", {f"{number:02}.png": PICTURES[0] for number in range(24)})
    manifest = prepared(tmp_path / "photos")
    assert [image.path for image in manifest.images] == ["00.png"]
    assert len(manifest.copies) == 23
    assert "image: 1 made, 0 were there, 23 copies" in capsys.readouterr().out


def test_near_duplicates_are_kept_and_told(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(photos, {"again.jpg": encoded(drawn(0), "JPEG", quality=90)})
    manifest = prepared(photos)
    assert [[image.path for image in group] for group in near_duplicates(manifest.images)] == [["again.jpg", "b.png"]]
    assert len(manifest.images) == 4
    assert "2 look like another one (1 groups of near-duplicates, kept)" in capsys.readouterr().out


def test_what_cannot_be_used_is_named_with_the_reason(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny = encoded(drawn(1, 60, 60), "PNG")
    put(photos, {"cut.png": PICTURES[3][:500], "tiny.png": tiny, "tinytoo.png": tiny})
    os.mkfifo(photos / "pipe.png")
    (photos / "gone.png").symlink_to("nowhere.png")
    os.close(os.open(os.fsencode(photos) + b"/\xff.png", os.O_CREAT | os.O_WRONLY))
    with pytest.raises(DataError, match=r"6 of 9 files cannot be used, more than --max-rejected-share 0.5 allows"):
        prepared(photos)
    assert read_manifest(photos.parent / "data") is None
    told = capsys.readouterr().err
    rejected = dict(prepared(photos, allowed_share=0.7).rejected)
    assert [f"rejected: {path}: {reason}" for path, reason in sorted(rejected.items())] == told.splitlines()
    assert rejected["\\xff.png"] == "its name is no UTF-8"
    assert rejected["gone.png"] == "it cannot be read: No such file or directory"
    assert rejected["pipe.png"] == "it is no regular file"
    assert rejected["cut.png"].startswith("it is broken: ")
    assert "60 x 60 pixels had to grow 4.27 times" in rejected["tiny.png"]
    assert rejected["tinytoo.png"] == rejected["tiny.png"]
    assert len(rejected) == 6


def test_flawed_images_are_counted(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(photos, {"grey.png": encoded(drawn(5), "PNG", icc_profile=icc_profile("GRAY", 2.2))})
    for _ in range(2):
        prepared(photos)
        assert "1 with a broken colour profile or EXIF, used as they are stored" in capsys.readouterr().out


def test_a_folder_without_photographs(tmp_path: Path) -> None:
    put(tmp_path, {".hidden/x.png": PICTURES[0], "a.txt": b"", ".b.png": PICTURES[0]})
    with pytest.raises(DataError, match=r"holds no photograph: .*\.bmp, \.gif, \.jpeg, \.jpg, \.png"):
        prepared(tmp_path)
    with pytest.raises(DataError, match="No such file or directory"):
        prepared(tmp_path / "missing")
    put(tmp_path, {"a.png": b"nothing"})
    with pytest.raises(DataError, match="not one of 1 files can be used"):
        prepared(tmp_path, allowed_share=1.0)


def test_links_in_circles_end_and_a_folder_is_looked_into_once(photos: Path, tmp_path: Path) -> None:
    put(tmp_path / "other", {"x.png": PICTURES[3]})
    (photos / "sub" / "up").symlink_to(photos)
    (photos / "sub" / "deep" / "self").symlink_to(".")
    (photos / "0").symlink_to(photos / "sub")
    (photos / "other").symlink_to(tmp_path / "other")
    (photos / "other2").symlink_to(tmp_path / "other")
    (photos / "link.png").symlink_to("b.png")
    assert [found.path for found in discover(photos)] == [
        "b.png", "link.png", "other/x.png", "sub/a.png", "sub/deep/c.PNG",
    ]  # fmt: skip


def test_what_may_not_be_read_is_rejected(photos: Path) -> None:
    """Root may read everything, so a child gives its rights away first."""
    (photos / "b.png").chmod(0o600)
    (photos / "sub" / "deep").chmod(0o700)
    data = photos.parent / "data"
    data.mkdir()
    data.chmod(0o777)
    folder = photos
    while folder != folder.parent and folder.stat().st_uid == os.getuid():
        folder.chmod(folder.stat().st_mode | 0o055)
        folder = folder.parent
    script = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "import scipy.fftpack  # the installed packages may be out of the child's reach, too\n"
        "from trainer.prepare.ingest import ingest\n"
        "from trainer.prepare.manifest import Part\n"
        f"if os.getuid() == 0: os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})\n"
        "else: os.chmod('photos/b.png', 0); os.chmod('photos/sub/deep', 0)\n"
        f"ingest(Path('photos'), Path('data'), Part(), {SIDE}, 0.9)\n"
    )
    command = [sys.executable, "-B", "-c", script]
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    done = subprocess.run(command, cwd=photos.parent, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines() == [
        "rejected: b.png: it cannot be read: Permission denied",
        "rejected: sub/deep: the folder cannot be read: Permission denied",
    ]
    manifest = read_manifest(data)
    assert manifest is not None
    assert [image.path for image in manifest.images] == ["sub/a.png"]


def test_the_second_run_decodes_nothing_and_reads_nothing(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Bytes that change behind an unchanged size and time are noticed by whoever reads them."""
    first, data = prepared(photos), photos.parent / "data"
    before = files_of(data)
    for image in first.images:
        (photos / image.path).write_bytes(bytes(image.size))
        os.utime(photos / image.path, ns=(image.mtime_ns, image.mtime_ns))
    assert prepared(photos) == first
    assert files_of(data) == before
    assert "0 made, 3 were there" in capsys.readouterr().out.splitlines()[-1]
    os.utime(photos / "b.png", ns=(0, 0))
    assert [path for path, _ in prepared(photos).rejected] == ["b.png"]


def test_another_folder_with_the_same_names_and_times_is_read(photos: Path, tmp_path: Path) -> None:
    first = prepared(photos)
    for image in first.images:
        put(tmp_path / "others", {image.path: bytes(image.size)})
        os.utime(tmp_path / "others" / image.path, ns=(image.mtime_ns, image.mtime_ns))
    with pytest.raises(DataError, match="3 of 3 files cannot be used"):
        prepared(tmp_path / "others")


def test_without_a_manifest_files_are_read_and_crops_are_not_made_again(photos: Path) -> None:
    first, data = prepared(photos), photos.parent / "data"
    before = files_of(data)
    (data / "manifest.json").unlink()
    (photos / "b.png").rename(photos / "renamed.png")
    assert {image.id for image in prepared(photos).images} == {image.id for image in first.images}
    assert files_of(data) == before


def test_what_has_changed_is_made_again_and_nothing_else(photos: Path) -> None:
    prepared(photos)
    data = photos.parent / "data"
    before = files_of(data)
    put(photos, {"b.png": PICTURES[3]})
    manifest = prepared(photos)
    after = files_of(data)
    assert {name: after[name] for name in before} == before
    assert {name.split("/")[2] for name in after.keys() - before.keys()} == {manifest.images[0].id}
    assert {image.bucket for image in prepared(photos, side=512, allowed_share=0.0).images} == {"1216x832"}
    assert all(files_of(data)[name] != after[name] for name in after if manifest.images[0].id in name)


def test_killed_anywhere_the_same_bytes_come_out(photos: Path) -> None:
    """The child kills itself as it stores its second crop, as the machine's power would."""
    put(photos, {f"more{seed}.png": encoded(drawn(seed), "PNG") for seed in range(10, 14)})
    script = (
        "import os, signal\n"
        "from pathlib import Path\n"
        "import trainer.prepare.records as records\n"
        "from trainer.prepare.ingest import ingest\n"
        "from trainer.prepare.manifest import Part\n"
        "replace, calls = os.replace, []\n"
        "def counted(*paths):\n"
        "    calls.append(paths)\n"
        "    if len(calls) == 4: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    replace(*paths)\n"
        "records.os.replace = counted\n"
        f"ingest(Path('photos'), Path('data'), Part(), {SIDE}, 0.0)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    done = subprocess.run([sys.executable, "-B", "-c", script], cwd=photos.parent, env=environment)
    assert done.returncode == -signal.SIGKILL
    data = photos.parent / "data"
    kept = {name: stamp for name, stamp in files_of(data).items() if name.endswith("record.json")}
    assert 1 <= len(kept) <= 3
    assert not (data / "manifest.json").exists()
    prepared(photos)
    assert {name: files_of(data)[name] for name in kept} == kept
    for left in data.rglob(".*.part"):
        left.unlink()
    ingest(photos, photos.parent / "straight", Part(), SIDE, 0.0)
    assert contents_of(data) == contents_of(photos.parent / "straight")


def test_a_file_that_grows_meanwhile_is_not_believed(photos: Path, tmp_path: Path) -> None:
    """A file system that shows every file empty and has more to read: what /proc does."""
    (photos / "living.png").symlink_to("/proc/self/status")
    assert prepared(photos).rejected == (("living.png", "it was written to while it was read"),)


@given(st.integers(1, 12), st.integers(0, 30))
def test_parts_cover_everything_once(count: int, files: int) -> None:
    found = [Found(f"{number:03}.png") for number in range(files)]
    parts = [part_of(found, Part(number + 1, count)) for number in range(count)]
    assert sorted(one for part in parts for one in part) == found
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_parts_together_are_the_whole(photos: Path) -> None:
    put(photos, {"x.png": PICTURES[3], "y.png": PICTURES[0], "cut.png": PICTURES[3][:99]})
    whole = ingest(photos, photos.parent / "whole", Part(), SIDE, 0.5)
    parts = [prepared(photos, Part(number, 4), allowed_share=0.5) for number in (1, 2, 3, 4)]
    assert sorted(len(part.images) + len(part.rejected) + len(part.copies) for part in parts) == [1, 1, 2, 2]
    merged = whole_manifest(photos.parent / "data")
    assert merged == whole
    seventh = prepared(photos, Part(7, 7))
    assert (seventh.images, seventh.rejected) == ((), ())


def test_it_loads_no_torch() -> None:
    script = (
        "import sys\nfrom trainer.prepare.ingest import image_recipe, ingest\n"
        "sys.exit(len({'torch', 'scipy', 'transformers'} & set(sys.modules)))\n"
    )
    assert subprocess.run([sys.executable, "-c", script], cwd=CHECKOUT).returncode == 0
