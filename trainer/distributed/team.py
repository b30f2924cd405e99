"""What the processes of one training tell each other beside gradients: orders, stops, sums and single observations.

Orders go through a key-value store, in which a process waits for as long as the leader evaluates; everything that is
exchanged during a step is a collective operation with a time limit. What is exchanged through the CPU makes no process
wait for its GPU.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from trainer.config import TrainerConfig
from trainer.control import StopRequest
from trainer.distributed.peers import Peers, require_leader
from trainer.errors import TeamError

STEP, GATHER, END = "step", "gather", "end"
_ORDER_LOOK = timedelta(hours=1)  # a leader that is gone is noticed at once: the store goes with it
_KEPT_ORDERS = 64
_LATER_S = 30.0
_LOOK_S = 2.0  # by then a process that failed is known to have failed


class Team:
    """A team of one: nobody to talk to. `rank` counts from 0, the leader; `size` is the number of processes."""

    rank = 0
    size = 1

    def __init__(self, device: torch.device) -> None:
        self.device = device

    @property
    def is_leader(self) -> bool:
        """Whether this process decides and writes."""
        return self.rank == 0

    def starts(self, config: TrainerConfig) -> range:
        """Position of the first sample of each micro-batch that this process computes, of one optimizer step."""
        return range(self.rank * config.batch, config.samples_per_step, self.size * config.batch)

    def begin_step(self, step: int) -> None:
        """The leader is about to make the update that follows `step`: so do all."""

    def agrees_to_stop(self, stop: StopRequest) -> bool:
        """Whether somebody was asked to stop; all processes get the same answer at the same micro-batch."""
        return bool(stop)

    def add_up(self, tensor: Tensor) -> Tensor:
        """The sum of a small tensor over the processes."""
        return tensor

    def observation(self, value: float | None, owner: int) -> float | None:
        """What process `owner` observed, for all."""
        return value

    def order(self, what: str, **details: Any) -> None:
        """The leader tells the others what to do next."""

    def end(self, code: int) -> int:
        """The leader is done and ends with `code`, which it gets back; the others end as well."""
        return code


class Processes(Team):
    """Several processes. Every method is called by all of them in the same order, but `order` and `end`."""

    def __init__(
        self, device: torch.device, rank: int, size: int, store: dist.Store, timeout_s: float, peers: Peers | None
    ) -> None:
        super().__init__(device)
        self.rank, self.size = rank, size
        self._peers, self._timeout_s = peers, timeout_s
        self._store = dist.PrefixStore("trainer", store)
        self._orders = 0
        self._meetings = 0
        # The leader gives up first, because it knows who is missing; and before gradients on a GPU do.
        own_s = timeout_s if self.is_leader else timeout_s + _LATER_S
        backend = "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl"
        dist.init_process_group(
            backend,
            store=dist.PrefixStore("data", store),
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=timeout_s + 2 * _LATER_S),
        )
        self._talk = dist.new_group(backend="gloo", timeout=timedelta(seconds=own_s))

    def begin_step(self, step: int) -> None:
        """The leader gives the order; the others have it already, or they would not be here."""
        self.order(STEP, step=step)

    def agrees_to_stop(self, stop: StopRequest) -> bool:
        """The signal may have come to any of them."""
        if self.any_of([bool(stop)])[0]:
            stop.ask("another process")
        return bool(stop)

    def add_up(self, tensor: Tensor) -> Tensor:
        """In place, too."""
        dist.all_reduce(tensor)
        return tensor

    def observation(self, value: float | None, owner: int) -> float | None:
        """Through the CPU: whoever observed a number has waited for it already."""
        seen = torch.tensor([float("nan") if value is None else value], dtype=torch.float64)
        dist.broadcast(seen, owner, self._talk)
        return float(seen)

    def any_of(self, flags: Sequence[bool]) -> list[bool]:
        """Which of the flags are set in at least one process. Here a process that hangs is found out."""
        found = torch.tensor(flags, dtype=torch.uint8)
        self._meetings += 1
        self._store.set(f"meeting/{self.rank}", str(self._meetings))
        try:
            dist.all_reduce(found, dist.ReduceOp.MAX, self._talk)
        except RuntimeError as error:
            raise self._missing() from error
        return [bool(flag) for flag in found.tolist()]

    def order(self, what: str, **details: Any) -> None:
        """The leader tells the others what to do next. Raises TeamError if one of them has failed."""
        if not self.is_leader:
            return
        if self._peers is not None and (failure := self._peers.failure()) is not None:
            raise failure
        self._store.set(f"order/{self._orders}", json.dumps({"do": what, **details}))
        if self._orders >= _KEPT_ORDERS:  # all have met since then, so they have read it
            self._store.delete_key(f"order/{self._orders - _KEPT_ORDERS}")
        self._orders += 1

    def next_order(self) -> dict[str, Any]:
        """The next order of the leader, however long it takes. Raises TeamError when the leader is gone."""
        key = f"order/{self._orders}"
        while True:
            require_leader()
            try:
                self._store.wait([key], _ORDER_LOOK)
            except dist.DistStoreError:
                continue  # no order yet
            except RuntimeError as error:
                raise TeamError(f"process {self.rank} hears nothing from the leader any more: {error}") from error
            self._orders += 1
            order: dict[str, Any] = json.loads(self._store.get(key))
            return order

    def end(self, code: int) -> int:
        """The leader waits until all have ended."""
        if self._peers is not None:
            self._peers.expect_end()
        self.order(END, code=code)
        if self._peers is not None:
            self._peers.await_end()
        return code

    def blame(self) -> TeamError | None:
        """The failure of another process behind a connection that broke, if there is one."""
        return None if self._peers is None else self._peers.failure(wait_s=_LOOK_S)

    def _missing(self) -> TeamError:
        """Who did not come, by the number of meetings that each has announced."""
        if (failure := self.blame()) is not None:
            return failure
        announced = {rank: self._announced(rank) for rank in range(self.size)}
        missing = [str(rank) for rank, count in announced.items() if count < self._meetings]
        who = f"process {' and '.join(missing)}" if missing else "another process"
        return TeamError(f"{who} kept the others waiting for distributed.timeout_s ({self._timeout_s:g} s) or failed")

    def _announced(self, rank: int) -> int:
        key = f"meeting/{rank}"
        return int(self._store.get(key)) if self._store.check([key]) else 0
