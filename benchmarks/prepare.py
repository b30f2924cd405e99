"""Photographs to features: batches of one shape that are read ahead, beside the same models called image by image.

The second way is that of the scripts which published sets were made with: pass by pass, image by image, each pass opens
its photograph, decodes and crops it again, and calls its model with a batch of one. Both ways use the same decoding and
the same small stand-in encoders, with one thread per model in one process, and write the same files; they take turns.
Packing is in neither. The clock is the wall: reading ahead is part of what is compared.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.train_step import spread
from tests.fakes.picture_folder import write_portrait
from trainer.prepare.ingest import ingest
from trainer.prepare.ingest.crop import make_crop
from trainer.prepare.manifest import Part
from trainer.prepare.options import Options
from trainer.prepare.passes import Inputs, Made, Pass
from trainer.prepare.records import Samples
from trainer.prepare.run import run_pass
from trainer.prepare.table import chosen_passes

SIDE = 256
PHOTOGRAPHS = 48
LARGEST_PX = 1600  # about two megapixels, as small photographs have
TURNS = 5
PASSES = ("caption", "t5", "dinov3", "pose")


def run(quick: bool) -> dict[str, Any]:
    """Samples per second of both ways, as plain JSON values."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        photos = write_photographs(Path(folder) / "photos", 16 if quick else PHOTOGRAPHS)
        passes = chosen_passes(PASSES, Options(side=SIDE, tiny=True, device="cpu"))
        count = len(list(photos.glob("*.jpg")))
        ways: dict[str, Callable[[Path], None]] = {
            "batched": lambda out: batched(photos, out, passes),
            "image by image": lambda out: image_by_image(photos, out, passes),
        }
        seen: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range((1 if quick else TURNS) + 1):
            for name in ways if turn % 2 else reversed(ways):
                out = Path(folder) / "out"
                begun = time.perf_counter()
                ways[name](out)
                if turn:  # the first turn builds and loads what both share
                    seen[name].append(count / (time.perf_counter() - begun))
                shutil.rmtree(out)
    ratios = [ours / theirs for ours, theirs in zip(seen["batched"], seen["image by image"], strict=True)]
    return {
        "benchmark": "prepare",
        "photographs": count,
        "side": SIDE,
        "passes": list(PASSES),
        "turns": len(ratios),
        "samples_per_s": {name: spread(values) for name, values in seen.items()},
        "ratio": spread(ratios),
        "ratio_median": median(ratios),
    }


def table(result: dict[str, Any]) -> str:
    """The result as a Markdown table."""
    lines = ["| way | samples/s |", "|---|--:|"]
    for name, speed in result["samples_per_s"].items():
        lines.append(f"| {name} | {speed['median']:.2f} ({speed['low']:.2f} to {speed['high']:.2f}) |")
    ratio = result["ratio"]
    lines.append(
        f"| **batched over image by image** | {ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f}) |"
    )
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
        write(out / path.stem, make_crop(path.read_bytes(), SIDE))
    for work in passes:
        with work.open() as encode:
            for path in paths:
                needs_image = "image" in work.needs
                image_CHW = make_crop(path.read_bytes(), SIDE).files["image.npy"] if needs_image else None
                caption = (out / path.stem / "caption.txt").read_text() if "caption" in work.needs else None
                assert image_CHW is None or isinstance(image_CHW, np.ndarray)
                (made,) = encode([Inputs(path.stem, path, image_CHW, caption)])
                assert isinstance(made, Made), made
                write(out / path.stem, made)


def write(folder: Path, made: Made) -> None:
    """The files of one artefact, as they are."""
    for name, content in made.files.items():
        if isinstance(content, str):
            (folder / name).write_text(content, encoding="utf-8")
        else:
            np.save(folder / name, content)


def write_photographs(folder: Path, count: int) -> Path:
    """Drawn portraits of every shape as JPEG files of the size of photographs, with captions."""
    folder.mkdir(parents=True)
    ratios = np.exp(np.linspace(np.log(0.55), np.log(1.8), count))
    for number, ratio in enumerate(ratios.tolist()):
        path = folder / f"portrait{number:03d}.png"
        write_portrait(path, f"benchmark-{number}", ratio, 320)
        with Image.open(path) as small:
            scale = LARGEST_PX / max(small.size)
            large = small.resize((round(small.width * scale), round(small.height * scale)), Image.Resampling.BICUBIC)
        large.save(path.with_suffix(".jpg"), quality=90)
        path.unlink()
    return folder


if __name__ == "__main__":
    found = run(quick="--quick" in sys.argv)
    print(table(found))
