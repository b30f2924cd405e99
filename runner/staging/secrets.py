"""Likely secrets in files that are about to be uploaded: which file, which line, what kind; never the secret. Pure.

Known shapes only: a private key's header, tokens with the prefix that their issuer gave them, and values beside a name
that says what they are. A word of a placeholder (`hf_xxxxxxxxxxxxxxxxxxxx`) has too few different characters to be one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

FEWEST_DIFFERENT = 10
"""So many different characters (whatever their case) a random token has. Of 30 letters and digits 20 differ on average,
of 40 hexadecimal digits 15; a placeholder has one or two, and a word that has ten has no digit."""

LONGEST_LINE = 100_000
"""Bytes of a line that are looked at; the rest of a longer one is looked at as a line of its own."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A line (from 1) of a file that seems to hold a secret of this kind."""

    file: str
    line: int
    kind: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.kind}"


@dataclass(frozen=True, slots=True)
class _Shape:
    """`pattern` has one group, the random part, where there is one to be judged: at least `different` characters of it
    must differ, and with `has_digit` one must be a digit."""

    kind: str
    pattern: re.Pattern[bytes]
    different: int = FEWEST_DIFFERENT
    has_digit: bool = True


_BEFORE, _AFTER = rb"(?<![A-Za-z0-9_-])", rb"(?![A-Za-z0-9_])"
_ASSIGNED = rb"[\"']?\s{0,4}(?:=|:|=>)\s{0,4}[\"']?"


def _token(kind: str, text: bytes, different: int = FEWEST_DIFFERENT, *, has_digit: bool = True) -> _Shape:
    return _Shape(kind, re.compile(_BEFORE + text + _AFTER), different, has_digit)


_SHAPES = (
    _Shape("a private key", re.compile(rb"-----BEGIN (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----")),
    _Shape("a private key of PuTTY", re.compile(rb"^PuTTY-User-Key-File-[0-9]: ")),
    _token("a token of Hugging Face", rb"(?:hf|api_org)_([A-Za-z0-9]{30,60})"),
    _token("a token of GitHub", rb"gh[opsur]_([A-Za-z0-9]{36,255})"),
    _token("a token of GitHub", rb"github_pat_([A-Za-z0-9_]{50,255})"),
    _token("a token of GitLab", rb"gl(?:pat|dt|rt)-([A-Za-z0-9_-]{20,64})"),
    _token("an access key of AWS", rb"(?:AKIA|ASIA)([A-Z2-7]{16})", 8, has_digit=False),
    _Shape(
        "a secret key of AWS",
        re.compile(rb"(?i:aws_?secret_?(?:access_?)?key)" + _ASSIGNED + rb"([A-Za-z0-9/+]{40})(?![A-Za-z0-9/+=])"),
    ),
    _token("an API key (sk-…)", rb"sk-(?:[a-z]{2,8}[0-9]{0,2}-){0,3}([A-Za-z0-9_-]{20,200})"),
    _token("a key of a payment service", rb"[rs]k_live_([A-Za-z0-9]{20,120})"),
    _token("a token of Slack", rb"xox[abeoprs]-([A-Za-z0-9-]{16,255})"),
    _token("a webhook of Slack", rb"(?:https://)?hooks\.slack\.com/services/([A-Za-z0-9/]{24,120})"),
    _token("an API key of Google", rb"AIza([A-Za-z0-9_-]{35})"),
    _token("a token of PyPI", rb"pypi-AgE([A-Za-z0-9_-]{50,255})"),
    _token("a token of npm", rb"npm_([A-Za-z0-9]{36})"),
    _Shape(
        "an API key (64 hexadecimal digits)",
        re.compile(rb"(?i:vast|api[ _-]?key)[^\n]{0,40}?(?<![0-9A-Za-z])([0-9a-f]{64})(?![0-9A-Za-z])"),
    ),
    _Shape(
        "an API key (40 hexadecimal digits)",
        re.compile(rb"(?i:wandb|api)[ _-]?(?i:api[ _-]?)?(?i:key)" + _ASSIGNED + rb"([0-9a-f]{40})(?![0-9A-Za-z])"),
    ),
    _Shape(
        "a password in an address",
        re.compile(rb"[a-z][a-z0-9+]{1,15}://[^\s/:@\"'<>{}]{0,64}:([^\s/:@\"'<>{}]{8,128})@"),
        different=6,
    ),
    _Shape("a token in an address", re.compile(rb"https?://([A-Za-z0-9_-]{20,255})@[A-Za-z0-9]")),
)  # fmt: skip


def likely_secrets(files: Mapping[str, bytes]) -> tuple[Finding, ...]:
    """What looks like a secret in the contents of these files, by file (in their order) and line; one kind of a line is
    found once. Nothing of the secret itself is in the answer."""
    return tuple(finding for file, content in files.items() for finding in dict.fromkeys(_findings(file, content)))


def _findings(file: str, content: bytes) -> Iterator[Finding]:
    for number, line in enumerate(content.split(b"\n"), start=1):
        for start in range(0, max(1, len(line)), LONGEST_LINE):
            yield from (Finding(file, number, kind) for kind in _kinds(line[start : start + LONGEST_LINE]))


def _kinds(line: bytes) -> Iterator[str]:
    for shape in _SHAPES:
        found = shape.pattern.finditer(line)
        if any(not shape.pattern.groups or _is_random(shape, match[1]) for match in found):
            yield shape.kind


def _is_random(shape: _Shape, text: bytes) -> bool:
    """Whether the varying part of a match looks drawn, not written."""
    has_digit = any(48 <= sign < 58 for sign in text)
    return len(set(text.lower())) >= shape.different and (has_digit or not shape.has_digit)
