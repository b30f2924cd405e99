"""YAML as arm files use it: the YAML 1.2 core schema, strict, with the line of every key.

PyYAML scans and composes; what a plain scalar means is decided here, because PyYAML itself follows YAML 1.1, where
`2e-3` is text, `off` is false and `1:30` is ninety. Refused with file and line: duplicate keys, keys that are not text,
tags, merge keys, aliases that explode or contain themselves, more than one document, bytes that are not UTF-8 text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml
from yaml.composer import Composer
from yaml.events import CollectionStartEvent, ScalarEvent
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from yaml.parser import Parser
from yaml.reader import Reader, ReaderError
from yaml.resolver import BaseResolver
from yaml.scanner import Scanner

try:  # the C library writes the same text several times as fast; not every installation of PyYAML has it
    from yaml import CSafeDumper as SafeDumper
except ImportError:
    from yaml import SafeDumper  # type: ignore[assignment]

from runner.errors import SpecError, Where

MAX_BYTES = 256 * 1024
MAX_DEPTH = 40
MAX_NODES = 10_000  # after aliases are expanded: a few lines of nested aliases can stand for billions of values
MAX_INTEGER = 2**63 - 1

Path = tuple[str | int, ...]

_NULL = re.compile(r"null|Null|NULL|~|")
_TRUE = re.compile(r"true|True|TRUE")
_FALSE = re.compile(r"false|False|FALSE")
_DECIMAL = re.compile(r"[-+]?[0-9]+")
_OCTAL = re.compile(r"0o[0-7]+")
_HEXADECIMAL = re.compile(r"0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_INFINITY = re.compile(r"([-+]?)(\.inf|\.Inf|\.INF)")
_NAN = re.compile(r"\.nan|\.NaN|\.NAN")


@dataclass(frozen=True, slots=True)
class Document:
    """One parsed file: its plain values, and the line (from 1) of every key and list item by its path."""

    file: str
    values: Mapping[str, Any]
    lines: Mapping[Path, int]


def parse(data: bytes, file: str) -> Document:
    """The mapping in a YAML file. Raises SpecError with file and line for everything that is not strict YAML."""
    node = _compose(_text(data, file), file)
    if node is None:
        raise SpecError(Where(file), "is empty", allowed="a block of keys such as study, arm, extends")
    if not isinstance(node, MappingNode):
        raise SpecError(Where(file, _line(node)), "is not a block of keys", allowed="key: value lines")
    reader = _Values(file)
    values = reader.value(node, (), 0)
    return Document(file, values, reader.lines)


def parse_value(text: str, file: str) -> Any:
    """One value as it would stand behind a key; an empty text is null. Raises SpecError."""
    node = _compose(_text(text.encode(), file), file)
    return None if node is None else _Values(file).value(node, (), 0)


def plain_scalar(text: str) -> Any:
    """What an unquoted scalar means in the YAML 1.2 core schema. Raises ValueError for a number beyond 64 bits."""
    if _NULL.fullmatch(text):
        return None
    if _TRUE.fullmatch(text):
        return True
    if _FALSE.fullmatch(text):
        return False
    for pattern, base in ((_DECIMAL, 10), (_OCTAL, 8), (_HEXADECIMAL, 16)):
        if pattern.fullmatch(text):
            return _integer(text, base)
    if _FLOAT.fullmatch(text):
        return float(text)
    if found := _INFINITY.fullmatch(text):
        return float(f"{found[1]}inf")
    return float("nan") if _NAN.fullmatch(text) else text


def dump(values: Mapping[str, Any]) -> str:
    """YAML text that YAML 1.1 and 1.2 readers understand alike, keys in the given order."""
    return yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def _integer(text: str, base: int) -> int:
    if len(text) > 24:
        raise ValueError("a whole number of more than 64 bits")
    value = int(text, 10) if base == 10 else int(text[2:], base)
    if abs(value) > MAX_INTEGER:
        raise ValueError("a whole number of more than 64 bits")
    return value


def _text(data: bytes, file: str) -> str:
    if len(data) > MAX_BYTES:
        raise SpecError(Where(file), f"is {len(data) // 1024} KiB large", allowed=f"at most {MAX_BYTES // 1024} KiB")
    if b"\0" in data:
        raise SpecError(
            Where(file, data[: data.index(b"\0")].count(b"\n") + 1), "is a binary file", allowed="YAML text"
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise SpecError(Where(file, line), "is not UTF-8 text", allowed="YAML in UTF-8") from None


def _compose(text: str, file: str) -> Node | None:
    try:
        return _Composer(text, file).get_single_node()
    except ReaderError as error:
        line = text[: error.position].count("\n") + 1
        raise SpecError(Where(file, line), "holds a control character", allowed="YAML text") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        said = ", ".join(part for part in (error.context, error.problem) if part)
        where = Where(file, None if mark is None else mark.line + 1)
        raise SpecError(where, f"is not YAML: {said}", allowed="YAML 1.2, one document") from None


def _line(node: Node) -> int:
    return int(node.start_mark.line) + 1


class _Composer(Reader, Scanner, Parser, Composer, BaseResolver):
    """PyYAML's own parts up to the node tree, without any meaning of scalars."""

    def __init__(self, text: str, file: str) -> None:
        Reader.__init__(self, text)
        Scanner.__init__(self)
        Parser.__init__(self)
        Composer.__init__(self)
        BaseResolver.__init__(self)
        self._file = file
        self._depth = 0

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        line = event.start_mark.line + 1
        if isinstance(event, ScalarEvent | CollectionStartEvent) and event.tag is not None:
            raise SpecError(
                Where(self._file, line), f"tag {event.tag!r} is refused", allowed="plain values without tags"
            )
        if self._depth >= MAX_DEPTH:
            raise SpecError(Where(self._file, line), "is nested too deeply", allowed=f"at most {MAX_DEPTH} levels")
        self._depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1


class _Values:
    """Plain values from a node tree, and the lines of their paths."""

    def __init__(self, file: str) -> None:
        self.lines: dict[Path, int] = {}
        self._file = file
        self._count = 0

    def value(self, node: Node, path: Path, depth: int) -> Any:
        self._count += 1
        if self._count > MAX_NODES or depth > MAX_DEPTH:
            allowed = f"at most {MAX_NODES} values and {MAX_DEPTH} levels"
            raise self._refuse(node, path[:1], "is too large once its aliases are expanded", allowed)
        if isinstance(node, MappingNode):
            return self._mapping(node, path, depth)
        if isinstance(node, SequenceNode):
            return [self._item(item, (*path, index), depth) for index, item in enumerate(node.value)]
        assert isinstance(node, ScalarNode)
        if node.style is not None:
            return node.value
        try:
            return plain_scalar(node.value)
        except ValueError as error:
            raise self._refuse(node, path, f"is {error}", "64 bits") from None

    def _mapping(self, node: MappingNode, path: Path, depth: int) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = self._key(key_node, path)
            if key in values:
                first = self.lines[(*path, key)]
                raise self._refuse(key_node, (*path, key), f"is written twice, first in line {first}", "each key once")
            self.lines[(*path, key)] = _line(key_node)
            values[key] = self.value(value_node, (*path, key), depth + 1)
        return values

    def _item(self, node: Node, path: Path, depth: int) -> Any:
        self.lines[path] = _line(node)
        return self.value(node, path, depth + 1)

    def _key(self, node: Node, path: Path) -> str:
        if not isinstance(node, ScalarNode):
            raise self._refuse(node, path, "has a key that is a list or a block", "keys of plain text")
        if node.style is not None:
            return str(node.value)
        if node.value == "<<":
            raise self._refuse(node, path, "uses a merge key (<<)", "extends: FILE, or the keys written out")
        try:
            meaning = plain_scalar(node.value)
        except ValueError:
            meaning = None
        if not isinstance(meaning, str):
            raise self._refuse(
                node, path, f"has the key {node.value!r}, which is not text", f'"{node.value}" in quotes'
            )
        return meaning

    def _refuse(self, node: Node, path: Path, problem: str, allowed: str) -> SpecError:
        return SpecError(Where(self._file, _line(node), dotted(path)), problem, allowed=allowed)


def dotted(path: Path) -> str:
    """A path as a person writes it: `policy.detectors`, `command[3]`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else (f".{part}" if text else part)
    return text


class _Dumper(SafeDumper):
    """Quotes every text that one of the two YAML versions would read as something else, and writes no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: SafeDumper, text: str) -> ScalarNode:
    try:
        quote = not isinstance(plain_scalar(text), str)
    except ValueError:
        quote = True
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="'" if quote else None)


_Dumper.add_representer(str, _represent_text)
