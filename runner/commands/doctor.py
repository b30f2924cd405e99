"""`runner doctor`: looks at the machine and the home, and says what is wrong and what to do."""

from __future__ import annotations

import json
import os
import textwrap
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from runner.doctor import OK, Check, examine, has_problem
from runner.doctor_facts import collect
from runner.errors import EXIT_INFRASTRUCTURE, EXIT_OK
from runner.home import find_home
from runner.screen import printable

WIDTH = 80
_INDENT = " " * 22


def doctor(home_path: Path | None, *, as_json: bool) -> int:
    """Print every check and return 3 when one found a problem. Changes nothing."""
    checks = examine(collect(find_home(home_path), os.environ))
    if as_json:
        print(json.dumps({"checks": [asdict(check) for check in checks]}))
    else:
        for line in page(checks):
            print(line)
    return EXIT_INFRASTRUCTURE if has_problem(checks) else EXIT_OK


def page(checks: tuple[Check, ...]) -> Iterator[str]:
    """The checks as lines of at most 80 letters; a word that is longer, such as a path, keeps its length."""
    for check in checks:
        yield from _wrapped(f"{check.name:<11}{check.level:<9}  ", check.says)
        if check.do:
            yield from _wrapped(f"{_INDENT}-> ", check.do, f"{_INDENT}   ")
    wrong = [check for check in checks if check.level != OK]
    if not wrong:
        yield "nothing is wrong"


def _wrapped(first: str, text: str, following: str = _INDENT) -> list[str]:
    return textwrap.wrap(
        printable(text),
        WIDTH,
        initial_indent=first,
        subsequent_indent=following,
        break_long_words=False,
        break_on_hyphens=False,
    )
