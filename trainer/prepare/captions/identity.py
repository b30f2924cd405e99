"""Which server answers at an address, and which weights a name stands for there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from trainer.errors import DataError
from trainer.prepare.captions.address import KEY_VARIABLE
from trainer.prepare.captions.protocols import DIALECTS, Dialect
from trainer.prepare.captions.wire import NoReply, Wire

_LONGEST_S = 10.0
_MOST_NAMED = 20


@dataclass(frozen=True, slots=True)
class Identity:
    """How a server is spoken to, and the digest of the model, '' where the server does not say."""

    dialect: Dialect
    revision: str


def identify(wire: Wire, model: str, timeout_s: float) -> Identity:
    """Ask what is there. Raises DataError if no caption server answers, or if it does not have the model."""
    met = []
    for dialect in DIALECTS:
        got = wire.exchange(dialect.models_path, min(timeout_s, _LONGEST_S))
        if isinstance(got, NoReply):
            met.append(f"GET {dialect.models_path}: {got.why}")
            continue
        models = dialect.models(got.body) if got.status == 200 and got.body is not None else None
        if models is not None:
            return Identity(dialect, _revision(wire, dialect, models, model))
        met.append(
            f"GET {dialect.models_path}: HTTP {got.status}{f', {got.said}' if got.said else ''}, no list of models"
        )
        if got.status in (401, 403):
            met[-1] += f" (is {KEY_VARIABLE} right?)"
    raise DataError(
        f"no caption server answers at {wire.base} ({'; '.join(met)}). Start Ollama or an OpenAI-compatible server "
        "there, or leave the captions out for now: --passes takes the names of the others. Nothing was changed"
    )


def _revision(wire: Wire, dialect: Dialect, models: Mapping[str, str], model: str) -> str:
    for name in dialect.listed_as(model):
        if name in models:
            return models[name]
    named = ", ".join(wire.readable(name) for name in sorted(models)[:_MOST_NAMED])
    more = f" and {len(models) - _MOST_NAMED} more" if len(models) > _MOST_NAMED else ""
    raise DataError(
        f"--caption-model {model}: {wire.base} does not have it; it has: {named or 'none'}{more}. Nothing was changed"
    )
