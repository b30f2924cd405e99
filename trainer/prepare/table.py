"""Every pass in the order of what they need. A new one is one new file and one line here. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from trainer.errors import UsageError
from trainer.prepare.options import Options
from trainer.prepare.passes import Pass


def _caption(options: Options) -> Pass:
    from trainer.prepare.captions.caption_pass import caption_pass

    return caption_pass(options)


def _t5(options: Options) -> Pass:
    from trainer.prepare.t5 import t5_pass

    return t5_pass(options)


def _dinov3(options: Options) -> Pass:
    from trainer.prepare.dinov3 import dinov3_pass

    return dinov3_pass(options)


def _pose(options: Options) -> Pass:
    from trainer.prepare.dwpose.pose_pass import pose_pass

    return pose_pass(options)


def _seg(options: Options) -> Pass:
    from trainer.prepare.segmentation import segmentation_pass

    return segmentation_pass(options)


PASSES: dict[str, Callable[[Options], Pass]] = {
    "caption": _caption,
    "t5": _t5,
    "dinov3": _dinov3,
    "pose": _pose,
    "seg": _seg,
}
"""By the name of the artefact. Nothing that a pass needs comes behind it."""
OPTIONAL = ("seg",)
"""Made only if their model is named."""


def chosen_passes(names: Sequence[str] | None, options: Options) -> list[Pass]:
    """The passes of these names (None: all that can be made) in the order in which they run.

    Raises UsageError for a name that does not exist or a model that is not named, DataError for a model that is not
    there.
    """
    unknown = [name for name in names or () if name not in PASSES]
    if unknown:
        raise UsageError(f"there is no pass {unknown[0]!r}; allowed: {', '.join(PASSES)}")
    wanted = [name for name in PASSES if (_is_default(name, options) if names is None else name in names)]
    return [PASSES[name](options) for name in wanted]


def _is_default(name: str, options: Options) -> bool:
    return name not in OPTIONAL or options.tiny or options.seg_model is not None
