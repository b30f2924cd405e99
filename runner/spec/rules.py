"""What one key of an arm demands of another, and which values are for a later version. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from runner.spec.command import PLACEHOLDERS, BadPlaceholder, check_argument
from runner.spec.models import DETECTOR_NAMES
from runner.spec.notices import address_problem, holds_secret
from runner.spec.rescue import BadChange, check_change, origin_of, rescued_name
from runner.spec.schema import ArmBlock, Mistake, nearest
from runner.spec.yaml12 import Path
from runner.staging import data
from runner.staging.secrets import likely_secrets

SEVERITIES = ("shadow", "warn", "abort")
MAX_NAME = 64
MOST_SETUP = 8_000
TRAINER_METRIC_PREFIXES = ("val/", "val_raw/", "val_native/", "val_raw_native/")
# These would put a study's folder on top of a file of the home.
RESERVED_STUDY_PREFIXES = ("runner.db", "controller.lock", "controller.log")
# The runner sets these for every process itself.
RESERVED_VARIABLES = ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER")

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SECRET_VALUE = re.compile(
    r"hf_[A-Za-z0-9]{16,}|gh[opsu]_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,}|AKIA[A-Z0-9]{12,}|-----BEGIN "
)
_SECRET_NAME = re.compile(r"(.*_)?(TOKEN|SECRET|PASSWORD|PASSWD|API_KEY|ACCESS_KEY|SECRET_KEY|PRIVATE_KEY)")


def check_rules(block: ArmBlock) -> None:
    """Raises Mistake for the first thing in a valid block that makes no sense."""
    if block.study.lower().startswith(RESERVED_STUDY_PREFIXES):
        raise Mistake(("study",), f"{block.study!r} is a file of the home", allowed="any other name")
    _check_seeds(block)
    _check_kind(block)
    _check_command(block)
    _check_metrics(block)
    _check_primary(block)
    _check_detectors(block)
    _check_rescue(block)
    _check_env(block.env)
    _check_code(block)
    _check_notify(block)
    _check_environment(block)
    _check_data(block)


def _check_seeds(block: ArmBlock) -> None:
    for index, seed in enumerate(block.seeds):
        if seed in block.seeds[:index]:
            raise Mistake(("seeds", index), f"seed {seed} is there twice", allowed="each seed once")


def _check_kind(block: ArmBlock) -> None:
    if block.trainer is None and block.command is None:
        raise Mistake((), "has neither trainer nor command", allowed="exactly one of trainer, command")
    if block.trainer is not None and block.command is not None:
        raise Mistake(("command",), "stands beside trainer", allowed="exactly one of trainer, command")
    if block.trainer is not None:
        for key in ("metrics", "steps"):
            if getattr(block, key) is not None:
                close = "trainer.steps" if key == "steps" else None
                raise Mistake((key,), "belongs to command arms", allowed="trainer.…", nearest=close)
        if block.resources.gpus == 0 and block.trainer.get("device") == "cuda":
            raise Mistake(("trainer", "device"), "is cuda on a CPU slot (resources.gpus: 0)", allowed=("auto", "cpu"))


def _check_command(block: ArmBlock) -> None:
    if block.command is None:
        return
    if not block.command[0]:
        raise Mistake(("command", 0), "is empty", allowed="a program")
    for index, argument in enumerate(block.command):
        if "\0" in argument:
            raise Mistake(("command", index), "holds a NUL character", allowed="text")
        if _SECRET_VALUE.search(argument):
            raise Mistake(("command", index), "looks like a secret", allowed="env: {NAME: {from: NAME}}")
        try:
            check_argument(_without_data(argument, block))
        except BadPlaceholder as error:
            allowed = [*(f"{{{name}}}" for name in PLACEHOLDERS), "{data:NAME} of data", "{{ and }} for braces"]
            raise Mistake(("command", index), f"has {error}", allowed=allowed) from None
    if block.steps is None:
        raise Mistake(("steps",), "is missing", allowed="the step budget of one run, for example steps: 200")
    if block.metrics is None:
        raise Mistake(("metrics",), "is missing", allowed="for example metrics: {source: jsonl, path: metrics.jsonl}")


def _check_metrics(block: ArmBlock) -> None:
    metrics = block.metrics
    if metrics is None:
        return
    given, needed = ("path", "pattern") if metrics.source == "regex" else ("pattern", "path")
    if getattr(metrics, given) is not None:
        raise Mistake(("metrics", given), f"is not used by source {metrics.source}", allowed=needed)
    if getattr(metrics, needed) is None:
        raise Mistake(("metrics", needed), f"is missing; source {metrics.source} needs it", allowed=f"{needed}: …")
    if metrics.pattern is not None:
        _check_pattern(metrics.pattern)
    if metrics.path is not None and ".." in metrics.path.split("/"):
        raise Mistake(("metrics", "path"), f"{metrics.path!r} leaves the run's folder", allowed="a path without ..")


def _check_pattern(pattern: str) -> None:
    path: Path = ("metrics", "pattern")
    try:
        groups = re.compile(pattern).groupindex
    except re.error as error:
        raise Mistake(path, f"is no regular expression: {error}", allowed="Python's re syntax") from None
    example = r"step (?P<step>\d+) loss=(?P<loss>\S+)"
    if "step" not in groups:
        raise Mistake(path, "has no group named step", allowed=example)
    if len(groups) < 2:
        raise Mistake(path, "has no group beside step, so no metric", allowed=example)


def _check_primary(block: ArmBlock) -> None:
    if block.primary is None:
        return
    metric = block.primary.metric
    path: Path = ("primary", "metric")
    if metric.startswith("val_probe/"):
        raise Mistake(path, f"{metric} is a probe, which never ranks", allowed=TRAINER_METRIC_PREFIXES)
    if block.trainer is not None and not metric.startswith(TRAINER_METRIC_PREFIXES):
        close = nearest(metric, ("val/recon_lpips", "val/recon_rmse", "val/text_lpips", "val/loss"))
        raise Mistake(
            path,
            f"{metric!r:.80} is no validation metric of the trainer",
            allowed=TRAINER_METRIC_PREFIXES,
            nearest=close,
        )


def _check_detectors(block: ArmBlock) -> None:
    for name, severity in block.policy.detectors.items():
        path: Path = ("policy", "detectors", name)
        if name not in DETECTOR_NAMES:
            raise Mistake(path, "no such detector", allowed=DETECTOR_NAMES, nearest=nearest(name, DETECTOR_NAMES))
        if severity == "rescue" and block.trainer is None:
            problem = "rescue needs checkpoints that can be read, and only our trainer writes such"
            raise Mistake(path, problem, allowed=SEVERITIES)


def _check_rescue(block: ArmBlock) -> None:
    for key, value in block.policy.rescue.changes.items():
        try:
            check_change(key, value)
        except BadChange as error:
            path: Path = ("policy", "rescue", "changes", key)
            candidates = (
                () if key.split(".")[0] == "trainer" else (f"trainer.{key}", f"trainer.{key.partition('.')[2]}")
            )
            close = nearest(key, candidates)
            raise Mistake(path, error.problem, allowed=error.allowed, nearest=close) from None
    if origin_of(block.arm)[1]:
        raise Mistake(("arm",), f"{block.arm!r} is how a rescued run is called", allowed="any other name")
    longest = rescued_name(block.arm, block.policy.rescue.max)
    if "rescue" in block.policy.detectors.values() and len(longest) > MAX_NAME:
        problem = f"its rescued run would be called {longest}, of {len(longest)} characters"
        raise Mistake(("arm",), problem, allowed=f"a name with which that has at most {MAX_NAME}")


def _check_env(env: Mapping[str, Any]) -> None:
    for name, value in env.items():
        path: Path = ("env", name)
        if not _VARIABLE.fullmatch(name):
            raise Mistake(path, "is no name of a variable", allowed="letters, digits and _, no digit in front")
        if name in RESERVED_VARIABLES or name.startswith("RUNNER_"):
            raise Mistake(path, "is set by the runner itself", allowed="any other name")
        if isinstance(value, str):
            _check_literal(path, name, value)
        elif not _is_reference(value):
            raise Mistake(path, f"{value!r:.60} is not allowed", allowed="text in quotes, or {from: NAME}")


def _is_reference(value: object) -> bool:
    """Whether a value is {from: NAME}."""
    if not isinstance(value, Mapping) or list(value) != ["from"]:
        return False
    return isinstance(value["from"], str) and _VARIABLE.fullmatch(value["from"]) is not None


def _check_literal(path: Path, name: str, value: str) -> None:
    if "\0" in value:
        raise Mistake(path, "holds a NUL character", allowed="text")
    if value and (_SECRET_NAME.fullmatch(name.upper()) or _SECRET_VALUE.search(value)):
        raise Mistake(path, "looks like a secret, and literal values are stored", allowed=f"{{from: {name}}}")


def _check_code(block: ArmBlock) -> None:
    if block.trainer is not None:
        for key in ("root", "include"):
            if getattr(block.code, key):
                raise Mistake(
                    ("code", key), "belongs to command arms", allowed="nothing; a trainer arm runs the trainer"
                )


def _check_notify(block: ArmBlock) -> None:
    notify = block.notify
    if notify is None:
        return
    if notify.command is None and notify.webhook is None:
        raise Mistake(("notify",), "tells nobody", allowed="command, webhook, or both")
    for index, argument in enumerate(notify.command or ()):
        path: Path = ("notify", "command", index)
        if "\0" in argument or (index == 0 and not argument):
            raise Mistake(path, f"{argument!r:.60} is not allowed", allowed="text; first a program")
        if _SECRET_VALUE.search(argument):
            raise Mistake(path, "looks like a secret, and commands are stored", allowed="a variable that it reads")
    path = ("notify", "webhook")
    if isinstance(notify.webhook, str):
        if wrong := address_problem(notify.webhook):
            raise Mistake(path, wrong, allowed="https://…, or http:// to this machine")
        if holds_secret(notify.webhook) or _SECRET_VALUE.search(notify.webhook):
            raise Mistake(path, "looks like it holds a secret, and addresses are stored", allowed="{from: NAME}")
    elif notify.webhook is not None and not _is_reference(notify.webhook):
        raise Mistake(path, f"{notify.webhook!r:.60} is not allowed", allowed="an address, or {from: NAME}")


def _check_environment(block: ArmBlock) -> None:
    setup, python = block.environment.setup, block.environment.python or ""
    path: Path = ("environment", "setup")
    if setup is not None and (not setup.strip() or "\0" in setup or len(setup) > MOST_SETUP):
        raise Mistake(path, "is no command", allowed=f"1 to {MOST_SETUP} characters of shell")
    if setup is not None and (_SECRET_VALUE.search(setup) or likely_secrets({"": setup.encode()})):
        raise Mistake(path, "looks like it holds a secret, and commands are stored", allowed="a variable from env")
    for name in re.findall(r"\{([^{}]*)\}", python):
        if name != "environment":
            raise Mistake(("environment", "python"), f"has {{{name}}}", allowed="{environment}")
        if setup is None:
            problem = "names {environment}, and no environment.setup makes one"
            raise Mistake(("environment", "python"), problem, allowed="an interpreter, or null")


def _check_data(block: ArmBlock) -> None:
    for index, (name, text) in enumerate(block.data.items()):
        if problem := data.name_problem(name, list(block.data)[:index]):
            raise Mistake(("data", name), problem, allowed=f"{data.NAME_IN_WORDS}; unique as a variable")
        try:
            data.parse(text)
        except data.BadReference as error:
            raise Mistake(("data", name), str(error), allowed=data.ALLOWED) from None
        if _SECRET_VALUE.search(text) or likely_secrets({"": text.encode()}):
            raise Mistake(("data", name), "looks like it holds a secret, and references are stored", allowed="env")
    if block.trainer is None:
        return
    if key := data.misplaced(block.trainer):
        at: Path = ("trainer", *key.split("."))
        raise Mistake(at, "holds {data:", allowed="{data:NAME} in front of trainer.data.path, or in a command")
    source = block.trainer.get("data")
    path = source.get("path") if isinstance(source, Mapping) else None
    for name in data.names_in(path) if isinstance(path, str) else ():
        _require_data(("trainer", "data", "path"), name, block)


def _without_data(argument: str, block: ArmBlock) -> str:
    """The argument as if its data were there. Raises Mistake for a name that `data` lacks, and BadPlaceholder."""
    try:
        for name in data.names_in_argument(argument):
            _require_data(("command", (block.command or []).index(argument)), name, block)
        return data.with_places([argument], dict.fromkeys(block.data, ""))[0]
    except ValueError:
        raise BadPlaceholder(f"a single brace in {argument!r}") from None


def _require_data(path: Path, name: str, block: ArmBlock) -> None:
    if name not in block.data:
        named = [f"{{data:{each}}}" for each in block.data]
        raise Mistake(
            path, f"names {{data:{name}}}, which data lacks", allowed=named, nearest=nearest(name, block.data)
        )
