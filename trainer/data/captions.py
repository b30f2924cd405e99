"""A portrait in words, and back. Two phrasings say the same thing, so a caption has an exact paraphrase.

Both have 16 words; every noun announces or follows its value, so the same colour word can serve hair, shirt and
background.
"""

from __future__ import annotations

import re

from trainer.data.portraits import CHOICES, Portrait
from trainer.data.split import id_hash

TEMPLATES = (
    "{mouth} {skin} portrait placed {place} facing {yaw}, eyes {gaze}, "
    "{hair_style} {hair_colour} hair, {shirt} shirt, {background} background",
    "{background} backdrop, {shirt} top, {hair_style} {hair_colour} hair, "
    "{mouth} {skin} person set {place} turned {yaw}, gaze {gaze}",
)
_PATTERNS = tuple(
    re.compile(re.sub(r"\\{(\w+)\\}", lambda slot: f"(?P<{slot[1]}>{'|'.join(CHOICES[slot[1]])})", re.escape(template)))
    for template in TEMPLATES
)
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")


def phrasing_of(id: str) -> int:
    """Which of the two phrasings the caption of an id uses."""
    return id_hash(f"phrasing of {id}") % len(TEMPLATES)


def caption(portrait: Portrait, phrasing: int = 0) -> str:
    """All attributes in 16 words."""
    return TEMPLATES[phrasing].format(**{name: getattr(portrait, name) for name in CHOICES})


def parse(text: str) -> Portrait | None:
    """The portrait that a caption describes; None if the text is not one of ours."""
    for pattern in _PATTERNS:
        match = pattern.fullmatch(text)
        if match:
            return Portrait(**match.groupdict())
    return None


def words(text: str) -> list[str]:
    """Lower-case words of any text, without punctuation."""
    return _WORD.findall(text.lower())


CLOSED_WORDS = frozenset(
    {word for choices in CHOICES.values() for word in choices}
    | {word for template in TEMPLATES for word in words(re.sub(r"\{\w+\}", "", template))}
)
