"""`python -m trainer sample RUN_DIR --prompt TEXT --out F.png`: draw one image from a checkpoint."""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

from trainer.asking.answer import Painter, conditions_of, was_trained
from trainer.asking.encoders import add_places, places_of
from trainer.asking.question import Question
from trainer.asking.trained_run import trained_run
from trainer.device import cap_threads
from trainer.errors import EXIT_DONE, UsageError
from trainer.evaluate.pictures import to_image


def main(argv: list[str]) -> int:
    """Draw the image and say what it was drawn from."""
    arguments = _parser().parse_args(argv)
    cap_threads()
    run = trained_run(arguments.run_dir, arguments.step)
    _refuse_unknown_format(arguments.out)
    question = Question(arguments.prompt, arguments.reference, arguments.pose, arguments.bucket)
    [asked] = conditions_of(run, [question], places_of(arguments))
    painter = Painter(run, arguments.weights, arguments.sampler)
    image = to_image(painter.draw(asked, arguments.seed))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    image.save(arguments.out)
    streams = asked.conditions.streams
    print(
        f"{arguments.out}: step {run.step}, {arguments.weights} weights, {painter.guidance.kind}, from "
        f"{', '.join(streams)}"
    )
    for note in asked.notes:
        print(f"note: {note}")
    if not was_trained(streams, run.config):
        print("note: training never saw this combination of conditions alone")
    return EXIT_DONE


def _refuse_unknown_format(out: Path) -> None:
    known = Image.registered_extensions()
    if out.suffix.lower() not in known:
        raise UsageError(f"--out {out}: unknown image format {out.suffix!r}; try .png, .jpg or .webp")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m trainer sample", description="Draw one image from a checkpoint.")
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    parser.add_argument("--prompt", required=True, help="the caption of the image")
    parser.add_argument("--reference", type=Path, metavar="IMG", help="a reference image: CLS and patch conditions")
    parser.add_argument(
        "--pose",
        metavar="IMG|JSON",
        help="133 joints [x, y, confidence] in [-1, 1], as JSON or its file; of a run on shards, an image of a person",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="F", help="image file to write")
    parser.add_argument(
        "--bucket",
        metavar="WxH",
        help="shape of the image, one of the run's buckets (default: that of the given image, else the square)",
    )
    parser.add_argument("--step", type=int, help="the checkpoint of this step (default: the newest)")
    parser.add_argument("--weights", choices=("raw", "ema"), default="ema")
    parser.add_argument("--sampler", choices=("common", "native"), default="common")
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    add_places(parser)
    return parser
