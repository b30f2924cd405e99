"""The questions that a rented machine must answer before anything is put on it. Pure: it yields questions.

See provisioning/questions.py.
"""

from __future__ import annotations

import base64
import json
import math
from dataclasses import dataclass
from typing import Any

from pydantic import Base64Bytes, TypeAdapter

from provisioning.agent import About, Survey
from provisioning.questions import Question, Steps

FOLDER = ".armature/switch"
"""Where the switch keeps its files, below the home folder of the user there."""

MOST_BYTES = 4096

_ABOUT = TypeAdapter(About)
_SURVEY = TypeAdapter(Survey)
_BYTES: TypeAdapter[bytes | None] = TypeAdapter(Base64Bytes | None)
_BOOL = TypeAdapter(bool)
_NOTHING = TypeAdapter(None)
_IDENTITY = ("boot_id", "init_start_ticks", "pid", "start_ticks")


@dataclass(frozen=True, slots=True)
class Checked:
    """Usable GPUs, cores, one sentence for each GPU that is left out, and what the switch lacks ('' = nothing)."""

    gpus: int
    cores: int
    notes: tuple[str, ...]
    switch: str


def checked() -> Steps[Checked]:
    """Survey the machine, and see that its switch is armed and lives."""
    survey: Survey = yield Question(_SURVEY, "survey", ())
    about: About = yield Question(_ABOUT, "about", ())
    armed: bytes | None = yield Question(_BYTES, "read", (f"{about.home}/{FOLDER}/armed", 0, MOST_BYTES))
    switch, identity = _read_armed(armed)
    if identity is not None:
        is_alive: bool = yield Question(_BOOL, "is_alive", (identity,))
        switch = switch if is_alive else "its switch has ended"
    return Checked(survey.gpus, survey.cores, survey.notes, switch)


def extended(ttl_s: float) -> Steps[float]:
    """Raise the life that the switch allows its machine; what it says then, in seconds. Never lowers it.

    Raises ValueError, at once, for a life that is no positive number.
    """
    if not (math.isfinite(ttl_s) and ttl_s > 0.0):
        raise ValueError(f"ttl_s {ttl_s}: allowed: a finite number above 0")
    return _extended(ttl_s)


def _extended(ttl_s: float) -> Steps[float]:
    about: About = yield Question(_ABOUT, "about", ())
    path = f"{about.home}/{FOLDER}/ttl_s"
    before: bytes | None = yield Question(_BYTES, "read", (path, 0, MOST_BYTES))
    if _seconds(before) >= ttl_s:
        return _seconds(before)
    data = base64.b64encode(f"{ttl_s:.3f}\n".encode()).decode()
    yield Question(_NOTHING, "write", (path, data, True))
    after: bytes | None = yield Question(_BYTES, "read", (path, 0, MOST_BYTES))
    return _seconds(after)


def _read_armed(data: bytes | None) -> tuple[str, dict[str, Any] | None]:
    """What is missing according to the file that the switch writes, and its process."""
    if data is None:
        return "its switch is not armed yet", None
    try:
        told = json.loads(data)
        identity = {name: told[name] for name in _IDENTITY}
        missing = told["missing"]
    except (ValueError, TypeError, KeyError):
        return "its switch says something else than that it is armed", None
    return (f"its switch could not destroy it: {str(missing)[:200]}" if missing else ""), identity


def _seconds(data: bytes | None) -> float:
    """A number of seconds as decimal text; 0 for anything else."""
    try:
        found = float((data or b"").decode("ascii"))
    except ValueError:
        return 0.0
    return found if math.isfinite(found) else 0.0
