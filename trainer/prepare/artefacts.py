"""Which files every artefact consists of: the names that a sample's folder and a shard have for them. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

CAPTION_FILE = "caption.txt"
JSON_MEMBER = "json"
"""The member of a shard that holds the caption, and what else is said of an image in words."""
FILES: Mapping[str, tuple[str, ...]] = {
    "image": ("image.npy",),
    "caption": (CAPTION_FILE,),
    "t5": ("t5h.npy", "t5m.npy"),
    "dinov3": ("dinov3.npy", "dinov3_patches.npy"),
    "pose": ("pose.npy",),
    "seg": ("seg.npy",),
}
"""By artefact, in the order in which they are made."""
MAKERS: Mapping[str, str] = {name: artefact for artefact, names in FILES.items() for name in names}
"""The artefact of every file."""


def array_members(artefacts: Iterable[str]) -> tuple[str, ...]:
    """The members that a sample of a shard has beside `json`: the files of these artefacts as they are, sorted."""
    return tuple(sorted(name for artefact in artefacts for name in FILES[artefact] if name != CAPTION_FILE))
