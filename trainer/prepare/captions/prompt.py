"""What a vision model is asked for. Whoever changes a word here raises the version. Pure."""

from __future__ import annotations

import hashlib
import json

PROMPT_VERSION = 1
PROMPT = (
    "Describe this photograph in English, in one dense paragraph of 120 to 200 words, as a caption from which a "
    "painter who never sees it could paint it again. Keep to this order and leave out whatever cannot be seen: the "
    "subject (number of people, apparent age, build); the hair (colour, length, texture, style); the skin; the "
    "direction of the gaze; the expression; the pose (turn and tilt of the head, shoulders, hands); clothing and "
    "jewellery (kind, colour, material); the light (where it comes from, hard or soft, warm or cool); the background; "
    "the framing (distance, camera height, depth of field).\n"
    "State plain facts only: no mood, no story, no praise, no guesses. Never name or identify anybody. Left and right "
    "are those of the picture. Write full sentences without lists, headings or line breaks. Begin with the subject "
    "itself, not with words such as 'the image shows', and end after the last fact."
)

TEMPERATURE = 0.0
"""Of the first question: the likeliest words, and the same ones again from servers that can repeat themselves."""
AGAIN_TEMPERATURE = 0.7
"""Of later ones: at 0, another seed would give the very answer that was no caption."""


def temperature_of(rejected: int) -> float:
    """The temperature after so many answers that were no captions."""
    return AGAIN_TEMPERATURE if rejected else TEMPERATURE


def seed_of(run_seed: int, id: str, rejected: int) -> int:
    """The seed of one question, in [0, 2**31): from the seed of the run, the image, and the answers before.

    The first 4 bytes, big-endian, of SHA-256 of the compact JSON, without the sign bit: servers read it as an int32.
    """
    key = json.dumps([run_seed, "caption", id, rejected], separators=(",", ":"))
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") & 0x7FFF_FFFF
