"""What a data card tells of a prepared set, as numbers: read from manifest, records, artefacts and index. No torch.

Shapes: J joints of COCO-WholeBody.
"""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trainer.data.artefacts import CAPTION_FILE, FILES
from trainer.data.set_index import SetIndex, read_index
from trainer.pose.error import GROUPS, counted
from trainer.prepare.ingest.duplicates import near_duplicates
from trainer.prepare.manifest import Manifest, whole_manifest
from trainer.prepare.pack import SHARDS
from trainer.prepare.passes import JsonValue
from trainer.prepare.records import Record, Samples
from trainer.prepare.run import CAPTION

POSE, POSE_FILE, T5 = "pose", "pose.npy", "t5"
HAND_START = 112
"""The first joint of the right hand; the left one comes before it."""
JOINT_GROUPS = {
    "body": GROUPS["body"],
    "feet": GROUPS["feet"],
    "face": GROUPS["face"],
    "left hand": slice(GROUPS["hands"].start, HAND_START),
    "right hand": slice(HAND_START, GROUPS["hands"].stop),
}


@dataclass(frozen=True, slots=True)
class Poses:
    """Images with a pose, images in which somebody was found, and joints that count per such image by group."""

    images: int
    detected: int
    visible: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class CardFacts:
    """Everything that the card says.

    `words` and `tokens` have an entry per caption; `truncated` counts captions of which the text encoder saw a part.
    `rejected` counts reasons by kind, `near` images that look like an earlier one, `bytes_of` files by artefact.
    """

    manifest: Manifest
    index: SetIndex
    rejected: Mapping[str, int]
    near: int
    words: tuple[int, ...]
    tokens: tuple[int, ...]
    truncated: int
    poses: Poses
    bytes_of: Mapping[str, int]


def card_facts(data: Path) -> CardFacts:
    """Read a packed set. Raises DataError if it is not prepared or not packed."""
    manifest, index = whole_manifest(data), read_index(data / SHARDS)
    samples = Samples(data)
    words, facts_of_text, poses = [], [], []
    bytes_of: Counter[str] = Counter()
    for entry in manifest.images:
        records = {name: _done(samples, entry.id, name) for name in FILES}
        for name, record in records.items():
            if record is not None:
                bytes_of[name] += sum(_size(samples.folder(entry.id) / file) for file in record.files)
        if records[CAPTION] is not None:
            words.append(len(samples.read(entry.id, CAPTION_FILE).decode(errors="replace").split()))
        if (text := records[T5]) is not None:
            facts_of_text.append(text.facts)
        if (pose := records[POSE]) is not None:
            poses.append((pose.facts, read_pose(samples, entry.id)))
    return CardFacts(
        manifest=manifest,
        index=index,
        rejected=kinds(reason for _, reason in manifest.rejected),
        near=sum(len(group) - 1 for group in near_duplicates(manifest.images)),
        words=tuple(words),
        tokens=tuple(_whole(facts.get("tokens")) for facts in facts_of_text if "tokens" in facts),
        truncated=sum(bool(facts.get("truncated")) for facts in facts_of_text),
        poses=_poses(poses),
        bytes_of={name: bytes_of[name] for name in FILES if bytes_of[name]},
    )


def read_pose(samples: Samples, id: str) -> np.ndarray:
    """(J, 3): x and y in [-1, 1] over the frame, and the score. Raises DataError."""
    pose_J3: np.ndarray = np.lib.format.read_array(io.BytesIO(samples.read(id, POSE_FILE)), allow_pickle=False)
    return pose_J3.astype(np.float32)


def kinds(reasons: Iterable[str]) -> dict[str, int]:
    """Reasons counted by kind, most frequent first: what stands before a colon or a semicolon, numbers left out."""
    found = Counter(re.sub(r"\d[\d.,]*", "N", re.split("[:;]", reason)[0]).strip() for reason in reasons)
    return dict(sorted(found.items(), key=lambda kind: (-kind[1], kind[0])))


def _poses(found: list[tuple[Mapping[str, JsonValue], np.ndarray]]) -> Poses:
    with_person = [pose_J3 for facts, pose_J3 in found if facts.get("detected", bool(pose_J3[:, 2].any()))]
    counts = {
        name: sum(int(counted(pose_J3)[joints].sum()) for pose_J3 in with_person) / max(1, len(with_person))
        for name, joints in JOINT_GROUPS.items()
    }
    return Poses(len(found), len(with_person), counts)


def _done(samples: Samples, id: str, artefact: str) -> Record | None:
    record = samples.record(id, artefact)
    return None if record is None or record.reason else record


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _whole(value: JsonValue) -> int:
    return value if isinstance(value, int) else 0
