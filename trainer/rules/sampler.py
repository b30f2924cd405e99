"""What guidance demands."""

from __future__ import annotations

from collections.abc import Iterator

from trainer.config import NativeSamplerConfig, TrainerConfig
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
    if native.kind == "dual_cfg" and not config.reference_parity:
        yield Issue(
            "sampler.native.kind",
            "dual_cfg asks for CLS and patches without words, which training never sees; it reproduces the published "
            "protocol and needs reference_parity: true",
            ("dense", "self_guidance", "nested_cfg"),
        )
    yield from _interval(native)
    for name in ("scale", "text", "dino", "pose"):
        if getattr(native, name) is not None and name not in native.scales:
            yield Issue(
                f"sampler.native.{name}",
                f"has no meaning for {native.kind}",
                f"null; {native.kind} uses {', '.join(native.scales) or 'no scale'}",
            )


def _interval(native: NativeSamplerConfig) -> Iterator[Issue]:
    if native.interval is None:
        return
    low, high = native.interval
    if low >= high:
        yield Issue("sampler.native.interval", f"{low:g} is not below {high:g}", "null, or [low, high] with low < high")
    if native.kind in ("dense", "dual_cfg"):
        why = "there is no guidance to limit" if native.kind == "dense" else "the published guidance holds at every t"
        yield Issue("sampler.native.interval", f"has no meaning for {native.kind}: {why}", "null")
