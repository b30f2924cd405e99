"""Reads a resolved configuration file and names every mistake in it. No torch here.

The file is YAML 1.2 (core schema): only true and false are booleans, so `off` and `no` are words, and 2e-3 is a number.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from trainer import rules
from trainer.config import TrainerConfig
from trainer.data.named_set import with_index
from trainer.errors import ConfigError, Issue

_EXPECTED = {
    "int_type": "an integer",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "model_type": "a mapping",
}
_BOUND = {"greater_than_equal": "at least {ge}", "greater_than": "above {gt}", "less_than_equal": "at most {le}"}
_BOUND |= {"less_than": "below {lt}", "too_short": "at least {min_length} entry"}


@dataclass(frozen=True, slots=True)
class Document:
    """A resolved configuration: the trainer block, the seed and the run's name in tables. Other keys are ignored."""

    config: TrainerConfig
    seed: int
    run: str


def load_document(path: Path, run: str | None = None) -> Document:
    """Read CONFIG. A run that has no name in the file is called `run`, or else like the folder of the file.

    Raises ConfigError when the file cannot be read or used.
    """
    try:
        content = read_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    if not isinstance(content, dict) or "trainer" not in content:
        raise ConfigError(f"{path} must be a mapping with the keys trainer and seed")
    seed = content.get("seed")
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise ConfigError([Issue("seed", f"{path} must name the seed of the run", "an integer")])
    name = content.get("run") or run or path.resolve().parent.name
    return Document(parse_config(content["trainer"]), seed, str(name))


def read_yaml(text: str) -> Any:
    """What a text of YAML 1.2 says. Raises yaml.YAMLError where it is none."""
    return yaml.load(text, _Yaml12Loader)


def parse_config(block: Any) -> TrainerConfig:
    """The trainer block as a configuration, with the index of a set that is elsewhere, if that can be asked.

    Raises ConfigError that lists every mistake.
    """
    try:
        config = TrainerConfig.model_validate(block)
    except ValidationError as error:
        raise ConfigError([_issue(dict(detail)) for detail in error.errors()]) from error
    found = rules.issues(config)
    if found:
        raise ConfigError(found)
    return with_index(config)


def _issue(detail: dict[str, Any]) -> Issue:
    """Our words for one complaint of the schema."""
    location, kind, given = detail["loc"], detail["type"], detail.get("input")
    path = ".".join(str(part) for part in location)
    if kind == "extra_forbidden":
        keys = _keys_beside(location)
        return Issue(path, f"there is no key {location[-1]!r}", keys, _nearest(location[-1], keys))
    if kind == "missing":
        return Issue(path, "this key is required")
    if kind == "literal_error":
        return _wrong_word(path, given, location)
    context = detail.get("ctx", {})
    allowed = _EXPECTED.get(kind) or _BOUND.get(kind, "").format(**context)
    return Issue(path, f"{given!r} does not fit here", allowed or detail["msg"])


def _wrong_word(path: str, given: Any, location: tuple[Any, ...]) -> Issue:
    words = _words(location)
    return Issue(path, f"{given!r} does not fit here", words, _nearest(given, words))


def _keys_beside(location: tuple[Any, ...]) -> tuple[str, ...]:
    return tuple(_block(location[:-1]).model_fields)


def _words(location: tuple[Any, ...]) -> tuple[str, ...]:
    annotation = _block(location[:-1]).model_fields[location[-1]].annotation
    return tuple(str(word) for word in getattr(annotation, "__args__", ()))


def _block(location: tuple[Any, ...]) -> type[BaseModel]:
    """The model class of the block at a dotted place."""
    block: type[BaseModel] = TrainerConfig
    for key in location:
        if isinstance(key, int):
            continue  # the place of a block in a list of them
        annotation = block.model_fields[key].annotation
        options = (annotation, *getattr(annotation, "__args__", ()))
        block = next(option for option in options if isinstance(option, type) and issubclass(option, BaseModel))
    return block


def _nearest(given: Any, words: tuple[str, ...]) -> str | None:
    return next(iter(get_close_matches(str(given), words, n=1)), None)


class _Yaml12Loader(yaml.SafeLoader):
    """A safe loader with the implicit types of YAML 1.2 instead of 1.1; a key that stands twice is an error."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - shape set by PyYAML

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a mapping, refusing duplicate keys."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key, (key_node, _) in zip(keys, node.value, strict=True):
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} stands twice", key_node.start_mark)
        return super().construct_mapping(node, deep)


def _core_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node)
    return int(text, 0) if text[:2] in ("0o", "0x") else int(text)


_NUMBER_START = list("-+0123456789")
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", _NUMBER_START),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", [*_NUMBER_START, "."]),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", ["-", "+", "."]),
):
    _Yaml12Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})$"), _first)
_Yaml12Loader.add_constructor("tag:yaml.org,2002:int", _core_int)
