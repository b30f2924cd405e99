"""What a person asks of `prepare`, as frozen values. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

T5 = "google-t5/t5-large"
DINOV3 = "facebook/dinov3-vitl16-pretrain-lvd1689m"


@dataclass(frozen=True, slots=True)
class CaptionServer:
    """A vision model behind HTTP: `url` is the base of an Ollama or OpenAI-compatible server, `model` its name there.

    Times are in seconds. `requests` are in flight at once. `most_tokens` is where an answer counts as cut off.
    """

    url: str
    model: str
    timeout_s: float = 120.0
    tries: int = 3
    requests: int = 4
    most_tokens: int = 500


@dataclass(frozen=True, slots=True)
class Options:
    """Models and sizes of every pass.

    `side` is that of the square bucket in pixels. `tiny` makes small random encoders of our own stand in for the real
    ones; else `t5` and `dinov3` are folders or ids on the hub, and the ONNX models are files (None: those of the hub;
    for `seg_model`: no part maps). `captions` None means captions from .txt files beside the images. `device` is auto,
    cpu or cuda; `batch` is the most images that a model sees at once (None: what suits the pass).
    """

    side: int = 1024
    tiny: bool = False
    device: str = "auto"
    batch: int | None = None
    seed: int = 0
    t5: str = T5
    dinov3: str = DINOV3
    detector: Path | None = None
    pose_model: Path | None = None
    seg_model: Path | None = None
    captions: CaptionServer | None = None
