"""The argv of a command arm: which placeholders it may hold, and the argv of one attempt. Pure.

A literal brace is doubled: `{{"lr": 1}}` stands for `{"lr": 1}`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from string import Formatter

PLACEHOLDERS = ("seed", "steps", "run_dir", "arm_dir", "gpus")
PYTHON_NAMES = ("python", "python3")


class BadPlaceholder(ValueError):
    """An argument holds braces that mean nothing; the message says which."""


def check_argument(argument: str) -> None:
    """Raises BadPlaceholder unless every brace in the argument is a placeholder or doubled."""
    _filled(argument, dict.fromkeys(PLACEHOLDERS, ""))


def takes_steps(command: Sequence[str]) -> bool:
    """Whether the command is told the budget of its run: one of its arguments holds `{steps}`."""
    return any(name == "steps" for argument in command for _, name, _, _ in Formatter().parse(argument))


def expand(
    command: Sequence[str],
    *,
    seed: int,
    run_dir: str,
    arm_dir: str,
    gpus: Sequence[str] | str = "",
    python: str,
    steps: int | None = None,
) -> list[str]:
    """The argv of one attempt. `gpus` is what CUDA_VISIBLE_DEVICES will hold, `steps` the present budget of the run; a
    bare `python` or `python3` in front becomes `python`.

    Raises BadPlaceholder when the command takes `{steps}` and none are given.
    """
    shown = gpus if isinstance(gpus, str) else ",".join(gpus)
    values = {"seed": str(seed), "run_dir": run_dir, "arm_dir": arm_dir, "gpus": shown}
    if steps is not None:
        values["steps"] = str(steps)
    argv = [_filled(argument, values) for argument in command]
    return [python, *argv[1:]] if argv[0] in PYTHON_NAMES else argv


def script_of(command: Sequence[str]) -> str | None:
    """Path of the program or Python script inside the arm's folder that the command starts, if it names one there."""
    first = command[1] if command[0] in PYTHON_NAMES and len(command) > 1 else command[0]
    prefix = "{arm_dir}/"
    return _filled(first[len(prefix) :], {}) if first.startswith(prefix) and "{" not in first[1:] else None


def _filled(argument: str, values: Mapping[str, str]) -> str:
    text = ""
    try:
        for literal, name, form, conversion in Formatter().parse(argument):
            text += literal
            if name is None:
                continue
            if name not in values or form or conversion:
                raise BadPlaceholder(f"{{{name}}} in {argument!r}")
            text += values[name]
    except ValueError as error:
        if isinstance(error, BadPlaceholder):
            raise
        raise BadPlaceholder(f"a single brace in {argument!r}") from None
    return text
