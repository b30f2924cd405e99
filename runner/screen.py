"""The one door through which strings of logs, specs and hosts reach a terminal."""

from __future__ import annotations

import unicodedata


def printable(text: str, *, keep_newlines: bool = False) -> str:
    """The text without anything that could move a cursor, change a colour or hide itself.

    Control and format characters (escape sequences, right-to-left overrides …) become visible escapes; tabs become
    spaces. What a table prints this way must also be printed without markup (rich: `Text`, never `str`).
    """
    return "".join(_shown(character, keep_newlines) for character in text)


def _shown(character: str, keep_newlines: bool) -> str:
    if character == "\t":
        return "    "
    if character == "\n" and keep_newlines:
        return character
    if unicodedata.category(character) in ("Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"):
        return f"\\x{ord(character):02x}" if ord(character) < 256 else f"\\u{ord(character):04x}"
    return character
