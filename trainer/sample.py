"""`python -m trainer sample RUN_DIR --prompt TEXT --out F.png`: draw one image from a checkpoint."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from trainer import randomness
from trainer.checkpoint import load_for_evaluation
from trainer.config import TrainerConfig
from trainer.data.captions import parse
from trainer.data.drawing import draw
from trainer.data.features import encode_cls, encode_patches, encode_text
from trainer.data.portraits import Portrait
from trainer.data.sample import Conditions, Sample, collate
from trainer.data.shapes import POSE_JOINTS, StreamShapes, stream_shapes
from trainer.device import cap_threads, choose_device
from trainer.document import load_document
from trainer.errors import EXIT_DONE, UsageError
from trainer.evaluate.pictures import CAPTION_KEY, to_image
from trainer.model.conditioning import STREAMS
from trainer.model.tread import Route, keep_from_noise
from trainer.objective.dropout import CATEGORIES
from trainer.sampler import COMMON, euler, predictor, time_grid


def main(argv: list[str]) -> int:
    """Draw the image and say what it was drawn from."""
    arguments = _parser().parse_args(argv)
    cap_threads()
    if not (arguments.run_dir / "config.yaml").is_file():
        raise UsageError(f"{arguments.run_dir} is no run directory: it has no config.yaml")
    config = load_document(arguments.run_dir / "config.yaml").config
    _refuse_unknown_format(arguments.out)
    conditions = encode(config, arguments.prompt, arguments.reference, arguments.pose)
    device = choose_device(config)
    model, step, _ = load_for_evaluation(arguments.run_dir, arguments.step, arguments.weights, device)
    guidance = config.sampler.native if arguments.sampler == "native" else COMMON
    shape = (1, 3, config.data.size, config.data.size)
    noise_BCHW = randomness.normal(shape, arguments.seed, "sample").to(device) * config.objective.noise_scale
    predict = predictor(model, conditions.to(device), guidance, _route(config, arguments.seed, device))
    grid = time_grid(config.validation.sampler_steps, config.objective.shift)
    with torch.no_grad():
        image_BCHW = euler(predict, noise_BCHW, grid)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    to_image(image_BCHW[0]).save(arguments.out)
    streams = conditions.streams
    print(f"{arguments.out}: step {step}, {arguments.weights} weights, {guidance.kind}, from {', '.join(streams)}")
    if not _was_trained(streams, config):
        print("note: training never saw this combination of conditions alone")
    return EXIT_DONE


def encode(config: TrainerConfig, prompt: str, reference: Path | None, pose: str | None) -> Conditions:
    """The given conditions of one image; what is not given is absent.

    `pose` is JSON or the path of a JSON file. Raises UsageError for a stream that the run does not have and for input
    that cannot be encoded.
    """
    if config.data.source == "shards":
        raise UsageError(
            "this run was trained on text and image features stored in shards: without their encoders no --prompt can "
            "be turned into a condition; look at RUN_DIR/validation/step_*/images for what it draws"
        )
    shapes = stream_shapes(config)
    _refuse_missing(
        config, shapes, {"--prompt": True, "--reference": reference is not None, "--pose": pose is not None}
    )
    cls_D = patches_PD = None
    grid = (0, 0)
    if reference is not None:
        portrait = _portrait_in(reference)
        drawing = draw(portrait, config.data.size, config.data.size)
        cls_D = encode_cls(portrait) if shapes.cls_width else None
        if shapes.patch_width:
            patches_PD, grid = encode_patches(portrait, drawing.coverage_HWP)
    sample = Sample(
        id="sample",
        caption=prompt,
        pixels_HWC=np.zeros((1, 1, 3), dtype=np.uint8),
        text_TD=encode_text(prompt, shapes.text_length),
        cls_D=cls_D,
        patches_PD=patches_PD,
        patch_grid=grid,
        pose_J3=None if pose is None else _joints(pose),
    )
    return collate([sample]).conditions


def _refuse_missing(config: TrainerConfig, shapes: StreamShapes, given: Mapping[str, bool]) -> None:
    """Every option needs a stream that the run was trained with."""
    has = {
        "--prompt": shapes.text_width > 0,
        "--reference": shapes.cls_width + shapes.patch_width > 0,
        "--pose": shapes.pose_joints > 0,
    }
    needs = {"--prompt": "text", "--reference": "cls and patches", "--pose": "pose"}
    for option, is_given in given.items():
        if is_given and not has[option]:
            why = "has captions only" if config.data.source == "folder" else "switches it off"
            usable = ", ".join(name for name, on in has.items() if on)
            raise UsageError(
                f"{option} needs the {needs[option]} condition, which this run was not trained with: its data source "
                f"{config.data.source} {why}; usable: {usable or 'none'}"
            )


def _portrait_in(path: Path) -> Portrait:
    """The portrait that an image file of ours says it shows."""
    try:
        with Image.open(path) as image:
            text = image.info.get(CAPTION_KEY, "")
    except OSError as error:
        raise UsageError(f"--reference {path} cannot be read: {error.strerror or error}") from error
    portrait = parse(text)
    if portrait is None:
        raise UsageError(
            f"--reference {path} does not say which portrait it shows: features of procedural runs come from "
            "attributes, not from pixels; use an image of RUN_DIR/validation/step_*/images/reference"
        )
    return portrait


def _joints(pose: str) -> np.ndarray:
    """133 joints (x, y, confidence), float16, from JSON text or from a JSON file."""
    try:
        text = pose if pose.lstrip().startswith("[") else Path(pose).read_text(encoding="utf-8")
        joints_J3 = np.asarray(json.loads(text), dtype=np.float64)
    except OSError as error:
        raise UsageError(f"--pose {pose} cannot be read: {error.strerror or error}") from error
    except (ValueError, TypeError) as error:
        raise UsageError(f"--pose is not a JSON list of joints: {error}") from error
    if joints_J3.shape != (POSE_JOINTS, 3) or not (np.abs(joints_J3) <= 1.0).all() or (joints_J3[:, 2] < 0).any():
        raise UsageError(
            f"--pose has the shape {joints_J3.shape}; needed: {POSE_JOINTS} COCO-WholeBody joints [x, y, confidence], "
            "x and y in [-1, 1] over the frame, confidence in [0, 1]"
        )
    return joints_J3.astype(np.float16)


def _refuse_unknown_format(out: Path) -> None:
    known = Image.registered_extensions()
    if out.suffix.lower() not in known:
        raise UsageError(f"--out {out}: unknown image format {out.suffix!r}; try .png, .jpg or .webp")


def _route(config: TrainerConfig, seed: int, device: torch.device) -> Route:
    noise_BN = randomness.uniform((1, config.tokens), seed, "sample", "route")
    return Route(keep_from_noise(noise_BN, config.kept_tokens).to(device), *config.routed_blocks)


def _was_trained(streams: tuple[str, ...], config: TrainerConfig) -> bool:
    """Whether a dropout category keeps just these of the run's streams."""
    shapes = stream_shapes(config)
    widths = (shapes.text_width, shapes.cls_width, shapes.patch_width, shapes.pose_joints)
    on = {name for name, width in zip(STREAMS, widths, strict=True) if width}
    kept = ({name for name, keep in zip(STREAMS, each.keeps, strict=True) if keep} & on for each in CATEGORIES)
    return set(streams) in list(kept)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m trainer sample", description="Draw one image from a checkpoint.")
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    parser.add_argument("--prompt", required=True, help="the caption of the image")
    parser.add_argument("--reference", type=Path, metavar="IMG", help="a reference image: CLS and patch conditions")
    parser.add_argument("--pose", metavar="JSON", help="133 joints [x, y, confidence] in [-1, 1], as JSON or its file")
    parser.add_argument("--out", type=Path, required=True, metavar="F", help="image file to write")
    parser.add_argument("--step", type=int, help="the checkpoint of this step (default: the newest)")
    parser.add_argument("--weights", choices=("raw", "ema"), default="ema")
    parser.add_argument("--sampler", choices=("common", "native"), default="common")
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    return parser
