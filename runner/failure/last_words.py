"""Reads the end of an error stream: which line in it says why the process ended. Pure.

    text -> lines -> statements -> the one that decides

A statement is the line that ends a traceback, or any line that a rule knows. They are weighed from the last to the
first, because what came last ended the process; a launcher's summary, the complaints of peers that were left alone and
asides (a thread's exception, a logger's) do not hide what stands above them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from runner.failure.rules import RULES, WRAPPERS, Rule, Weight

_COLOURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_RANK = re.compile(r"^\s*(?:\[(?:rank|default)?\d+\]:|\(\w+ pid=\d+[^)]*\)) ?")
_GROUP = re.compile(r"^\s*(?:\+ )?\| ?")
_HEADER = re.compile(r"Traceback \(most recent call last\):\s*$")
_FRAME = re.compile(r'^\s+File "[^"]*", line \d+(?:, in |\s*$)')
_LEVEL = r"(?:DEBUG|INFO|WARN|WARNING|ERROR|CRITICAL|FATAL)\b"
_EXCEPTION = re.compile(rf"^(?!{_LEVEL})[A-Za-z_][\w.]*(?:\([\w.]+\))?(?::|\s*$)")
_CHAIN = ("The above exception was the direct cause", "During handling of the above exception")
_CHILD = re.compile(r"^Process \S+:\s*$")
_LINE_CHARACTERS = 2000


@dataclass(frozen=True, slots=True)
class Statement:
    """One line that says something. `place` is its index among the lines.

    `ends_traceback`: it names an exception that nobody caught, as far as the text shows. `is_chained`: an earlier
    exception led to it. `is_one_of_several`: others died beside it (ranks, child processes, members of a group).
    `is_aside`: the program went on after it.
    """

    text: str
    place: int
    rule: Rule | None
    ends_traceback: bool = False
    is_chained: bool = False
    is_one_of_several: bool = False
    is_aside: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """The statement that decides, and what stands below it. `rule` is None where nobody knows the exception."""

    rule: Rule | None
    text: str
    below: str


def read_lines(tail: str) -> tuple[str, ...]:
    """The lines of a text, as a terminal would begin them: a progress bar's redraws are lines of their own."""
    plain = _COLOURS.sub("", tail).replace("\r", "\n")
    return tuple(line[:_LINE_CHARACTERS].rstrip() for line in plain.split("\n"))


def decide(tail: str) -> Verdict | None:
    """The statement that says why the process ended; None when no line says anything known."""
    lines = read_lines(tail)
    found = _weigh(tuple(statements(lines)))
    if found is None:
        return None
    return Verdict(found.rule, found.text, "\n".join(lines[found.place : found.place + 12]))


def statements(lines: Sequence[str]) -> Iterator[Statement]:
    """Every statement, in the order of the lines."""
    reader = _Reader()
    for place, line in enumerate(lines):
        statement = reader.take(line, place)
        if statement is not None:
            yield statement


def _weigh(said: Sequence[Statement]) -> Statement | None:
    best: Statement | None = None
    least = Weight.ASIDE
    is_launched = any(statement.ends_traceback and "ChildFailedError" in statement.text for statement in said)
    only_several = False
    for statement in reversed(said):
        if only_several and not statement.is_one_of_several:
            continue
        if WRAPPERS.search(statement.text) and (statement.rule is None or statement.rule.weight is Weight.CAUSE):
            continue
        weight = _weight(statement, is_launched)
        if best is None or weight < least:
            best, least = statement, weight
        if least is Weight.CAUSE:
            return best
        if statement.rule is None and statement.ends_traceback and not statement.is_aside:
            if not (statement.is_chained or statement.is_one_of_several):
                break  # nobody knows this exception, and it owes nothing to what stands above it
            only_several = only_several or statement.is_one_of_several
    return best


def _weight(statement: Statement, is_launched: bool) -> Weight:
    """How much a statement says. The unknown exception of one of several processes outweighs what its peers say."""
    if statement.is_aside:
        return Weight.ASIDE
    if statement.rule is None:
        return Weight.SYMPTOM if statement.is_one_of_several or is_launched else Weight.HEARSAY
    return statement.rule.weight


class _Reader:
    """Where in which traceback the reading is."""

    def __init__(self) -> None:
        self.in_traceback = False
        self.is_chained = False
        self.is_aside = False
        self.in_logging_error = False
        self.in_child = False
        self.before = (False, False)

    def take(self, line: str, place: int) -> Statement | None:
        """Read one line; a statement if it is one."""
        bare, is_several = _bare(line)
        if self._moves_on(bare) or not bare.strip():
            return None
        ends = self.in_traceback and not bare[0].isspace()
        is_exception = ends and _EXCEPTION.match(bare) is not None
        if not is_exception and bare[0].isspace() and self.in_traceback:
            return None  # source lines of a frame
        rule = _rule_for(bare, is_exception)
        found = None
        if rule is not None or is_exception:
            several, aside = is_several or self.in_child, self.is_aside or self.in_logging_error
            found = Statement(bare.strip(), place, rule, is_exception, self.is_chained, several, aside)
        if ends:
            self.before = (self.is_aside, self.in_child)
            self.in_traceback = self.is_chained = self.is_aside = self.in_child = False
        if self.in_logging_error and bare.startswith("Arguments:"):
            self.in_logging_error = False
        return found

    def _moves_on(self, bare: str) -> bool:
        """Whether the line only says what comes next."""
        if _HEADER.search(bare) or _FRAME.match(bare):
            self.in_traceback = True
        elif bare.startswith(_CHAIN):
            self.is_chained = True
            self.is_aside, self.in_child = self.before
        elif bare.startswith(("Exception in thread ", "Exception ignored in")):
            self.is_aside = True
        elif bare.startswith("--- Logging error ---"):
            self.in_logging_error = True
        elif _CHILD.match(bare):
            self.in_child = True
        else:
            return False
        return True


def _rule_for(bare: str, is_exception: bool) -> Rule | None:
    fitting = (rule for rule in RULES if is_exception or not rule.of_exceptions)
    return next((rule for rule in fitting if rule.pattern.search(bare)), None)


def _bare(line: str) -> tuple[str, bool]:
    """A line without the mark of the process or the group that it belongs to, and whether it had one."""
    without_rank = _RANK.sub("", line)
    bare = _GROUP.sub("", without_rank)
    return bare, bare != line
