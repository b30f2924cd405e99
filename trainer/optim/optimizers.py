"""Which update rules move the weights: `PARTS` maps `optimizer.name` to them, `Optimizers` steps them as one.

A name stands for one rule that moves everything, or for one rule for the matrices inside the blocks beside AdamW for
the rest. All share one learning rate: rules that make a matrix orthogonal scale its update to the size of an AdamW
update (0.2 root mean square per weight; Muon is Scalable for LLM Training, arXiv 2502.16982, section 2.2).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer

from trainer.config import OptimizerConfig
from trainer.optim.groups import ParameterGroups, parameter_groups, published_groups
from trainer.optim.normuon import NorMuon
from trainer.optim.stable_adamw import StableAdamW

Groups = list[dict[str, Any]]
"""Parameter groups as torch takes them: `params` and their `weight_decay`."""


class Part(NamedTuple):
    """One update rule: its name in checkpoints, what builds it, and by what it multiplies the learning rate."""

    name: str
    build: Callable[[OptimizerConfig, Groups], Optimizer]
    lr_factor: str


def _adamw(config: OptimizerConfig, groups: Groups) -> Optimizer:
    return AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), fused=True)


def _stable_adamw(config: OptimizerConfig, groups: Groups) -> Optimizer:
    return StableAdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2))


def _muon(config: OptimizerConfig, groups: Groups) -> Optimizer:
    return Muon(groups, lr=config.lr, momentum=config.momentum, adjust_lr_fn="match_rms_adamw")


def _normuon(config: OptimizerConfig, groups: Groups) -> Optimizer:
    return NorMuon(groups, lr=config.lr, momentum=config.momentum, beta2=config.normuon_beta2)


_ADAMW = Part("adamw", _adamw, "1")
PARTS: dict[str, tuple[Part, Part | None]] = {
    "adamw": (_ADAMW, None),
    "stable_adamw": (Part("stable_adamw", _stable_adamw, "1 / max(1, RMS)"), None),
    "muon": (_ADAMW, Part("muon", _muon, "0.2 sqrt(max(rows, columns))")),
    "normuon": (_ADAMW, Part("normuon", _normuon, "0.2 / RMS")),
}
"""`optimizer.name` -> the rule for everything, and the rule that takes the matrices inside the blocks from it, if any.
The first keeps AdamW's moments."""


class Optimizers:
    """One object that steps all update rules of a run and remembers their state. `betas` and `eps` are AdamW's."""

    def __init__(self, config: OptimizerConfig, module: nn.Module) -> None:
        general, matrices = PARTS[config.name]
        sort = published_groups if config.groups == "published" else parameter_groups
        self.groups: ParameterGroups = sort(module, use_muon=matrices is not None)
        self.betas = (config.beta1, config.beta2)
        self._named = dict(module.named_parameters())
        decayed = self._group(self.groups.decayed, config.weight_decay)
        plain = self._group(self.groups.plain, 0.0)
        self._parts = {general.name: general}
        self._optimizers: dict[str, Optimizer] = {general.name: general.build(config, [decayed, plain])}
        if matrices is not None and self.groups.muon:
            self._parts[matrices.name] = matrices
            group = self._group(self.groups.muon, config.weight_decay)
            self._optimizers[matrices.name] = matrices.build(config, [group])
        self._with_moments = self._optimizers[general.name]
        self.others: list[dict[str, dict[str, Any]]] = []  # state by name of parameter, of parameters updated elsewhere
        self.eps: float = self._with_moments.defaults["eps"]
        self._weight_decays: dict[nn.Parameter, float] = {
            parameter: group["weight_decay"]
            for optimizer in self._optimizers.values()
            for group in optimizer.param_groups
            for parameter in group["params"]
        }

    @property
    def members(self) -> dict[str, tuple[str, ...]]:
        """Names of the parameters that each rule moves, in the order of its state."""
        general, *matrices = self._optimizers
        found = {general: (*self.groups.decayed, *self.groups.plain)}
        return found | dict.fromkeys(matrices, self.groups.muon)

    def moments(self, parameter: nn.Parameter) -> dict[str, Tensor] | None:
        """AdamW's or StableAdamW's `exp_avg`, `exp_avg_sq` (not corrected) and `step` (updates so far) of a parameter.

        On the device; to be read, not to be changed. None before the first update, and for what Muon or NorMuon moves.
        """
        return self._with_moments.state.get(parameter)

    def weight_decay(self, parameter: nn.Parameter) -> float:
        """How strongly a parameter decays: each update scales it by 1 - lr * this first."""
        return self._weight_decays[parameter]

    def step(self, lr: float) -> None:
        """Apply the gradients at learning rate `lr` and clear them."""
        for optimizer in self._optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()
        self.clear()

    def clear(self) -> None:
        """Forget the gradients."""
        for optimizer in self._optimizers.values():
            optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """State of all rules by name."""
        found = {name: optimizer.state_dict() for name, optimizer in self._optimizers.items()}
        places = {member: (rule, index) for rule, names in self.members.items() for index, member in enumerate(names)}
        for state in self.others:
            for member, values in state.items():
                rule, index = places[member]
                found[rule]["state"][index] = values
        return found

    def state_of(self, parameter: nn.Parameter) -> dict[str, Any]:
        """What its rule remembers of a parameter; empty before the first update."""
        return next((each.state[parameter] for each in self._optimizers.values() if parameter in each.state), {})

    def forget(self, parameter: nn.Parameter) -> None:
        """Drop the state of a parameter that another process updates."""
        for optimizer in self._optimizers.values():
            optimizer.state.pop(parameter, None)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        for name, optimizer in self._optimizers.items():
            optimizer.load_state_dict(state[name])

    def table(self) -> str:
        """Who moves what, a line per group, for a person; the last column multiplies the learning rate."""
        rows = [("group", "optimizer", "tensors", "parameters", "weight decay", "lr x")]
        general, *matrices = self._parts.values()
        movers = {"decayed": general, "plain": general, **({"muon": matrices[0]} if matrices else {})}
        for group, part in movers.items():
            members = [self._named[name] for name in getattr(self.groups, group)]
            weights = f"{sum(member.numel() for member in members):,}"
            decay = f"{self._weight_decays[members[0]]:g}" if members else "-"
            rows.append((group, part.name, str(len(members)), weights, decay, part.lr_factor))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
        return "\n".join(line.rstrip() for line in lines)

    def _group(self, names: tuple[str, ...], weight_decay: float) -> dict[str, Any]:
        return {"params": [self._named[name] for name in names], "weight_decay": weight_decay}
