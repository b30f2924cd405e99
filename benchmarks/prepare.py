"""Photographs to features: batches of one shape that are read ahead, beside the same models called image by image.

The second way is that of the scripts which published sets were made with: pass by pass, image by image, each pass opens
its photograph, turns it upright, makes it RGB, resizes it (bicubic) to cover its bucket, crops it, and calls its model
with a batch of one. Both ways use the same small stand-in encoders with one thread a batch and write the same features;
they take turns in one process. Packing is in neither. The clock is the wall: both cores, reading ahead and writing
behind are part of what is compared. Photographs are of the size that a telephone takes, and of a sixth of that.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from benchmarks.train_step import spread
from tests.fakes.picture_folder import write_portrait
from trainer.prepare.ingest import ingest
from trainer.prepare.ingest.crop import nearest_bucket
from trainer.prepare.manifest import Part
from trainer.prepare.options import Options
from trainer.prepare.passes import Inputs, Made, Pass
from trainer.prepare.pipeline import threads_of_machine
from trainer.prepare.records import Samples
from trainer.prepare.run import run_pass
from trainer.prepare.table import chosen_passes

SIDE = 256
SIZES = {"12 MP": (4000, 48), "2 MP": (1600, 192)}
"""Longer side in pixels, and how many photographs: enough that opening the models is a small part of either way."""
QUICK_COUNT = 16
TURNS = 3
PASSES = ("caption", "t5", "dinov3", "pose")


def run(quick: bool) -> dict[str, Any]:
    """Samples per second of both ways, as plain JSON values."""
    torch.set_num_threads(1)
    passes = chosen_passes(PASSES, Options(side=SIDE, tiny=True, device="cpu"))
    turns = 1 if quick else TURNS
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            {"photographs": name, **measure(Path(folder) / name, px, QUICK_COUNT if quick else count, turns, passes)}
            for name, (px, count) in SIZES.items()
        ]
    return {
        "benchmark": "prepare",
        "side": SIDE,
        "passes": list(PASSES),
        "turns": turns,
        "cores": threads_of_machine(),
        "rows": rows,
    }


def measure(folder: Path, side_px: int, count: int, turns: int, passes: Sequence[Pass]) -> dict[str, Any]:
    """Both ways taking turns on photographs of one size; the first turn builds and loads what both share."""
    photos, out = write_photographs(folder / "photos", side_px, count), folder / "out"
    ways: dict[str, Callable[[], None]] = {
        "batched": lambda: batched(photos, out, passes),
        "image by image": lambda: image_by_image(photos, out, passes),
    }
    seen: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(turns + 1):
        for name in ways if turn % 2 else reversed(ways):
            begun = time.perf_counter()
            ways[name]()
            if turn:
                seen[name].append(count / (time.perf_counter() - begun))
            shutil.rmtree(out)
    ratios = [ours / theirs for ours, theirs in zip(seen["batched"], seen["image by image"], strict=True)]
    return {
        "count": count,
        "samples_per_s": {name: spread(values) for name, values in seen.items()},
        "ratio": spread(ratios),
    }


def table(result: dict[str, Any]) -> str:
    """The result as a Markdown table."""
    lines = ["| photographs | batched, samples/s | image by image, samples/s | ratio |", "|---|--:|--:|--:|"]
    for row in result["rows"]:
        speeds = (row["samples_per_s"][name] for name in ("batched", "image by image"))
        cells = (f"{each['median']:.2f} ({each['low']:.2f} to {each['high']:.2f})" for each in (*speeds, row["ratio"]))
        lines.append(f"| {row['count']} of {row['photographs']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def batched(photos: Path, out: Path, passes: Sequence[Pass]) -> None:
    """What `python -m trainer prepare` does, up to the shards."""
    manifest, samples = ingest(photos, out, Part(), SIDE, 0.0), Samples(out)
    for work in passes:
        outcome = run_pass(work, samples, manifest)
        assert outcome.made == len(manifest.images), outcome


def image_by_image(photos: Path, out: Path, passes: Sequence[Pass]) -> None:
    """One photograph, one model, one answer at a time."""
    out.mkdir(parents=True)
    paths = sorted(photos.glob("*.jpg"))
    for path in paths:
        (out / path.stem).mkdir()
        np.save(out / path.stem / "image.npy", plain_crop(path))
    for work in passes:
        with work.open() as encode:
            for path in paths:
                image_CHW = plain_crop(path) if "image" in work.needs else None
                caption = (out / path.stem / "caption.txt").read_text() if "caption" in work.needs else None
                (made,) = encode([Inputs(path.stem, path, image_CHW, caption)])
                assert isinstance(made, Made), made
                write(out / path.stem, made)


def plain_crop(path: Path) -> np.ndarray:
    """(3, H, W) uint8."""
    with Image.open(path) as stored:
        image = ImageOps.exif_transpose(stored).convert("RGB")
    size = nearest_bucket(*image.size).scaled(SIDE)
    assert size is not None
    return np.asarray(ImageOps.fit(image, size[::-1], Image.Resampling.BICUBIC)).transpose(2, 0, 1)


def write(folder: Path, made: Made) -> None:
    """The files of one artefact, as they are."""
    for name, content in made.files.items():
        if isinstance(content, str):
            (folder / name).write_text(content, encoding="utf-8")
        else:
            np.save(folder / name, content)


def write_photographs(folder: Path, side_px: int, count: int) -> Path:
    """Drawn portraits of every shape as JPEG files of the size of photographs, with captions."""
    folder.mkdir(parents=True)
    ratios = np.exp(np.linspace(np.log(0.55), np.log(1.8), count))
    for number, ratio in enumerate(ratios.tolist()):
        path = folder / f"portrait{number:03d}.png"
        write_portrait(path, f"benchmark-{number}", ratio, 320)
        with Image.open(path) as small:
            scale = side_px / max(small.size)
            large = small.resize((round(small.width * scale), round(small.height * scale)), Image.Resampling.BICUBIC)
        large.save(path.with_suffix(".jpg"), quality=90)
        path.unlink()
    return folder


if __name__ == "__main__":
    found = run(quick="--quick" in sys.argv)
    print(table(found))
