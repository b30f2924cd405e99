"""Can a small model learn 64 portraits by heart, with every prediction? `python tests/overfit.py OUT [PREDICTION …]`

Trains on a CPU and draws every training image from its own conditions with the averaged weights. The root mean squared
error must fall below half the distance to the nearest other training image: less than that no mixture of portraits
reaches. Writes OUT/<prediction>.png (true images above, drawn ones below) and prints one JSON line a prediction.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from trainer.checkpoint import load_for_evaluation  # noqa: E402
from trainer.data import open_source  # noqa: E402
from trainer.evaluate.pictures import to_image  # noqa: E402
from trainer.evaluate.protocols import eval_sets  # noqa: E402
from trainer.evaluate.reconstruction import rmse  # noqa: E402
from trainer.train import train  # noqa: E402

PREDICTIONS = ("x", "v", "asymflow")
SHOWN = 16
BLOCK: dict[str, Any] = {
    "steps": 750,
    "batch": 16,
    "device": "cpu",
    "log_every": 50,
    "data": {"size": 32, "samples": 64, "held_out": 8},
    "model": {"width": 96, "depth": 4, "heads": 4, "patch": 4},
    "streams": {"pose": "off"},  # 133 tokens that say little about so small an image
    "optimizer": {"name": "muon", "lr": 4e-3, "weight_decay": 0.0, "warmup_steps": 30},
    "validation": {"every": 750, "samples": 8, "sampler_steps": 16},
    "indicators": {"enabled": False},
}


def main(out: Path, predictions: list[str]) -> int:
    """Train and judge each prediction; 1 if one of them cannot."""
    out.mkdir(parents=True, exist_ok=True)
    results = [overfit(out, prediction) for prediction in predictions]
    return int(not all(result["passed"] for result in results))


def overfit(out: Path, prediction: str) -> dict[str, Any]:
    """Train with one prediction and draw all training images."""
    begun = time.monotonic()
    config = out / f"{prediction}.yaml"
    run_dir = out / prediction
    config.write_text(yaml.safe_dump({"seed": 0, "trainer": {**BLOCK, "objective": {"prediction": prediction}}}))
    assert train(config, run_dir, resume=run_dir.exists()) == 0
    seconds = time.monotonic() - begun
    model, _, document = load_for_evaluation(run_dir, None, "ema", "cpu")
    source = open_source(document.config, document.seed)
    [inputs] = eval_sets(document.config, source, torch.device("cpu"), source.train_ids)
    drawn_BCHW = inputs.generate(model, inputs.conditions)
    error, floor = float(rmse(drawn_BCHW, inputs.x_BCHW).mean()), nearest_other(inputs.x_BCHW)
    sheet(inputs.x_BCHW[:SHOWN], drawn_BCHW[:SHOWN]).save(out / f"{prediction}.png")
    result = {"prediction": prediction, "rmse": error, "nearest_other": floor, "train_s": round(seconds, 1)}
    print(json.dumps({**result, "passed": error < floor / 2}), flush=True)
    return {**result, "passed": error < floor / 2}


def nearest_other(x_BCHW: Tensor) -> float:
    """Mean distance (RMSE) of every image to the nearest other one."""
    flat = x_BCHW.flatten(1)
    distance_BB = torch.cdist(flat, flat) / flat.shape[1] ** 0.5
    distance_BB.fill_diagonal_(torch.inf)
    return float(distance_BB.min(dim=1).values.mean())


def sheet(true_BCHW: Tensor, drawn_BCHW: Tensor) -> Image.Image:
    """True images above the drawn ones, four times their size."""
    rows = [torch.cat(list(images), dim=2) for images in (true_BCHW, drawn_BCHW)]
    image = to_image(torch.cat(rows, dim=1))
    return image.resize((image.width * 3, image.height * 3), Image.Resampling.NEAREST)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:] or list(PREDICTIONS)))
