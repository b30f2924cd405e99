"""Text that is safe to show: escaping of strings that others wrote, and numbers in one format. Pure."""

from __future__ import annotations

import math
import re
import unicodedata

NOT_AVAILABLE = "n/a"
LONGEST = 400  # characters of a foreign string that a report shows

_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_SPECIAL = re.compile(r"[\\`*\[\]|~$@#&<>]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|:(?=//)|(?<=www)\.")
_BLOCK_START = re.compile(r"^([-+](?=\s|$)|=(?==*\s*$)|-(?=-*\s*$)|(?<=^)\d{1,9}(?=[.)](\s|$)))")


def clean(text: str, longest: int = LONGEST) -> str:
    """One visible line: control, format, bidirectional and unassigned characters are written as codes, white space
    becomes a space, and what is longer than `longest` is cut with an ellipsis."""
    shown = "".join(_visible(character) for character in text[: longest + 1])
    return shown if len(text) <= longest else shown[:longest] + "…"


def escape(text: str, longest: int = LONGEST) -> str:
    """A string from a log, a spec or a host as literal Markdown text, in a paragraph and in a table cell alike.

    The one door through which such strings reach the report. Raw HTML, links, bare addresses, code, emphasis,
    table bars, formulas and block markers all lose their meaning.
    """
    literal = _SPECIAL.sub(_literal, clean(text, longest).strip())
    return _BLOCK_START.sub(_block_literal, literal)


def label(text: str, longest: int = 28) -> str:
    """A string for a figure: cleaned, cut, and limited to characters that the bundled font has."""
    return "".join(c if ord(c) < 0x180 or c == "…" else "?" for c in clean(text, longest))


def number(value: float | None, digits: int = 4) -> str:
    """A number with `digits` significant digits; nan, inf and -inf by name; n/a when there is none."""
    if value is None:
        return NOT_AVAILABLE
    if not math.isfinite(value):
        return non_finite(value)
    return f"{value + 0.0:.{digits}g}"


def signed(value: float | None, digits: int = 3) -> str:
    """A difference with its sign."""
    if value is None or not math.isfinite(value):
        return number(value)
    return f"{value + 0.0:+.{digits}g}"


def seconds(value: float) -> str:
    """A duration as exact as a person needs it: `under 0.1 s`, `2.5 s`, `95 s`, `3,600 s`."""
    if not math.isfinite(value):
        return f"{non_finite(value)} s"
    if 0.0 < abs(value) < 0.1:
        return "under 0.1 s"
    shown = f"{value:.1f}".removesuffix(".0") if abs(value) < 10.0 else f"{value:,.0f}"
    return f"{shown} s"


def non_finite(value: float) -> str:
    """The name that every file of ours gives to a value that is not finite."""
    if math.isnan(value):
        return "nan"
    return "inf" if value > 0 else "-inf"


def exact(value: float | None) -> str:
    """A number for a data file: every bit of it, non-finite values by name, empty when there is none."""
    if value is None:
        return ""
    return repr(float(value)) if math.isfinite(value) else non_finite(value)


def listed(items: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    if len(items) < 2:
        return "".join(items)
    return ", ".join(items[:-1]) + " and " + items[-1]


def counted(count: int, noun: str, plural: str = "") -> str:
    """`1 run`, `2 runs`."""
    return f"{count} {noun if count == 1 else plural or noun + 's'}"


def _visible(character: str) -> str:
    if character.isspace():
        return " "
    if unicodedata.category(character).startswith("C"):
        code = ord(character)
        return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
    return character


def _literal(found: re.Match[str]) -> str:
    return _ENTITIES.get(found[0], "\\" + found[0])


def _block_literal(found: re.Match[str]) -> str:
    return found[0] + "\\" if found[0].isdigit() else "\\" + found[0]
