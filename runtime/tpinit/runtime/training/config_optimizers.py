"""Optimizers that a config names and torch lacks: Lion, Adam without correction of its bias, Muon beside AdamW.

The first two are elementwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Adam, AdamW, Muon, Optimizer

__all__ = ["Lion", "MuonAdamW", "UncorrectedAdam"]


class Lion(Optimizer):
    """Lion (Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms"), with DeepSpeed's defaults.

    The update is the sign of a mean of momentum and gradient, with decoupled weight decay. Its state is one tensor for
    each parameter, `exp_avg`.
    """

    def __init__(
        self, params: Any, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), weight_decay: float = 0.0
    ) -> None:
        _check_options(lr, betas, weight_decay)
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient. Returns what `closure` returns."""
        loss = _call(closure)
        for group in self.param_groups:
            now, later = group["betas"]
            for parameter, gradient in _with_gradient(group["params"]):
                average = _state(self, parameter, "exp_avg")
                direction = average.lerp(gradient, 1 - now).sign_()
                parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(direction, alpha=-group["lr"])
                average.lerp_(gradient, 1 - later)
        return loss


class UncorrectedAdam(Optimizer):
    """Adam whose averages are used as they are (`bias_correction` false), with DeepSpeed's defaults.

    `decoupled`: the weight decay shrinks the weight (AdamW) instead of being added to the gradient. The state of each
    parameter is `exp_avg` and `exp_avg_sq`.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        decoupled: bool = True,
    ) -> None:
        _check_options(lr, betas, weight_decay)
        if not eps >= 0:
            raise ValueError(f"eps is {eps}, and must be at least 0")
        options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "decoupled": decoupled}
        super().__init__(params, options)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient. Returns what `closure` returns."""
        loss = _call(closure)
        for group in self.param_groups:
            first, second = group["betas"]
            for parameter, gradient in _with_gradient(group["params"]):
                average, squares = _state(self, parameter, "exp_avg"), _state(self, parameter, "exp_avg_sq")
                if group["decoupled"]:
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                else:
                    gradient = gradient.add(parameter, alpha=group["weight_decay"])
                average.lerp_(gradient, 1 - first)
                squares.mul_(second).addcmul_(gradient, gradient, value=1 - second)
                parameter.addcdiv_(average, squares.sqrt().add_(group["eps"]), value=-group["lr"])
        return loss


class MuonAdamW(Optimizer):
    """Muon for the groups whose `use_muon` is true, AdamW for the others: DeepSpeed's type "Muon", with its defaults.

    Both updates are torch's. Muon's groups hold matrices only. The state of a parameter is `momentum_buffer`, or
    `exp_avg`, `exp_avg_sq` and `step`. `decoupled` false: Adam, whose weight decay is added to the gradient.
    """

    def __init__(self, params: Any, decoupled: bool = True) -> None:
        self._kinds: dict[bool, Callable[..., Optimizer]] = {True: Muon, False: AdamW if decoupled else Adam}
        # Each updates the groups and the states of this optimizer: its own parameter only makes it an optimizer.
        self._parts = {use_muon: kind([nn.Parameter(torch.zeros(1, 1))]) for use_muon, kind in self._kinds.items()}
        super().__init__(params, {})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, whose `use_muon` says what updates it. Raises ValueError without it, or for illegal options."""
        if not isinstance(param_group.get("use_muon"), bool):
            raise ValueError("a group of Muon needs use_muon: true for matrices that Muon updates, else false")
        use_muon = param_group["use_muon"]
        group = {**_MUON_DEFAULTS[use_muon], **param_group}
        options = {key: value for key, value in group.items() if key in self._parts[use_muon].defaults}
        (checked,) = self._kinds[use_muon](group["params"], **options).param_groups
        super().add_param_group({**group, **checked})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient. Returns what `closure` returns."""
        loss = _call(closure)
        for use_muon, part in self._parts.items():
            part.param_groups = [group for group in self.param_groups if group["use_muon"] is use_muon]
            part.state = self.state
            part.step()
        return loss


_MUON_DEFAULTS: dict[bool, dict[str, Any]] = {
    True: {"lr": 0.02, "momentum": 0.95, "weight_decay": 0.0},
    False: {"lr": 3e-4, "betas": (0.9, 0.95), "eps": 1e-10, "weight_decay": 0.0},
}


def _check_options(lr: float, betas: tuple[float, float], weight_decay: float) -> None:
    if not lr >= 0:
        raise ValueError(f"lr is {lr}, and must be at least 0")
    if not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"betas are {betas}, and must be at least 0 and below 1")
    if not weight_decay >= 0:
        raise ValueError(f"weight_decay is {weight_decay}, and must be at least 0")


def _call(closure: Callable[[], Any] | None) -> Any:
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def _with_gradient(parameters: Iterable[torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(parameter, parameter.grad) for parameter in parameters if parameter.grad is not None]


def _state(optimizer: Optimizer, parameter: torch.Tensor, name: str) -> torch.Tensor:
    """Return a tensor of a parameter's state, zero before the first update."""
    state = optimizer.state[parameter]
    if name not in state:
        state[name] = torch.zeros_like(parameter)
    value: torch.Tensor = state[name]
    return value
