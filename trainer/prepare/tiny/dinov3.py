"""A DINOv3 of one random layer with the tokens and the output width of ViT-L/16."""

from __future__ import annotations

import json
from pathlib import Path

from trainer.prepare.pretrained import Kind, Source
from trainer.prepare.resident import import_transformers
from trainer.prepare.tiny.building import SEED, stand_in

NAME, VERSION = "tiny-dinov3", 1
LABEL = f"random stand-in (seed {SEED}): says nothing about DINO"
WIDTH = 1024
_COLOURS = {
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_processor_type": "DINOv3ViTImageProcessorFast",
    "image_std": [0.229, 0.224, 0.225],
    "rescale_factor": 1 / 255,
    "size": {"height": 224, "width": 224},
}


def tiny_dinov3(kind: Kind) -> Source:
    """Its files, built if they are not there. Raises DataError if the cache cannot be written."""
    return stand_in(NAME, VERSION, kind, _build)


def _build(folder: Path) -> None:
    transformers = import_transformers()
    config = transformers.DINOv3ViTConfig(
        hidden_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=4,  # one head is slower
        intermediate_size=16,
        patch_size=16,
        num_register_tokens=4,
    )
    transformers.DINOv3ViTModel(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(_COLOURS, indent=2) + "\n")
