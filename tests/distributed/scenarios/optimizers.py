"""Updates of a sharded model by optimizers that need whole tensors, beside the unsharded model's on equal gradients."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from tpinit.runtime import initialize
from tpinit.runtime.settings import ComponentSettings
from tpinit.runtime.slicing import local_part
from tpinit.runtime.training.config_optimizers import Lion, UncorrectedAdam
from tpinit.runtime.training.optimizer_kinds import OptimizerKind, classify
from tpinit.runtime.training.optimizers import build_optimizer

from support.collectives import CollectiveCounter
from support.refusals import error_of, in_step, refusal_of
from support.tiny_models import build


class Lamb(torch.optim.Optimizer):
    """Scales the step of each parameter by its norm over the norm of the step: unknown to tpinit, not elementwise."""

    def __init__(self, params: Any, lr: float = 1e-2) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    mean = self.state[parameter].setdefault("mean", torch.zeros_like(parameter))
                    mean.mul_(0.9).add_(parameter.grad, alpha=0.1)
                    ratio = parameter.norm() / mean.norm().clamp(min=1e-9)
                    parameter.add_(mean * ratio, alpha=-group["lr"])


class Signs(torch.optim.Optimizer):
    """Moves each weight by the sign of its gradient: unknown to tpinit, and elementwise."""

    def __init__(self, params: Any, lr: float = 1e-2) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.sub_(parameter.grad.sign(), alpha=group["lr"])


def _matrices(model: Any) -> list[Any]:
    return [one for name, one in model.named_parameters() if one.ndim == 2 and "layers" in name]


MAKERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "muon": lambda model: torch.optim.Muon(_matrices(model), lr=0.02),
    "config muon": lambda model: build_optimizer(
        ComponentSettings("muon", {"lr": 0.02, "adam_lr": 0.01, "weight_decay": 0.1}),
        model.parameters(),
        {id(one): name for name, one in model.named_parameters()},
    ),
    "adafactor": lambda model: torch.optim.Adafactor(model.parameters(), lr=0.02),
    "lamb": lambda model: Lamb(model.parameters()),
    "signs": lambda model: Signs(model.parameters()),
    "adamw": lambda model: torch.optim.AdamW(model.parameters(), lr=0.02),
    "lion": lambda model: Lion(model.parameters(), lr=0.02, weight_decay=0.1),
    "uncorrected": lambda model: UncorrectedAdam(model.parameters(), lr=0.02, weight_decay=0.1),
}


def update(rank: int, name: str, steps: int = 3, gather: bool = True) -> dict[str, Any]:
    """Make updates with equal gradients on both sides; return what differs, and the collectives of all updates.

    Without `gather` the optimizer counts as elementwise, and updates slices.
    """
    model = build()
    unsharded = copy.deepcopy(model)
    config = {"tensor_parallel": {"autotp_size": dist.get_world_size()}, "gradient_clipping": 0}
    engine, optimizer, *_ = initialize(model=model, optimizer=MAKERS[name](model), config=config)
    other = MAKERS[name](unsharded)
    whole, local = dict(unsharded.named_parameters()), dict(engine.module.named_parameters())
    if not gather:
        engine._optimizer_step.kind = OptimizerKind.ELEMENTWISE
    counter = CollectiveCounter()
    with counter.on():
        for step in range(steps):
            generator = torch.Generator().manual_seed(step)
            for record in engine.plan.parameters:
                gradient = torch.randn(record.shape, generator=generator)
                whole[record.name].grad = gradient
                part = local_part(gradient, record, engine.plan.tp_size, engine.plan.tp_rank)
                local[record.name].grad = part.clone(memory_format=torch.contiguous_format)
            other.step()
            optimizer.step()
    far = {
        record.name: not torch.equal(
            local[record.name], local_part(whole[record.name], record, engine.plan.tp_size, engine.plan.tp_rank)
        )
        for record in engine.plan.parameters
    }
    held = {id(one) for group in optimizer.param_groups for one in group["params"]}
    return {
        "different": [key for key, value in far.items() if value],
        "calls": [kind for kind, *_ in counter.calls],
        "own": held <= {id(one) for one in local.values()},
        "in_step": in_step(rank),
    }


class GlobalNorm(torch.optim.Optimizer):
    """Divides all gradients by the norm of all of them: not elementwise, and NaN for gradients of zero."""

    def __init__(self, params: Any, lr: float = 1e-2) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        held = [one for group in self.param_groups for one in group["params"] if one.grad is not None]
        norm = torch.stack([one.grad.norm() for one in held]).norm()
        for one in held:
            one.sub_(one.grad / norm, alpha=self.param_groups[0]["lr"])


class Noise(torch.optim.Optimizer):
    """Draws numbers."""

    def __init__(self, params: Any, lr: float = 1e-2) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for one in self.param_groups[0]["params"]:
            one.add_(torch.randn_like(one), alpha=self.param_groups[0]["lr"])


def refused(rank: int) -> dict[str, Any]:
    """Give an optimizer that can't update a sharded model."""
    model = build()
    config = {"tensor_parallel": {"autotp_size": dist.get_world_size()}, "gradient_clipping": 0}
    optimizer = torch.optim.LBFGS(model.parameters())
    error = error_of(lambda: initialize(model=model, optimizer=optimizer, config=config))
    texts = {
        kind.__name__: refusal_of(lambda kind=kind: classify(kind(model.parameters()))) for kind in (GlobalNorm, Noise)
    }
    return {**error, "tried": texts, "in_step": in_step(rank)}
