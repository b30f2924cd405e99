"""Work on a host that takes many questions: it yields each and gets its answer, and knows no connection.

Whoever asks may stop between two questions: such work leaves behind what it has done, so that the same work, begun
again, goes on from there.
"""

from __future__ import annotations

from collections.abc import Generator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

if TYPE_CHECKING:
    from pydantic import TypeAdapter

PIECE_BYTES = 2**19
"""Bytes of a file that one question or answer carries; as base64 in a line of JSON they stay below 1 MiB."""

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Question:
    """A verb of the agent, its arguments, and what the answer must look like."""

    kind: TypeAdapter[Any]
    verb: str
    arguments: tuple[Any, ...]


Steps = Generator[Question, Any, Result]
"""Questions out, validated answers in, a result in the end."""


class Ask(Protocol):
    """What carries one question to a host, as AgentChannel.ask does."""

    def __call__(self, kind: TypeAdapter[Any], verb: str, *arguments: Any) -> Any:
        """The validated answer. Raises what the host raises; HostLost when there is none."""
        ...


@runtime_checkable
class CarriesOut(Protocol):
    """A shell of another machine: work of many questions is done there in the background."""

    def carry_out(self, steps: Steps[Result]) -> Future[Result]:
        """Begin it. The future ends with its result, or with the first error; begun again, it goes on from there."""
        ...


def carry_out(steps: Steps[Result], ask: Ask) -> Result:
    """Ask one question after the other, each once. Raises what `ask` and the steps raise."""
    try:
        question = next(steps)
        while True:
            question = steps.send(ask(question.kind, question.verb, *question.arguments))
    except StopIteration as end:
        result: Result = end.value
        return result
    finally:
        steps.close()
