"""What the classes of part maps are, and which of them a loss counts as background, as face or as anything else.

A part map gives every pixel one class. Hair, mouth and neck belong to the face, as in the published weighting of
segmented losses; clothes, hands and the rest of the body are other. No torch here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

GROUPS = ("background", "face", "other")

PROCEDURAL_CLASSES = ("background", "hair", "face", "eyes", "mouth", "neck", "shirt")
"""Classes of procedural portraits: the parts in the order in which drawing.py names them."""

SAPIENS_CLASSES = (
    *("background", "apparel", "face_neck", "hair"),
    *("left_foot", "left_hand", "left_lower_arm", "left_lower_leg", "left_shoe", "left_sock"),
    *("left_upper_arm", "left_upper_leg", "lower_clothing"),
    *("right_foot", "right_hand", "right_lower_arm", "right_lower_leg", "right_shoe", "right_sock"),
    *("right_upper_arm", "right_upper_leg", "torso", "upper_clothing"),
    *("lower_lip", "upper_lip", "lower_teeth", "upper_teeth", "tongue"),
)
"""The 28 classes of Sapiens (arXiv 2408.12569), 0 to 27, as in published part maps (`{id}.seg.npy`)."""

_OF_THE_FACE = {
    "procedural": {"hair", "face", "eyes", "mouth", "neck"},
    "sapiens": {"face_neck", "hair", "lower_lip", "upper_lip", "lower_teeth", "upper_teeth", "tongue"},
}
LABEL_SETS: Mapping[str, Sequence[str]] = {"procedural": PROCEDURAL_CLASSES, "sapiens": SAPIENS_CLASSES}
SOURCE_LABELS: Mapping[str, str] = {"procedural": "procedural", "shards": "sapiens"}
"""The label set of the part maps of a source; a source that is not here has none."""


def group_of_class(label_set: str) -> tuple[int, ...]:
    """Index into GROUPS for every class of a label set (procedural or sapiens)."""
    face = _OF_THE_FACE[label_set]
    names = (
        "background" if name == "background" else "face" if name in face else "other" for name in LABEL_SETS[label_set]
    )
    return tuple(map(GROUPS.index, names))
