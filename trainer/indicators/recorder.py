"""Measures an optimizer step while it happens: reads gradients, moments and weights, and changes none of them.

Everything stays on the device; who turns a reading into metrics waits for it. A measured step holds one more copy of
the weights for a moment (the update is what they moved by) and, when it is measured in halves, one of the gradients.

Shapes: K blocks, P parameters.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from trainer.config import TrainerConfig
from trainer.distributed.gradients import Alone, Exchange
from trainer.indicators.blocks import Member, blocks_of
from trainer.indicators.reading import Reading, Sums
from trainer.optim.optimizers import Optimizers
from trainer.precision.scaling import LossScaling


class Recorder:
    """Begins measurements, and remembers of the last one what the next one needs."""

    def __init__(
        self, config: TrainerConfig, modules: nn.ModuleDict, optimizer: Optimizers, exchange: Exchange | None = None
    ) -> None:
        self.exchange = Alone() if exchange is None else exchange
        self.config = config
        self.optimizer = optimizer
        self.blocks = blocks_of(modules, frozenset(optimizer.groups.muon), config)
        self.previous_step: int | None = None
        device = next(modules.parameters()).device
        self.previous_second_K = torch.zeros(len(self.blocks), dtype=torch.float64, device=device)
        counts = torch.tensor([len(block.members) for block in self.blocks])
        block_P = torch.arange(len(self.blocks)).repeat_interleave(counts)
        # Sums over blocks are products with this: unlike index_add they come out alike every time on a GPU.
        self.membership_KP = (torch.arange(len(self.blocks))[:, None] == block_P).double().to(device)

    def begin(self, step: int) -> Measurement | None:
        """A measurement of the update that leads to `step`, if it is due."""
        return Measurement(self, step) if is_due(self.config, step) else None

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on with the same lines, as plain containers and tensors."""
        return {"previous_step": self.previous_step, "previous_second_K": self.previous_second_K}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self.previous_step = state["previous_step"]
        self.previous_second_K = state["previous_second_K"].to(self.membership_KP.device)


def is_due(config: TrainerConfig, step: int) -> bool:
    """Whether `step` writes the first line of metrics at or after a multiple of `indicators.every`."""
    log_every, every = config.log_every, config.indicators.every
    if not config.indicators.enabled or (step % log_every and step < config.steps):
        return False
    line_before = (step - 1) // log_every * log_every
    return step // every > line_before // every


class Measurement:
    """One measured optimizer step. Call in this order: `micro_batch_done` after each backward pass, `gradients_done`
    before clipping, `before_update`, and after the update `finish`."""

    def __init__(self, recorder: Recorder, step: int) -> None:
        self._recorder = recorder
        self._step = step
        self._half = recorder.config.accumulation // 2 if recorder.exchange.splits_steps else 0
        self._first_half: dict[nn.Parameter, Tensor] = {}
        self._decayed: dict[nn.Parameter, Tensor] = {}
        self._norms: dict[str, dict[nn.Parameter, Tensor]] = {name: {} for name in Sums._fields}
        self._surprised: list[list[nn.Parameter]] = []
        self._corrections_before_P: Tensor | None = None
        device = recorder.membership_KP.device
        self._zero, self._one = torch.zeros((), device=device), torch.ones((), device=device)

    def micro_batch_done(self, index: int, scaling: LossScaling) -> None:
        """The gradients of micro-batch `index` (from 0) have been added, still multiplied by the scale of the loss."""
        if index < self._half <= index + self._recorder.exchange.size:
            for member in self._members():
                if member.parameter.grad is not None:
                    self._first_half[member.parameter] = scaling.unscaled(member.parameter.grad)

    @torch.no_grad()
    def gradients_done(self) -> None:
        """All gradients have been added, and none has been clipped."""
        if not self._half:
            return
        self._first_half = self._recorder.exchange.first_halves(self._first_half)
        for block in self._recorder.blocks:
            grads = {member.parameter: member.parameter.grad for member in block.members}
            whole = {parameter: grad for parameter, grad in grads.items() if grad is not None}
            first = {parameter: self._first_half.pop(parameter) for parameter in whole if parameter in self._first_half}
            self._norm("whole", whole)
            self._norm("half_1", first)
            rest = torch._foreach_sub([whole[parameter] for parameter in first], list(first.values())) if first else ()
            self._norm("half_2", {**whole, **dict(zip(first, rest, strict=True))})

    @torch.no_grad()
    def before_update(self, lr: float) -> None:
        """The gradients are those that the optimizer will see at learning rate `lr`."""
        eps_square = self._recorder.optimizer.eps**2
        self._corrections_before_P = self._corrections()
        parameters = [member.parameter for member in self._members()]
        floors = dict(zip(parameters, (self._corrections_before_P * eps_square).unbind(), strict=True))
        for block in self._recorder.blocks:
            live = [member for member in block.members if member.parameter.grad is not None]
            found = {member.parameter: self._moments(member) for member in live}
            moments = {parameter: each for parameter, each in found.items() if each is not None}
            self._surprise({parameter: each["exp_avg_sq"] for parameter, each in moments.items()}, floors)
            if live:
                decay = self._recorder.optimizer.weight_decay
                factors = [1.0 - lr * decay(member.parameter) for member in live]
                decayed = torch._foreach_mul([member.parameter for member in live], factors)
                self._decayed.update(zip((member.parameter for member in live), decayed, strict=True))

    @torch.no_grad()
    def finish(self) -> Reading:
        """The optimizer has moved the weights."""
        recorder = self._recorder
        with_moments = []
        for block in recorder.blocks:
            self._norm("weight", {member.parameter: member.parameter for member in block.members})
            moved = {
                member.parameter: self._decayed.pop(member.parameter)
                for member in block.members
                if member.parameter in self._decayed
            }
            if moved:
                torch._foreach_sub_(list(moved.values()), list(moved))
            self._norm("update", moved)
            state = {member.parameter: self._moments(member) for member in block.members}
            moments = {parameter: found for parameter, found in state.items() if found is not None}
            self._norm("second", {parameter: found["exp_avg_sq"] for parameter, found in moments.items()}, order=1)
            self._norm("first", {parameter: found["exp_avg"] for parameter, found in moments.items()})
            with_moments.append(list(moments))
        return self._reading(tuple(recorder.exchange.sizes(with_moments)))

    def _surprise(self, second: dict[nn.Parameter, Tensor], floors: dict[nn.Parameter, Tensor]) -> None:
        """Norms of g / sqrt(v + c eps^2), c being the correction of v: with it the square is g^2 / (v^ + eps^2) / c.

        `second` holds v of parameters that have a gradient g.
        """
        self._surprised.append(list(second))
        if not second:
            return
        scale = torch._foreach_add(list(second.values()), [floors[parameter] for parameter in second])
        torch._foreach_sqrt_(scale)
        quotient = torch._foreach_div([each.grad for each in second if each.grad is not None], scale)
        self._norm("ratio", dict(zip(second, quotient, strict=True)))

    def _reading(self, adamw_counts: tuple[int, ...]) -> Reading:
        recorder = self._recorder
        assert self._corrections_before_P is not None, "before_update comes before finish"
        corrections_P = self._corrections()
        first_corrections_P = self._corrections(of_first=True)
        rows = {name: self._row(name) for name in Sums._fields}
        rows["ratio"] = rows["ratio"].square() * self._corrections_before_P
        rows["second"] = rows["second"] / corrections_P
        rows["first"] = rows["first"].square() / first_corrections_P.square()
        for name in ("update", "weight", "half_1", "half_2", "whole"):
            rows[name] = rows[name].square()
        sums_9K = torch.stack(list(rows.values())) @ recorder.membership_KP.T
        sums_9K[Sums._fields.index("previous_second")] = recorder.previous_second_K
        config = recorder.config
        reading = Reading(
            step=self._step,
            names=tuple(block.name for block in recorder.blocks),
            is_routed=tuple(block.is_routed for block in recorder.blocks),
            sums_9K=sums_9K,
            ratio_counts=tuple(recorder.exchange.sizes(self._surprised)),
            adamw_counts=adamw_counts,
            halves=(self._half * config.batch, (config.accumulation - self._half) * config.batch)
            if self._half
            else None,
            previous_step=recorder.previous_step,
        )
        recorder.previous_step, recorder.previous_second_K = self._step, sums_9K[Sums._fields.index("second")].clone()
        return reading

    def _norm(self, row: str, tensors: dict[nn.Parameter, Tensor], order: int = 2) -> None:
        if tensors:
            self._norms[row].update(zip(tensors, torch._foreach_norm(list(tensors.values()), order), strict=True))

    def _row(self, name: str) -> Tensor:
        """The norms of one row in the order of the parameters, 0 where there is none: (P,) float64."""
        found = self._norms[name]
        here_P = torch.stack([found.get(member.parameter, self._zero) for member in self._members()])
        return self._shared(here_P.double())

    def _corrections(self, of_first: bool = False) -> Tensor:
        """1 - beta^n of the second (or first) moment of every parameter after n updates, 1 - beta before: (P,)."""
        optimizer = self._recorder.optimizer
        beta = optimizer.betas[0 if of_first else 1]
        found = (self._moments(member) for member in self._members())
        updates_P = torch.stack([self._one if moments is None else moments["step"] for moments in found]).double()
        return 1.0 - beta ** self._shared(updates_P)

    def _shared(self, values_P: Tensor) -> Tensor:
        """The same from all processes, each for the parameters that it updates."""
        return self._recorder.exchange.shared_P(values_P, [member.parameter for member in self._members()])

    def _moments(self, member: Member) -> dict[str, Tensor] | None:
        return self._recorder.optimizer.moments(member.parameter) if member.is_adamw else None

    def _members(self) -> list[Member]:
        return [member for block in self._recorder.blocks for member in block.members]
