"""fsdp: the blocks' weights divided among the processes, each tensor updated by one owner that has it whole.

The copy that computes is divided by torch's FSDP2, row by row. Orthogonalising a slice of a matrix is not a slice of
the orthogonal matrix, and a norm needs a whole tensor, too; so gradients go from the slices to the owner of their
tensor, which makes the very update that one process alone would make, and the new weights go back. Optimizer state and
averages exist with the owner only. What is outside the blocks is small: every process holds and updates it, as in ddp.

A learner keeps its modules, under their names and with empty tensors where another process is the owner; `whole` puts
them together again in the leader, so that a checkpoint does not show how many processes wrote it.

Shapes: P parameters.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from trainer.acceleration.network import training_network
from trainer.distributed.gradients import Alone, Replicas
from trainer.distributed.sending import receive, send
from trainer.distributed.team import GATHER, Processes
from trainer.model.nanodit import NanoDiT
from trainer.rules.distributed import hindrances

if TYPE_CHECKING:
    from trainer.step import Learner

LARGE = 1_000_000_000
"""Parameters from which on `auto` divides them."""
_PREFIX = "model."


def strategy(learner: Learner) -> str:
    """How the work is shared: single, ddp or fsdp."""
    if learner.team.size == 1:
        return "single"
    if isinstance(learner.exchange, Shards):
        return "fsdp"
    wanted = learner.config.distributed.strategy
    if wanted != "auto":
        return wanted
    is_large = sum(parameter.numel() for parameter in learner.modules.parameters()) >= LARGE
    return "ddp" if not is_large or any(hindrances(learner.config)) else "fsdp"


def is_large(learner: Learner) -> bool:
    """Whether a learner is to be divided."""
    return strategy(learner) == "fsdp"


def shard_if_large(learner: Learner) -> None:
    """Divide a learner that is complete in every process, if that is how the work is shared."""
    if is_large(learner):
        learner.exchange = learner.recorder.exchange = Shards(learner)


def whole(learner: Learner) -> Learner:
    """The leader's: a learner like this one that holds everything. Another process's: itself, once it has sent all."""
    shards = learner.exchange
    if not isinstance(shards, Shards):
        return learner
    learner.team.order(GATHER)
    if not learner.team.is_leader:
        send(shards.owned_parts(), 0)
        return learner
    parts = [receive(rank, learner.device) for rank in range(1, learner.team.size)]
    complete = copy.copy(learner)
    complete.model = _filled(learner.model, [part["model"] for part in parts])
    complete.modules = nn.ModuleDict({**learner.modules, "model": complete.model})
    complete.ema = copy.copy(learner.ema)
    complete.ema.models = {
        half_life: _filled(model, [part["averages"][str(half_life)] for part in parts])
        for half_life, model in learner.ema.models.items()
    }
    complete.optimizer = copy.copy(learner.optimizer)
    complete.optimizer.others = [part["optimizer"] for part in parts]
    complete.set_parameters()
    return complete


class Shards(Alone):
    """The divided copy of a learner's model, and the ways between slices and owners."""

    def __init__(self, learner: Learner) -> None:
        assert isinstance(learner.team, Processes), "one process has nobody to share with"
        self.team = learner.team
        self.size = learner.team.size
        self.splits_steps = False
        self._learner = learner
        names = [name for name, _ in learner.model.named_parameters() if name.startswith("blocks.")]
        self._whole = {name: learner.model.get_parameter(name) for name in names}
        self._shapes = {name: parameter.shape for name, parameter in self._whole.items()}
        self._owned_by = _deal(self._shapes, self.size)
        divided = set(self._whole.values())
        shared = [parameter for parameter in learner.modules.parameters() if parameter not in divided]
        self._replicas = Replicas(learner.team, shared)
        self._network = self._divided_copy(learner.model)
        self._slices = {name: self._network.get_parameter(name) for name in names}
        for name in names:
            if name not in self._owned_by[self.team.rank]:
                self._let_go(name)
        mine = {self._whole[name] for name in self._owned_by[self.team.rank]}
        self._counts_here = mine | (set(shared) if self.team.is_leader else set())
        learner.network = self._forward

    def expect_last(self) -> None:
        """Slices of the gradient are summed in the last backward pass only."""
        self._replicas.expect_last()
        self._network.set_requires_gradient_sync(True)

    @torch.no_grad()
    def gradients_done(self) -> None:
        """Owners have whole gradients, all have those of the shared parameters."""
        self._replicas.gradients_done()
        self._network.set_requires_gradient_sync(False)
        exists = self.team.any_of([part.grad is not None for part in self._slices.values()])
        found = dict(zip(self._slices, exists, strict=True))
        there = [torch.cat([self._slice_of(name, of_gradient=True) for name in owned]) for owned in self._owned_by]
        arrived = self._all_to_all(there, [self._mine_from(rank) for rank in range(self.size)])
        for name, gradient in self._joined(arrived).items():
            self._whole[name].grad = gradient if found[name] else None
        for part in self._slices.values():
            part.grad = None

    def grad_norm(self, parameters: Sequence[nn.Parameter]) -> Tensor:
        """From the norm of every tensor, as `get_total_norm` does."""
        here = {parameter: parameter.grad for parameter in parameters if parameter.grad is not None}
        norms = dict(zip(here, torch._foreach_norm(list(here.values())), strict=True))
        zero = torch.zeros((), device=self.team.device)
        some = self.team.any_of([parameter in norms for parameter in parameters])
        anywhere = [parameter for parameter, exists in zip(parameters, some, strict=True) if exists]
        norms_P = torch.stack([norms.get(parameter, zero) for parameter in anywhere])
        norm: Tensor = torch.linalg.vector_norm(self.shared_P(norms_P, anywhere))
        return norm

    def shared_P(self, values_P: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor:
        """Every value from the owner, or from the leader."""
        here_P = torch.tensor([parameter in self._counts_here for parameter in parameters], device=values_P.device)
        return self.team.add_up(torch.where(here_P, values_P, torch.zeros_like(values_P)))

    def sizes(self, members: Sequence[Sequence[nn.Parameter]]) -> list[int]:
        """Sums over what counts here, and over the processes."""
        counts = [sum(each.numel() for each in some if each in self._counts_here) for some in members]
        sums: list[int] = self.team.add_up(torch.tensor(counts)).tolist()
        return sums

    @torch.no_grad()
    def updated(self) -> None:
        """The owners' new weights become slices."""
        mine = [self._whole[name] for name in self._owned_by[self.team.rank]]
        there = [
            torch.cat([part.flatten()[_rows(part.shape, rank, self.size)] for part in mine])
            for rank in range(self.size)
        ]
        own = [[self._slice_of(name).numel() for name in owned] for owned in self._owned_by]
        arrived = self._all_to_all(there, [sum(sizes) for sizes in own])
        for owned, sizes, flat in zip(self._owned_by, own, arrived, strict=True):
            for name, part in zip(owned, flat.split(sizes), strict=True):
                local = _local(self._slices[name])
                local.copy_(part.view_as(local))

    def owned_parts(self) -> dict[str, Any]:
        """Weights, averages and optimizer state of which this process is the owner, by name."""
        learner, owned = self._learner, self._owned_by[self.team.rank]
        return {
            "model": {name: self._whole[name].detach() for name in owned},
            "averages": {
                str(half_life): {name: model.get_parameter(name).detach() for name in owned}
                for half_life, model in learner.ema.models.items()
            },
            "optimizer": {_PREFIX + name: learner.optimizer.state_of(self._whole[name]) for name in owned},
        }

    def _forward(self, z: Tensor, t: Tensor, conditions: Any, present: Mapping[str, Tensor], *rest: Any) -> Any:
        """The prediction of the divided model. FSDP moves dictionaries of tensors to the device, and `present` must
        stay on the host: what is no `dict` it leaves alone."""
        return self._network(z, t, conditions, MappingProxyType(dict(present)), *rest)

    def _divided_copy(self, model: NanoDiT) -> Any:
        divided = copy.deepcopy(model)
        for name, parameter in model.named_parameters():
            if name not in self._whole:
                owner, _, last = name.rpartition(".")
                setattr(divided.get_submodule(owner), last, parameter)
        mesh = init_device_mesh(self.team.device.type, (self.size,))
        outside = {parameter for name, parameter in divided.named_parameters() if name not in self._whole}
        computing = training_network(divided, self._learner.config, self._learner.streams)
        blocks = computing.get_submodule("blocks")
        for block in blocks.children():
            fully_shard(block, mesh=mesh)
        network: Any = fully_shard(computing, mesh=mesh, ignored_params=outside)
        for part in (*blocks.children(), network):
            part.set_gradient_divide_factor(1.0)  # a sum, where torch's default is the mean
            part.set_force_sum_reduction_for_comms(True)
        network.set_requires_gradient_sync(False)
        return network

    def _let_go(self, name: str) -> None:
        """Another process owns this tensor."""
        parameter = self._whole[name]
        self._learner.optimizer.forget(parameter)
        for model in (self._learner.model, *self._learner.ema.models.values()):
            kept = model.get_parameter(name)
            kept.data = kept.data.new_empty(0)

    def _slice_of(self, name: str, of_gradient: bool = False) -> Tensor:
        """This process's rows of a tensor, or of its gradient, one after the other."""
        part = self._slices[name]
        if not of_gradient:
            return _local(part).flatten()
        return torch.zeros_like(_local(part)).flatten() if part.grad is None else _local(part.grad).flatten()

    def _mine_from(self, rank: int) -> int:
        """How many numbers of the tensors that this process owns are in the slices of another."""
        mine = (self._shapes[name] for name in self._owned_by[self.team.rank])
        return sum(len(range(*_rows(shape, rank, self.size).indices(shape.numel()))) for shape in mine)

    def _joined(self, arrived: Sequence[Tensor]) -> dict[str, Tensor]:
        """Whole tensors from what every process sent of those that this one owns."""
        joined, starts = {}, [0] * self.size
        for name in self._owned_by[self.team.rank]:
            shape, pieces = self._shapes[name], []
            for rank, flat in enumerate(arrived):
                count = len(range(*_rows(shape, rank, self.size).indices(shape.numel())))
                pieces.append(flat[starts[rank] : starts[rank] + count])
                starts[rank] += count
            joined[name] = torch.cat(pieces).view(shape)
        return joined

    def _all_to_all(self, there: Sequence[Tensor], sizes: Sequence[int]) -> Sequence[Tensor]:
        """Send one flat tensor to each process and get one of the given size from each."""
        arrived = torch.empty(sum(sizes), device=self.team.device)
        dist.all_to_all_single(arrived, torch.cat(list(there)), list(sizes), [len(part) for part in there])
        parts: tuple[Tensor, ...] = arrived.split(list(sizes))
        return parts


def _deal(shapes: Mapping[str, torch.Size], size: int) -> list[list[str]]:
    """Names of the tensors that each process owns: the largest first, to whoever has least."""
    owned: list[list[str]] = [[] for _ in range(size)]
    loads = [0] * size
    for name in sorted(shapes, key=lambda name: (-shapes[name].numel(), name)):
        poorest = loads.index(min(loads))
        owned[poorest].append(name)
        loads[poorest] += shapes[name].numel()
    return owned


def _rows(shape: torch.Size, rank: int, size: int) -> slice:
    """Where the slice of a process lies in a flat tensor: rows are dealt in chunks of equal size, the last smaller."""
    height = -(-shape[0] // size)
    width = shape.numel() // shape[0]
    first, last = min(rank * height, shape[0]), min((rank + 1) * height, shape[0])
    return slice(first * width, last * width)


def _local(tensor: Tensor) -> Tensor:
    detached = tensor.detach()
    assert isinstance(detached, DTensor), "FSDP divides every parameter of a block"
    local: Tensor = detached.to_local()
    return local


def _filled(model: nn.Module, parts: Sequence[Mapping[str, Tensor]]) -> Any:
    """A copy of a module with the tensors that other processes sent."""
    complete = copy.deepcopy(model)
    for part in parts:
        for name, tensor in part.items():
            complete.get_parameter(name).data = tensor
    return complete
