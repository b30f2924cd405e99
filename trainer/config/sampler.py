"""The guidance an arm would be used with."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from trainer.config.base import Block, Finite, Share


class NativeSamplerConfig(Block):
    """The guidance an arm would be used with.

    dense: none. self_guidance: routed + scale (dense - routed), for an arm trained with routing. nested_cfg: from
    nothing to `text`, on to CLS and patches (`dino`), on to `pose`, each step scaled; all scales 1 = all conditions.
    dual_cfg: the published guidance, from nothing towards `text` alone and towards CLS and patches alone (`dino`), pose
    dropped; training never sees CLS and patches without words, so it exists under reference_parity only.
    A scale that is not given is 3.0 for self_guidance, and 3.0 (text), 2.5 (dino), 1.0 (pose) for the other two.
    `interval` is [low, high]: guidance at noise times low <= t <= high (1 is noise), dense with all conditions outside;
    null: at every t.
    """

    kind: Literal["dense", "self_guidance", "nested_cfg", "dual_cfg"] = "dense"
    scale: Finite | None = None
    text: Finite | None = None
    dino: Finite | None = None
    pose: Finite | None = None
    interval: Annotated[tuple[Share, Share], Field(strict=False)] | None = None

    @property
    def scales(self) -> dict[str, float]:
        """The scales this kind of guidance uses, by name, defaults filled in; empty for dense."""
        return {
            name: default if (given := getattr(self, name)) is None else given for name, default in self._defaults()
        }

    def _defaults(self) -> tuple[tuple[str, float], ...]:
        return NATIVE_SCALES[self.kind]


NATIVE_SCALES: dict[str, tuple[tuple[str, float], ...]] = {
    "dense": (),
    "self_guidance": (("scale", 3.0),),
    "nested_cfg": (("text", 3.0), ("dino", 2.5), ("pose", 1.0)),
    "dual_cfg": (("text", 3.0), ("dino", 2.5)),
}


class SamplerConfig(Block):
    """How this arm's images are drawn beside the common protocol of the study."""

    native: NativeSamplerConfig = NativeSamplerConfig()
