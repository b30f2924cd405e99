"""What guidance demands."""

from __future__ import annotations

from collections.abc import Iterator

from trainer.config import TrainerConfig
from trainer.errors import Issue


def rules(config: TrainerConfig) -> Iterator[Issue]:
    """Every demand that `config` does not meet."""
    native = config.sampler.native
    if native.kind == "self_guidance" and not config.tread.enabled:
        yield Issue(
            "sampler.native.kind",
            "self_guidance compares routed and dense passes, and this arm does not train with routing",
            ("dense", "nested_cfg"),
        )
    for name in ("scale", "text", "dino", "pose"):
        if getattr(native, name) is not None and name not in native.scales:
            yield Issue(
                f"sampler.native.{name}",
                f"has no meaning for {native.kind}",
                f"null; {native.kind} uses {', '.join(native.scales) or 'no scale'}",
            )
