"""The training batches of a run as a pure function of (seed, step, position), whoever reads them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Self

from trainer.config import TrainerConfig
from trainer.data.reader import Reader
from trainer.data.rejection import refuse_too_many
from trainer.data.sample import Batch, Source
from trainer.data.stages import Stage
from trainer.data.workers import Plan, Workers


class Batches:
    """Batches of `batch` samples per optimizer step, all accumulated micro-batches together; see `Order` for the order.

    Up to the ends of `stages` images have other sizes.

    `rejected` lists (name, reason) of the training samples that turned out to be broken since this was opened; their
    share of the whole set, those that the source itself rejected included, is at most `allowed_share`.
    """

    def __init__(
        self,
        source: Source,
        run_seed: int,
        batch: int,
        flip: float = 0.0,
        allowed_share: float = 1.0,
        stages: Sequence[Stage] = (),
    ) -> None:
        self.source = source
        self.run_seed = run_seed
        self.samples_per_step = batch
        self.rejected: list[tuple[str, str]] = []
        self._told = 0
        self._allowed_share = allowed_share
        self._reader = Reader(source, run_seed, batch, flip, stages)
        self._workers: Workers | None = None

    def read_ahead(self, plan: Plan, steps: int, workers: int, pin: bool) -> None:
        """Let `workers` processes read the batches of a plan for steps below `steps`, into pinned memory if `pin`."""
        self._workers = Workers(self._reader, plan, steps, workers, pin) if workers else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._workers is not None:
            self._workers.close()

    def ids(self, step: int, positions: Iterable[int]) -> list[str]:
        """Ids of the samples at `positions` of the effective batch of one step, before broken ones are replaced."""
        order = self._reader.order
        return [order.id(*order.number(step, position)) for position in positions]

    def batch(self, step: int, positions: Iterable[int]) -> Batch:
        """The samples at `positions` of the effective batch of one step, on the host.

        Raises DataError if the data can no longer be read or too much of it is broken.
        """
        load = self._reader.read if self._workers is None else self._workers.load
        loaded = load(step, list(positions))
        self._take_in(loaded.rejected)
        return loaded.batch

    def newly_rejected(self) -> list[tuple[str, str]]:
        """What `rejected` has more than when this was asked last."""
        new, self._told = self.rejected[self._told :], len(self.rejected)
        return new

    def metrics(self) -> dict[str, float]:
        """sys/data_rejected, the number of broken samples, once there are any."""
        return {"sys/data_rejected": float(len(self.rejected))} if self.rejected else {}

    def _take_in(self, rejected: Iterable[tuple[str, str]]) -> None:
        new = [entry for entry in dict.fromkeys(rejected) if entry not in self.rejected]
        if not new:
            return
        self.rejected += new
        source = self.source
        known = [*source.rejected, *self.rejected]
        usable = len(source.train_ids) + len(source.held_out_ids) + len(source.probe_ids)
        refuse_too_many("the training data", usable + len(source.rejected), known, self._allowed_share, "samples")


def open_batches(config: TrainerConfig, source: Source, run_seed: int) -> Batches:
    """The batches of a run, read when they are asked for."""
    data = config.data
    return Batches(source, run_seed, config.samples_per_step, data.flip, data.max_rejected_share, config.stages)
