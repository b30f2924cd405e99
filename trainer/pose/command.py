"""`python -m trainer fit-pose CONFIG --out F`: fit the keypoint detector that scores the pose of a run's images."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from trainer.device import cap_threads
from trainer.document import load_document
from trainer.errors import EXIT_DONE, UsageError
from trainer.pose.detector import load_detector, save_detector
from trainer.pose.error import mpjpe
from trainer.pose.fit import fit, portraits

TRAIN_PORTRAITS = 1024
TEST_PORTRAITS = 64
STEPS = 1000


def main(argv: list[str]) -> int:
    """Fit, write the file, and say how well it finds joints in portraits that it has not seen."""
    arguments = _parser().parse_args(argv)
    config = load_document(arguments.config).config
    if config.data.source != "procedural":
        raise UsageError(
            f"fit-pose learns from drawn portraits, and {arguments.config} has data.source {config.data.source}; "
            "allowed: procedural"
        )
    if arguments.steps < 1:
        raise UsageError(f"--steps {arguments.steps}: at least 1")
    cap_threads()
    size = config.data.size
    net = fit(portraits(0, TRAIN_PORTRAITS, size), arguments.steps, arguments.seed, _say)
    about = {"size": size, "steps": arguments.steps, "seed": arguments.seed, "portraits": TRAIN_PORTRAITS}
    save_detector(arguments.out, net, about)
    print(f"{arguments.out}: written; {_told(arguments.out, size)}")
    return EXIT_DONE


def _told(path: Path, size: int) -> str:
    """The error on portraits that were not learned from, beside that of exchanged ones."""
    unseen = portraits(TRAIN_PORTRAITS, TEST_PORTRAITS, size)
    found_BJ3 = load_detector(path, "cpu")(unseen.x_BCHW).numpy()
    asked_BJ3 = unseen.joints_BJ3.numpy()
    own, others = (
        float(np.mean([mpjpe(one, other, size, size) for one, other in zip(each, asked_BJ3, strict=True)]))
        for each in (found_BJ3, np.roll(found_BJ3, 1, axis=0))
    )
    verdict = "usable" if own <= others / 3 else "not usable: above a third of it; try more --steps or larger images"
    return (
        f"MPJPE on {TEST_PORTRAITS} other portraits {own:.3f} inter-ocular distances, {others:.3f} with the joints of "
        f"another one ({verdict})"
    )


def _say(step: int, loss: float) -> None:
    print(f"step {step}: loss {loss:.4f}", flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m trainer fit-pose",
        description="Fit a keypoint detector on drawn portraits of their own, for validation.pose.detector.",
    )
    parser.add_argument("config", type=Path, metavar="CONFIG", help="a resolved configuration; its data.size counts")
    parser.add_argument("--out", type=Path, required=True, metavar="F", help="file to write, for example F.safetensors")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"of Adam, on 32 images each (default: {STEPS})")
    parser.add_argument("--seed", type=int, default=0, help="of everything that is drawn")
    return parser
