"""Sums gradients over processes, bucket by bucket and while the last backward pass of a step still runs.

Losses are already divided by numbers of the whole optimizer step, so gradients are summed, never averaged. Buckets
leave in a fixed order, the same in every process: roughly the one in which a backward pass finishes them. Whether a
parameter got a gradient at all is agreed upon first, because optimizers pass over one that got none.

Shapes: P parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from trainer.distributed.team import Processes, Team

BUCKET_BYTES = 25 * 2**20


class Exchange(Protocol):
    """What happens to gradients and weights between the processes of a team, in the order of a step.

    `size` is the number of processes. Gradients of a half of the micro-batches exist only if `splits_steps`.
    """

    size: int
    splits_steps: bool

    def expect_last(self) -> None:
        """The next backward pass is the last one of this step in this process."""
        ...

    def gradients_done(self) -> None:
        """Afterwards the gradients are those of the whole step."""
        ...

    def grad_norm(self, parameters: Sequence[nn.Parameter]) -> Tensor:
        """Norm of all gradients of the whole step."""
        ...

    def first_halves(self, gradients: dict[nn.Parameter, Tensor]) -> dict[nn.Parameter, Tensor]:
        """Gradients of the first half of the micro-batches, from what of them this process has computed."""
        ...

    def shared_P(self, values_P: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor:
        """One number per parameter, each from a process that knows it."""
        ...

    def sizes(self, members: Sequence[Sequence[nn.Parameter]]) -> list[int]:
        """Numbers of weights of some parameters each, wherever they are."""
        ...

    def updated(self) -> None:
        """The optimizer has moved the weights."""
        ...


class Alone:
    """One process: nothing to exchange."""

    size = 1
    splits_steps = True

    def expect_last(self) -> None:
        """Nothing to prepare."""

    def gradients_done(self) -> None:
        """They are those of the whole step already."""

    def grad_norm(self, parameters: Sequence[nn.Parameter]) -> Tensor:
        """Norm of all gradients."""
        return get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])

    def first_halves(self, gradients: dict[nn.Parameter, Tensor]) -> dict[nn.Parameter, Tensor]:
        """The same."""
        return gradients

    def shared_P(self, values_P: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor:
        """The same."""
        return values_P

    def sizes(self, members: Sequence[Sequence[nn.Parameter]]) -> list[int]:
        """Sums."""
        return [sum(each.numel() for each in some) for some in members]

    def updated(self) -> None:
        """Nobody to tell."""


class Replicas(Alone):
    """ddp: every process holds all weights and makes the same update."""

    def __init__(self, team: Processes, parameters: Sequence[nn.Parameter]) -> None:
        self.team = team
        self.size = team.size
        self._parameters = list(parameters)
        self._buckets = _buckets(self._parameters)
        self._bucket_of = {parameter: index for index, bucket in enumerate(self._buckets) for parameter in bucket}
        self._is_last = False
        self._restart()
        for parameter in self._parameters:
            parameter.register_post_accumulate_grad_hook(self._arrived)

    def expect_last(self) -> None:
        """From now on buckets leave as soon as they are full."""
        self._is_last = True

    def gradients_done(self) -> None:
        """Every parameter that has a gradient somewhere has the sum; views of the buckets, until they are cleared."""
        exists = self.team.any_of([parameter.grad is not None for parameter in self._parameters])
        while len(self._under_way) < len(self._buckets):
            self._launch()
        for work, _ in self._under_way:
            work.wait()
        found = dict(zip(self._parameters, exists, strict=True))
        for bucket, (_, flat) in zip(self._buckets, self._under_way, strict=True):
            for parameter, part in zip(bucket, flat.split([each.numel() for each in bucket]), strict=True):
                parameter.grad = part.view_as(parameter) if found[parameter] else None
        self._is_last = False
        self._restart()

    def first_halves(self, gradients: dict[nn.Parameter, Tensor]) -> dict[nn.Parameter, Tensor]:
        """Sums; a gradient of zeros where no first half has one."""
        parts = [gradients.get(parameter) for parameter in self._parameters]
        flat = torch.cat([_flat(part, parameter) for part, parameter in zip(parts, self._parameters, strict=True)])
        dist.all_reduce(flat)
        sizes = [parameter.numel() for parameter in self._parameters]
        whole = zip(self._parameters, flat.split(sizes), strict=True)
        return {parameter: part.view_as(parameter) for parameter, part in whole}

    def _arrived(self, parameter: nn.Parameter) -> None:
        """A backward pass has finished with a parameter."""
        if not self._is_last:
            return
        self._awaited[self._bucket_of[parameter]] -= 1
        while len(self._under_way) < len(self._buckets) and not self._awaited[len(self._under_way)]:
            self._launch()

    @torch.no_grad()
    def _launch(self) -> None:
        """Send the next bucket on its way, with zeros for what has no gradient here."""
        bucket = self._buckets[len(self._under_way)]
        flat = torch.cat([_flat(parameter.grad, parameter) for parameter in bucket])
        self._under_way.append((dist.all_reduce(flat, async_op=True), flat))

    def _restart(self) -> None:
        self._awaited = [len(bucket) for bucket in self._buckets]
        self._under_way: list[tuple[dist.Work, Tensor]] = []


def exchange_for(team: Team, parameters: Sequence[nn.Parameter]) -> Exchange:
    """What a team does with the gradients of `parameters` as long as every process holds all weights."""
    return Replicas(team, parameters) if isinstance(team, Processes) else Alone()


def _flat(gradient: Tensor | None, parameter: nn.Parameter) -> Tensor:
    return parameter.new_zeros(parameter.numel()) if gradient is None else gradient.reshape(-1)


def _buckets(parameters: Sequence[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Consecutive parameters, last ones first, of at most BUCKET_BYTES unless one alone is larger."""
    buckets: list[list[nn.Parameter]] = []
    left = 0
    for parameter in reversed(parameters):
        size = parameter.numel() * parameter.element_size()
        if not buckets or size > left:
            buckets.append([])
            left = BUCKET_BYTES
        buckets[-1].append(parameter)
        left -= size
    return buckets
