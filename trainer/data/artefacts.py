"""Which files every artefact consists of: the names that a sample's folder and a shard have for them. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

CAPTION_FILE = "caption.txt"
JSON_MEMBER = "json"
"""The member of a shard that holds the caption, and what else is said of an image in words."""
IMAGE_MEMBER = "image.npy"
PARTS_MEMBER = "seg.npy"
"""What a sample must hold beside image and conditions if a loss asks for part maps."""
STREAM_MEMBERS: Mapping[str, tuple[str, ...]] = {
    "text": ("t5h.npy", "t5m.npy"),
    "cls": ("dinov3.npy",),
    "patches": ("dinov3_patches.npy",),
    "pose": ("pose.npy",),
}
"""What a sample must hold for each condition stream, beside `json` and the image."""
FILES: Mapping[str, tuple[str, ...]] = {
    "image": (IMAGE_MEMBER,),
    "caption": (CAPTION_FILE,),
    "t5": STREAM_MEMBERS["text"],
    "dinov3": (*STREAM_MEMBERS["cls"], *STREAM_MEMBERS["patches"]),
    "pose": STREAM_MEMBERS["pose"],
    "seg": (PARTS_MEMBER,),
}
"""By artefact, in the order in which they are made."""
MAKERS: Mapping[str, str] = {name: artefact for artefact, names in FILES.items() for name in names}
"""The artefact of every file."""


def array_members(artefacts: Iterable[str]) -> tuple[str, ...]:
    """The members that a sample of a shard has beside `json`: the files of these artefacts as they are, sorted.

    Artefacts that this version does not know, which an index may name, have none.
    """
    return tuple(sorted(name for artefact in artefacts for name in FILES.get(artefact, ()) if name != CAPTION_FILE))
