"""Muon for the matrices inside the blocks, AdamW for everything else; or AdamW alone.

Both share one learning rate: `match_rms_adamw` scales Muon's orthogonal update to the size of an AdamW update,
0.2 sqrt(max(rows, columns)).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer

from trainer.config import OptimizerConfig
from trainer.optim.groups import ParameterGroups, parameter_groups


class MuonAdamW:
    """One object that steps both optimizers and remembers both. `betas` and `eps` are AdamW's."""

    def __init__(self, config: OptimizerConfig, module: nn.Module) -> None:
        self.groups: ParameterGroups = parameter_groups(module, use_muon=config.name == "muon")
        named = dict(module.named_parameters())
        self.betas = (config.beta1, config.beta2)
        decayed, plain = ([named[name] for name in names] for names in (self.groups.decayed, self.groups.plain))
        self._optimizers: dict[str, Optimizer] = {
            "adamw": AdamW(
                [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}],
                lr=config.lr,
                betas=self.betas,
                fused=True,
            )
        }
        if self.groups.muon:
            self._optimizers["muon"] = Muon(
                [named[name] for name in self.groups.muon],
                lr=config.lr,
                momentum=config.momentum,
                weight_decay=config.weight_decay,
                adjust_lr_fn="match_rms_adamw",
            )

        self.eps: float = self._optimizers["adamw"].defaults["eps"]
        self._weight_decays: dict[nn.Parameter, float] = {
            parameter: group["weight_decay"]
            for optimizer in self._optimizers.values()
            for group in optimizer.param_groups
            for parameter in group["params"]
        }

    def moments(self, parameter: nn.Parameter) -> dict[str, Tensor] | None:
        """AdamW's own `exp_avg`, `exp_avg_sq` (not corrected) and `step` (updates so far) of a parameter.

        On the device; to be read, not to be changed. None before the first update, and for what Muon moves.
        """
        return self._optimizers["adamw"].state.get(parameter)

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
        """State of both optimizers by name."""
        return {name: optimizer.state_dict() for name, optimizer in self._optimizers.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        for name, optimizer in self._optimizers.items():
            optimizer.load_state_dict(state[name])
