"""The arm format as it is written in a file: which keys exist, and what may stand behind them.

The `trainer` block is opaque here; its schema belongs to the trainer, which is asked about it (trainer_check.py).
"""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from runner.spec.notices import DEFAULT_NOTICE_S, DEFAULT_NOTICES, MAX_NOTICE_S, Notice
from runner.spec.seeds import MAX_SEED
from runner.spec.yaml12 import Path

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\z"
NAME_IN_WORDS = "1 to 64 letters, digits, '.', '_' and '-', first a letter or digit"

Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
ShareBelowOne = Annotated[float, Field(ge=0.0, lt=1.0, allow_inf_nan=False)]
Text = Annotated[str, Field(min_length=1)]


class Block(BaseModel):
    """Base of every block: unknown keys and silent type conversion are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


AnyBlock = TypeVar("AnyBlock", bound=Block)


class PrimaryBlock(Block):
    """The metric that ranks the arms."""

    metric: Text
    direction: Literal["min", "max"] = "min"
    select: Literal["last", "best"] = "last"


class ResourcesBlock(Block):
    """What one run needs: GPUs, cores, GiB of GPU memory."""

    gpus: Annotated[int, Field(ge=0)] = 1
    min_vram_gib: NotNegative = 0.0
    cpus: Annotated[int, Field(ge=1)] = 1
    colocate: Literal["prefer", "require", "off"] = "prefer"
    gpu_ids: Literal["index", "uuid"] = "index"


class LimitBlock(Block):
    """Hours and US dollars, each without a limit by default."""

    max_hours: Positive | None = None
    max_usd: Positive | None = None


class BudgetBlock(Block):
    """Limits of a run and of the study, and the share kept back for the end."""

    run: LimitBlock = LimitBlock()
    study: LimitBlock = LimitBlock()
    reserve: ShareBelowOne = 0.05


class NotifyBlock(Block):
    """Who is told of what: a command (argv), a webhook (an address or {from: NAME}), or both."""

    command: Annotated[list[str], Field(min_length=1)] | None = None
    webhook: Any = None
    on: Annotated[list[Notice], Field(min_length=1)] = list(DEFAULT_NOTICES)
    timeout_s: Annotated[float, Field(gt=0.0, le=MAX_NOTICE_S)] = DEFAULT_NOTICE_S


class RescueBlock(Block):
    """How a run that was stopped is started again: from which checkpoint, with which dotted keys, how often."""

    source: Annotated[Literal["best", "last"], Field(alias="from")] = "best"
    changes: dict[str, Any] = {}
    max: Annotated[int, Field(ge=0)] = 1


class PolicyBlock(Block):
    """What each detector may do."""

    detectors: dict[str, Literal["shadow", "warn", "abort", "rescue"]] = {}
    rescue: RescueBlock = RescueBlock()
    tail: ShareBelowOne = 0.04
    autopsy_s: NotNegative = 900.0


class EnvironmentBlock(Block):
    """The interpreter, and how an environment is made."""

    python: Text | None = None
    setup: Text | None = None


class CodeBlock(Block):
    """Which files a command arm's runs can import."""

    root: Text | None = None
    include: list[Text] = []


class MetricsBlock(Block):
    """Where a command arm's metrics are read from."""

    source: Literal["regex", "jsonl", "csv", "tensorboard"]
    pattern: Text | None = None
    path: Text | None = None
    loss: Text | None = None


class ArmBlock(Block):
    """A resolved arm document; `extends` and `changes` are used up before it comes here."""

    study: Name
    arm: Name
    title: str = ""
    hypothesis: str = ""
    baseline: Name | None = None
    seeds: Annotated[list[Seed], Field(min_length=1)]
    trainer: dict[str, Any] | None = None
    command: Annotated[list[str], Field(min_length=1)] | None = None
    metrics: MetricsBlock | None = None
    steps: Annotated[int, Field(ge=1)] | None = None
    primary: PrimaryBlock | None = None
    resources: ResourcesBlock = ResourcesBlock()
    budget: BudgetBlock = BudgetBlock()
    policy: PolicyBlock = PolicyBlock()
    environment: EnvironmentBlock = EnvironmentBlock()
    env: dict[str, Any] = {}
    data: dict[str, Text] = {}
    code: CodeBlock = CodeBlock()
    retries: Annotated[int, Field(ge=0)] = 2
    notify: NotifyBlock | None = None


TOP_LEVEL_KEYS = (*ArmBlock.model_fields, "extends", "changes")


class Mistake(Exception):
    """What is wrong at one path of a document, before file and line are known."""

    def __init__(
        self, path: Path, problem: str, *, allowed: Iterable[str] | str = (), nearest: str | None = None
    ) -> None:
        self.path = path
        self.problem = problem
        self.allowed = allowed if isinstance(allowed, str) else tuple(allowed)
        self.nearest = nearest
        super().__init__(problem)


def validate(values: Mapping[str, Any], block: type[AnyBlock]) -> AnyBlock:
    """The document as a typed block. Raises Mistake for the worst thing in it: unknown keys go first."""
    try:
        return block.model_validate(values)
    except ValidationError as error:
        found = error.errors(include_url=False)
        unknown = [each for each in found if each["type"] == "extra_forbidden"]
        raise _mistake((unknown or found)[0], block) from None


def nearest(word: str, allowed: Iterable[str]) -> str | None:
    """The allowed word that resembles the given one most, if any does."""
    by_lower = {each.lower(): each for each in allowed}
    close = difflib.get_close_matches(word.lower(), list(by_lower), n=1, cutoff=0.6)
    return by_lower[close[0]] if close else None


def allowed_keys(path: Path, root: type[BaseModel]) -> tuple[str, ...]:
    """The keys that the block at `path` of a document may hold; () for an open map or a value."""
    found: Any = root
    for part in path:
        found = _behind(found, str(part))
    if found is ArmBlock:
        return TOP_LEVEL_KEYS
    return tuple(field.alias or name for name, field in found.model_fields.items()) if _is_block(found) else ()


def _behind(kind: Any, key: str) -> Any:
    """What stands behind a key: a block, a map with free keys, or None for what holds no keys."""
    if get_origin(kind) is dict:
        return _holder(get_args(kind)[1])
    if not _is_block(kind):
        return None
    fields = [field.annotation for name, field in kind.model_fields.items() if key in (name, field.alias)]
    return _holder(fields[0]) if fields else None


def _holder(annotation: Any) -> Any:
    """The block or the map among the kinds of value that an annotation allows."""
    options = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    return next((each for each in options if _is_block(each) or get_origin(each) is dict), None)


def _is_block(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


_IN_WORDS = {
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text (in quotes if it looks like a number)",
    "list_type": "a list",
    "dict_type": "a block of keys",
    "model_type": "a block of keys",
    "string_pattern_mismatch": NAME_IN_WORDS,
    "string_too_short": "text that is not empty",
    "too_short": "at least one entry",
}


def _mistake(error: ErrorDetails, root: type[BaseModel]) -> Mistake:
    path: Path = tuple(error["loc"])
    kind, context = error["type"], error.get("ctx", {})
    if kind == "extra_forbidden":
        keys = allowed_keys(path[:-1], root)
        return Mistake(path, "no such key", allowed=keys, nearest=nearest(str(path[-1]), keys))
    if kind == "missing":
        return Mistake(path, "is missing", allowed=_ALLOWED_WHEN_MISSING.get(str(path[-1]), ""))
    shown = f"{error['input']!r:.60} is not allowed"
    if kind == "literal_error":
        words = tuple(word.strip("'") for word in str(context["expected"]).replace(" or ", ", ").split(", "))
        return Mistake(path, shown, allowed=words, nearest=nearest(str(error["input"]), words))
    if kind in _LIMITS:
        return Mistake(path, shown, allowed=f"a number {_LIMITS[kind]} {next(iter(context.values()))}")
    return Mistake(path, shown, allowed=_IN_WORDS.get(kind, str(error["msg"])))


_LIMITS = {"greater_than": "above", "greater_than_equal": "from", "less_than": "below", "less_than_equal": "up to"}
_ALLOWED_WHEN_MISSING = {
    "study": f"study: {NAME_IN_WORDS}",
    "arm": f"arm: {NAME_IN_WORDS}",
    "seeds": "a list of seeds, for example seeds: [0]",
    "metric": "a full metric name such as val/recon_rmse",
    "source": "regex, jsonl, csv, tensorboard",
    "hosts": "a block with one block for each host",
    "address": "the name or number that ssh connects to",
}
