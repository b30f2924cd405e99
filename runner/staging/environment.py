"""An environment made on a host by the arm's set-up command: where it stands, when it may be used again, its python.

The folder's name is a hash of all that made it: the command, the interpreter, and what the command reads of the frozen
code. So runs share it, and a changed requirements file makes another one. Pure but for `named_files` and `key_of`, that
read that code.
"""

from __future__ import annotations

import hashlib
import json
import os.path
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from runner.spec.models import ResolvedArm

PLACEHOLDER = "{environment}"
PYTHON_MADE = "{environment}/bin/python"
"""The interpreter of an arm with `environment.setup` and no `environment.python`."""

MOST_BYTES = 4 * 2**20
"""A larger file that a command names counts as the whole code: it is hardly a list of packages."""

# A dot in front of a command reads a script into the shell; elsewhere it is the folder that pip is to install.
_DOT_COMMAND = re.compile(r"(?m)(^|[;&|({])\s*\.(?=\s)")
_WORD = re.compile(r"""[^\s'"`;&|<>()=,\[\]]+""")
_LISTED = re.compile(rb"(?m)^\s*(?:-r|-c|--requirement|--constraint)[\s=]*([^\s#]+)")


@dataclass(frozen=True, slots=True)
class Named:
    """What a set-up command reads of the frozen code: contents of files by path below the code, and whether it names a
    whole folder, so that any of the code may matter."""

    files: Mapping[str, bytes]
    whole: bool = False


def key(arm: ResolvedArm, named: Named, code_hash: str) -> str:
    """SHA-256 (hex) over the command, the interpreter and what the command reads of the code."""
    parts = {
        "setup": arm.environment["setup"],
        "python": arm.environment["python"] or PYTHON_MADE,
        "files": {path: hashlib.sha256(content).hexdigest() for path, content in named.files.items()},
        "code": code_hash if named.whole else None,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def key_of(arm: ResolvedArm, root: Path, arm_dir: str, code_hash: str) -> str | None:
    """The key of an arm's environment, whose frozen code stands in `root` on this machine; None without a set-up
    command. `arm_dir` is the arm's folder in it."""
    setup = arm.environment["setup"]
    return None if setup is None else key(arm, named_files(setup, root, arm_dir), code_hash)


def folder_of(staging: str, key: str) -> str:
    """Where the environment with this key stands on a host with this staging folder (absolute)."""
    return f"{staging}/environments/{key[:32]}"


def python_of(arm: ResolvedArm, environment: str | None, default: str = sys.executable) -> str:
    """The interpreter of the arm's runs on a host: `environment` is the folder made by its set-up command, None without
    one; `default` is the host's interpreter for arms that name none."""
    given: str | None = arm.environment["python"]
    if arm.environment["setup"] is None:
        return given or default
    assert environment is not None
    return (given or PYTHON_MADE).replace(PLACEHOLDER, environment)


def words(setup: str) -> tuple[str, ...]:
    """The words of a shell command that may be paths, also what follows an option at once (-rFILE, --list=FILE)."""
    plain = _DOT_COMMAND.sub(r"\1", setup)
    found = (word.removeprefix("$PWD/") for word in _WORD.findall(plain))
    return tuple(dict.fromkeys(part for word in found for part in _readings(word)))


def named_files(setup: str, root: Path, arm_dir: str) -> Named:
    """What a set-up command names of the frozen code in `root`; it runs in the folder `arm_dir` of it.

    Files that a named list of packages includes with -r or -c count too. What lies outside of the code is the host's,
    and plays no part.
    """
    files: dict[str, bytes] = {}
    waiting, is_whole = [(arm_dir, word) for word in words(setup)], False
    while waiting:
        folder, word = waiting.pop()
        name = os.path.normpath(os.path.join(folder, word))
        path = root / name
        if os.path.isabs(word) or name.startswith("..") or name in files or not path.exists():
            continue
        if path.is_dir() or path.stat().st_size > MOST_BYTES:
            is_whole = True
            continue
        files[name] = path.read_bytes()
        if path.suffix in (".txt", ".in"):
            listed = (os.fsdecode(found) for found in _LISTED.findall(files[name]))
            waiting += [(os.path.dirname(name), each) for each in listed]
    return Named(files, is_whole)


def _readings(word: str) -> Iterator[str]:
    yield word
    if re.match(r"-[a-z]\S", word):
        yield word[2:]
