"""Writes a choice into the text of a configuration, leaving every other byte as it is: comments, order, spelling.

Values that stand there are replaced where they stand, missing keys are put before the first key of the trainer block.
Where that is not possible (anchors that other keys share, for example), the file is written anew, without comments. No
torch here.
"""

from __future__ import annotations

import copy
from typing import Any

import yaml

from trainer.document import read_yaml
from trainer.errors import TrainerError
from trainer.tuning.candidate import Candidate

Change = tuple[tuple[str, ...], Any]
"""A place below `trainer`, and the value that belongs there."""


def changes(candidate: Candidate, own: Candidate) -> list[Change]:
    """What a candidate writes; the precision only if it is not the configuration's own."""
    found: list[Change] = [
        (("batch",), candidate.batch),
        (("accumulation",), candidate.accumulation),
        (("activation_checkpointing", "kind"), candidate.checkpointing),
        (("compile", "enabled"), candidate.compiled),
    ]
    return [*found, *([(("precision", "compute"), candidate.compute)] if candidate.compute != own.compute else [])]


def lines(found: list[Change]) -> str:
    """The changes as YAML to paste below `trainer:`."""
    return "".join(f"  {_entry(path, value)}\n" for path, value in found)


def rewritten(text: str, found: list[Change]) -> str:
    """The text with the changes in it; it reads as the same document but for them. Raises TrainerError if none does."""
    wanted = copy.deepcopy(read_yaml(text))
    for path, value in found:
        _put(wanted["trainer"], path, value)
    edited = text
    for path, value in reversed(found):  # each goes to the front of its block
        edited = _edited(edited, path, value)
    if _reads_as(edited, wanted):
        return edited
    anew = yaml.safe_dump(wanted, sort_keys=False, allow_unicode=True)
    if not _reads_as(anew, wanted):
        raise TrainerError("this file cannot be written anew without changing what it says: paste the lines by hand")
    return anew


def _reads_as(text: str, wanted: Any) -> bool:
    try:
        return bool(read_yaml(text) == wanted)
    except yaml.YAMLError:
        return False


def _put(block: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for key in path[:-1]:
        block = block.setdefault(key, {})
    block[path[-1]] = value


def _edited(text: str, path: tuple[str, ...], value: Any) -> str:
    """The text with one change in it."""
    try:
        root = yaml.compose(text, yaml.SafeLoader)
    except yaml.YAMLError:
        return text
    block = _child(root, "trainer")
    depth = 0
    while depth < len(path):
        found = _child(block, path[depth])
        if found is None:
            return _inserted(text, block, path[depth:], value)
        block, depth = found, depth + 1
    assert block is not None
    return text[: block.start_mark.index] + _scalar(value) + text[block.end_mark.index :]


def _child(node: yaml.Node | None, key: str) -> yaml.Node | None:
    if not isinstance(node, yaml.MappingNode):
        return None
    return next((value for name, value in node.value if name.value == key), None)


def _inserted(text: str, block: yaml.Node | None, path: tuple[str, ...], value: Any) -> str:
    """The text with a key that was missing at the start of a mapping."""
    if not isinstance(block, yaml.MappingNode):
        return text
    entry, newline = _entry(path, value), "\r\n" if "\r\n" in text else "\n"
    if not block.value:  # {}
        return text[: block.start_mark.index] + "{" + entry + "}" + text[block.end_mark.index :]
    first = block.value[0][0].start_mark
    between = ", " if block.flow_style else newline + " " * first.column
    return text[: first.index] + entry + between + text[first.index :]


def _entry(path: tuple[str, ...], value: Any) -> str:
    """`key: value`, or `key: {inner: value}`."""
    inner = _scalar(value) if len(path) == 1 else "{" + _entry(path[1:], value) + "}"
    return f"{path[0]}: {inner}"


def _scalar(value: Any) -> str:
    """A number, a truth value or a plain word as YAML."""
    return str(value).lower() if isinstance(value, bool) else str(value)
