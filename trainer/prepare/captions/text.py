"""What any caption must be, whoever wrote it. Pure."""

from __future__ import annotations

import unicodedata

FILE = "caption.txt"
_WRONG_KINDS = {"Cc": "control characters", "Cs": "halves of characters", "Co": "private characters"}
_REPLACEMENT = "\ufffd"


def one_paragraph(text: str) -> str:
    """The text with every run of white space made one space."""
    return " ".join(text.split())


def broken_characters(text: str) -> str:
    """What is wrong with the characters of a text, '' if nothing."""
    if _REPLACEMENT in text:
        return "U+FFFD, which stands where an earlier program could not read a character"
    for letter in text:
        kind = unicodedata.category(letter)
        if kind in _WRONG_KINDS and not letter.isspace():
            return f"{_WRONG_KINDS[kind]} (U+{ord(letter):04X})"
    return ""


def has_words(text: str) -> bool:
    """Whether there is any letter or digit."""
    return any(letter.isalnum() for letter in text)
