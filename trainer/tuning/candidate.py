"""One way to make the same optimizer step: how it is cut into micro-batches, what is computed again, what is compiled.

A candidate changes nothing else of a configuration, and it always makes the step of all `samples_per_step` samples:
draws, order of images and weights of samples are the same in every one. No torch here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from trainer.config import TrainerConfig
from trainer.data.shapes import StreamShapes
from trainer.errors import UsageError
from trainer.size import memory_mib

CHECKPOINTING = ("none", "every_k", "full")
"""Kinds of activation checkpointing that are tried beside that of the configuration."""
_KEEPS = {"full": 0, "budget": 1, "every_k": 1, "none": 2}  # a kind keeps no more than those of larger numbers


@dataclass(frozen=True, slots=True, order=True)
class Candidate:
    """`batch` x `accumulation` samples a step, `activation_checkpointing.kind`, `compile.enabled`, `precision.compute`.

    Everything else of those blocks (`every`, `budget`, `backend`, …) stays as the configuration has it.
    """

    batch: int
    accumulation: int
    checkpointing: str
    compiled: bool
    compute: str

    def __str__(self) -> str:
        compiled = "compiled" if self.compiled else "not compiled"
        return f"{self.batch} x {self.accumulation}, checkpointing {self.checkpointing}, {compiled}, {self.compute}"

    def applied(self, config: TrainerConfig) -> TrainerConfig:
        """The configuration with this choice in it; whether the rules allow that is not asked here."""
        assert self.batch * self.accumulation == config.samples_per_step, "the effective batch is not ours to change"
        return config.model_copy(
            update={
                "batch": self.batch,
                "accumulation": self.accumulation,
                "activation_checkpointing": config.activation_checkpointing.model_copy(
                    update={"kind": self.checkpointing}
                ),
                "compile": config.compile.model_copy(update={"enabled": self.compiled}),
                "precision": config.precision.model_copy(update={"compute": self.compute}),
            }
        )

    def needs_no_more_than(self, other: Candidate) -> bool:
        """Whether `other` cannot fit where this one did not: it keeps at least as much, of as large a micro-batch."""
        if (self.compiled, self.compute) != (other.compiled, other.compute) or self.batch > other.batch:
            return False
        return self.checkpointing == other.checkpointing or _KEEPS[self.checkpointing] < _KEEPS[other.checkpointing]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to try; an empty list stands for what the configuration has, or every divisor of the effective batch."""

    micro_batches: tuple[int, ...] = ()
    checkpointing: tuple[str, ...] = CHECKPOINTING
    compiled: tuple[bool, ...] = (False, True)
    computes: tuple[str, ...] = ()


def own_candidate(config: TrainerConfig) -> Candidate:
    """What the configuration says now."""
    return Candidate(
        config.batch,
        config.accumulation,
        config.activation_checkpointing.kind,
        config.compile.enabled,
        config.precision.compute,
    )


def divisors(samples: int) -> tuple[int, ...]:
    """The micro-batches into which so many samples can be cut, ascending."""
    return tuple(size for size in range(1, samples + 1) if samples % size == 0)


def candidates(config: TrainerConfig, streams: StreamShapes, wanted: Wanted) -> list[Candidate]:
    """The configuration as it is, then the others by estimated memory, ascending; none twice.

    Raises UsageError for a micro-batch that does not divide the effective batch.
    """
    own, samples = own_candidate(config), config.samples_per_step
    unfit = [size for size in wanted.micro_batches if size < 1 or samples % size]
    if unfit:
        allowed = ", ".join(map(str, divisors(samples)))
        raise UsageError(
            f"--micro-batches {unfit[0]}: a step has {samples} images, and that is kept; allowed: {allowed}"
        )
    found = {
        Candidate(batch, samples // batch, checkpointing, compiled, compute)
        for batch in wanted.micro_batches or divisors(samples)
        for checkpointing in wanted.checkpointing or (own.checkpointing,)
        for compiled in wanted.compiled or (own.compiled,)
        for compute in wanted.computes or (own.compute,)
    }
    return [own, *_by_memory(found - {own}, config, streams)]


def estimated_mib(candidate: Candidate, config: TrainerConfig, streams: StreamShapes) -> float:
    """Upper estimate of the peak memory of a candidate, by arithmetic."""
    return memory_mib(candidate.applied(config), streams)


def _by_memory(found: Iterable[Candidate], config: TrainerConfig, streams: StreamShapes) -> Sequence[Candidate]:
    return sorted(found, key=lambda each: (estimated_mib(each, config, streams), each))
