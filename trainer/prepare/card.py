"""The data card: DATA/card.md and DATA/card.png, what a packed set holds and how it was made. No torch.

The same set gives the same bytes: there is no time and no path of the machine in it. Words that come from files stand
in it as text and never as Markdown.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import mean, median

from trainer.byte_progress import in_words
from trainer.prepare.card_facts import JOINT_GROUPS, CardFacts, card_facts
from trainer.prepare.card_sheet import write_sheet
from trainer.prepare.records import Samples, replace_file

CARD, PICTURE = "card.md", "card.png"
_BAR = 30
_BINS = 12
_LABEL_NONE = "–"


def write_card(data: Path) -> Path:
    """Write card.md and card.png of a packed set; the path of card.md. Raises DataError."""
    facts = card_facts(data)
    write_sheet(data / PICTURE, facts.manifest, Samples(data))
    replace_file(data / CARD, render_card(facts).encode())
    return data / CARD


def render_card(facts: CardFacts) -> str:
    """The card as Markdown."""
    parts = [
        ("# Data card", _overview(facts)),
        ("## Buckets", _buckets(facts)),
        ("## Captions", _captions(facts)),
        ("## Pose", _pose(facts)),
        ("## What it was made with", _recipes(facts)),
        ("## Splits", _splits(facts)),
        ("## Left out", _left_out(facts)),
        ("## Size", _sizes(facts)),
        ("## Samples", _samples()),
    ]
    return "\n\n".join(f"{title}\n\n" + "\n".join(lines) for title, lines in parts) + "\n"


def as_text(text: str) -> str:
    """Words of a file as one line of plain Markdown text: nothing in them is markup, a link or a control character."""
    plain = " ".join("".join(" " if unicodedata.category(one)[0] in "CZ" else one for one in text).split())
    return re.sub(r"([\\`*_{}\[\]()<>#+\-.!|~&$:@])", r"\\\1", plain)


def histogram(values: Sequence[int]) -> list[tuple[str, int]]:
    """Counts in equal ranges of whole numbers, as (range, count); none for no values."""
    if not values:
        return []
    low, high = min(values), max(values)
    step = max(1, -(-(high - low + 1) // _BINS))
    bins = range(low, high + 1, step)
    counts = [sum(start <= value < start + step for value in values) for start in bins]
    names = [str(start) if step == 1 else f"{start}-{start + step - 1}" for start in bins]
    return list(zip(names, counts, strict=True))


def _overview(facts: CardFacts) -> Iterator[str]:
    manifest, index = facts.manifest, facts.index
    yield f"{index.samples:,} samples in {len(index.shards):,} shards, stored at a square side of {index.side} pixels."
    yield ""
    yield from _table(
        ("", "count"),
        [
            ("images", f"{len(manifest.images):,}"),
            ("of them in the shards", f"{index.samples:,}"),
            ("files rejected", f"{len(manifest.rejected):,}"),
            ("exact copies left out", f"{len(manifest.copies):,}"),
            ("images that look like an earlier one, kept", f"{facts.near:,}"),
        ],
    )
    if index.labels:
        yield ""
        yield from (f"> **Do not believe everything:** {as_text(label)}" for label in index.labels)


def _buckets(facts: CardFacts) -> Iterator[str]:
    total = max(1, facts.index.samples)
    rows = [
        (
            each.bucket.name,
            f"{each.width}x{each.height}",
            f"{each.samples:,}",
            _percent(each.samples, total),
            f"{len(each.shards):,}",
        )
        for each in facts.index.buckets
    ]
    yield from _table(("bucket (at 1024)", "stored (px)", "samples", "share", "shards"), rows)


def _captions(facts: CardFacts) -> Iterator[str]:
    rows = [(name, *_spread(values)) for name, values in (("words", facts.words), ("tokens", facts.tokens)) if values]
    if not rows:
        yield "There are no captions."
        return
    yield from _table(("", "captions", "least", "median", "mean", "most"), rows)
    yield ""
    yield (
        f"The text encoder saw only the beginning of {facts.truncated:,} of {len(facts.tokens):,} captions "
        f"({_percent(facts.truncated, len(facts.tokens))})."
    )
    for name, values in (("Words", facts.words), ("Tokens", facts.tokens)):
        if values:
            yield from ("", f"{name} of a caption:", "", "```text", *_bars(histogram(values)), "```")


def _pose(facts: CardFacts) -> Iterator[str]:
    poses = facts.poses
    if not poses.images:
        yield "There are no poses."
        return
    yield (
        f"A person was found in {poses.detected:,} of {poses.images:,} images "
        f"({_percent(poses.detected, poses.images)}). Joints that count (score at least 0.3, in the frame), mean of "
        "the images with a person:"
    )
    yield ""
    sizes = {name: joints.stop - joints.start for name, joints in JOINT_GROUPS.items()}
    yield from _table(
        ("group", "joints", "visible"), [(name, str(sizes[name]), f"{poses.visible[name]:.1f}") for name in sizes]
    )


def _recipes(facts: CardFacts) -> Iterator[str]:
    rows = []
    for name, recipe in sorted(facts.index.recipes.items()):
        revision = str(recipe.get("revision") or "")
        rows.append(
            (
                as_text(name),
                as_text(str(recipe.get("model") or _LABEL_NONE)),
                as_text(revision[:16] or _LABEL_NONE),
                as_text(str(recipe.get("preprocessing", _LABEL_NONE))),
                as_text(str(recipe.get("label") or _LABEL_NONE)),
            )
        )
    yield from _table(("artefact", "model", "revision", "preprocessing", "label"), rows)


def _splits(facts: CardFacts) -> Iterator[str]:
    held_out, probe = len(facts.index.held_out), len(facts.index.probe)
    rows = [("training", facts.index.samples - held_out - probe), ("held out", held_out), ("probes", probe)]
    yield from _table(("split", "samples"), [(name, f"{count:,}") for name, count in rows])
    yield ""
    yield "Decided by the hash of the id alone, so new images move no old one to another side."


def _left_out(facts: CardFacts) -> Iterator[str]:
    """By kind and without names: a card is published, and names of photographs may be those of people."""
    if not facts.rejected:
        yield "No file was rejected."
        return
    rows = [(as_text(kind), f"{count:,}") for kind, count in facts.rejected.items()]
    yield from _table(("reason for a rejection", "files"), rows)


def _sizes(facts: CardFacts) -> Iterator[str]:
    rows = [("shards", in_words(facts.index.size_bytes))]
    rows += [(f"{name} (before packing)", in_words(size)) for name, size in facts.bytes_of.items()]
    yield from _table(("", "on disk"), rows)


def _samples() -> Iterator[str]:
    yield "Chosen by the hash of the id, not by looks; every bucket has its share. Drawn over them: joints that count."
    yield ""
    yield f"![samples]({PICTURE})"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    yield from (f"| {' | '.join(row)} |" for row in rows)


def _bars(counts: Sequence[tuple[str, int]]) -> Iterator[str]:
    most = max(count for _, count in counts)
    width = max(len(name) for name, _ in counts)
    for name, count in counts:
        length = max(1, round(_BAR * count / most)) if count else 0
        yield f"{name:>{width}} {'█' * length}{' ' if length else ''}{count:,}"


def _spread(values: Sequence[int]) -> tuple[str, ...]:
    numbers = (min(values), median(values), mean(values), max(values))
    return f"{len(values):,}", *(f"{number:,.0f}" for number in numbers)


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else _LABEL_NONE
