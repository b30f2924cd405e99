"""The switch on a rented machine that destroys it when nobody else does, as the text that the service runs there.

The program is dead_man.py, without what only a reader needs, packed into one argument: nothing is fetched, no file is
needed, and a full disk does not keep it from starting.
"""

from __future__ import annotations

import ast
import base64
import math
import zlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeVar

from provisioning.vast.asking import MOST_ONSTART

Node = TypeVar("Node", ast.Module, ast.ClassDef, ast.FunctionDef)


@dataclass(frozen=True, slots=True)
class SwitchTimes:
    """When the switch destroys its machine, besides at the end of its life; seconds, all above 0.

    `contact_s`: neither an attempt alive nor a word from us for so long. `staged_s`: nothing staged so long after the
    start. `poll_s` is the time between two looks, `again_s` the first pause after a destroy that was not answered with
    a yes; each following pause is twice as long, up to a minute.
    """

    contact_s: float = 2 * 3600.0
    staged_s: float = 45 * 60.0
    poll_s: float = 10.0
    again_s: float = 4.0

    def __post_init__(self) -> None:
        for name in ("contact_s", "staged_s", "poll_s", "again_s"):
            _check(name, getattr(self, name))


def onstart(ttl_s: float, times: SwitchTimes) -> str:
    """What runs at every start of the container: it arms the switch, and prints the keys of the sshd there to the log.

    `ttl_s` is the life of the machine from its birth, in seconds; a start after the first does not begin it anew.
    Holds no secret: the switch finds its own key in the container's environment. Raises ValueError for a duration that
    is no positive number.
    """
    _check("ttl_s", ttl_s)
    durations = (ttl_s, times.contact_s, times.staged_s, times.poll_s, times.again_s)
    program = f'import base64,zlib;exec(zlib.decompress(base64.b85decode("{_packed()}")))'
    # The first keeps the service from putting our commands into a terminal of its own. The letters of base 85 hold no
    # quote and no backslash.
    script = f"touch ~/.no_auto_tmux\npython3 -I -S -c '{program}' {' '.join(f'{one:.3f}' for one in durations)}\n"
    assert len(script) <= MOST_ONSTART, f"the switch takes {len(script)} characters"
    return script


@cache
def _packed() -> str:
    source = Path(__file__).with_name("dead_man.py").read_text(encoding="utf-8")
    program = ast.unparse(_Bare().visit(ast.parse(source)))
    return base64.b85encode(zlib.compress(program.encode(), 9)).decode()


class _Bare(ast.NodeTransformer):
    """Takes docstrings and annotations of functions away."""

    def visit_Module(self, node: ast.Module) -> ast.Module:
        return self._without_docstring(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        return self._without_docstring(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        node.returns = None
        for argument in node.args.args:
            argument.annotation = None
        return self._without_docstring(node)

    def _without_docstring(self, node: Node) -> Node:
        self.generic_visit(node)
        if ast.get_docstring(node) is not None:
            node.body = node.body[1:]
        return node


def _check(name: str, seconds: float) -> None:
    if not (math.isfinite(seconds) and seconds > 0.0):
        raise ValueError(f"{name} {seconds}: allowed: a finite number of seconds above 0")
