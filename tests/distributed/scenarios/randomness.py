"""Dropout and skipped blocks: random numbers that must be the same on all ranks, and those that must differ."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy
import torch
import torch.distributed as dist
from tpinit.runtime import initialize
from tpinit.runtime.parallel import RowParallelLinear

from families import catalogue
from support.family_training import SGD, difference_by_parameter, tensors_of
from support.own_checks import let_change


def train_with_dropout(
    rank: int, name: str, checkpointing: bool = False, row: str = "", training: bool = True, **overrides: Any
) -> dict[str, Any]:
    """Train with dropout on ranks with different RNG states; return losses, masks inside the region, and gradients."""
    torch.manual_seed(100 + rank)
    model = catalogue.build(name, **overrides).train(training)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    for key, one in model.named_parameters():
        if key.endswith("wi.weight"):  # both halves equal, so that only dropout makes the ranks differ
            one.data[len(one) // 2 :] = one.data[: len(one) // 2]
    reference = copy.deepcopy(model)
    world = dist.get_world_size()
    config = {"train_micro_batch_size_per_gpu": 2, "optimizer": SGD, "tensor_parallel": {"autotp_size": world}}
    engine, _, _, _ = initialize(model=model, config=config)
    let_change(engine)  # the hook reads what the unsharded model does not have
    inside: list[torch.Tensor] = []
    rows = (one for key, one in model.named_modules() if isinstance(one, RowParallelLinear) and row in key)
    next(rows).register_forward_pre_hook(lambda _, args: inside.append(args[0].detach().clone()))
    batch = catalogue.batch(name, reference, 0, rows=2)
    state = torch.get_rng_state()
    loss = catalogue.loss(name, engine, batch)
    engine.backward(loss)
    torch.set_rng_state(state)
    expected = catalogue.loss(name, reference, batch)
    expected.backward()
    return {
        "loss": float(loss),
        "whole": float(expected),
        "gradients": max(difference_by_parameter(engine, tensors_of(reference, "grad"), "grad").values()),
        "zeros": [(one == 0).tolist() for one in inside],
        "calls": len(inside),
        "random": sum(layer.draws_random for layer in engine.plan.layers),
        "replicated": [
            one.grad.double().sum().item()
            for record, (_, one) in zip(engine.plan.parameters, model.named_parameters(), strict=True)
            if record.dim is None and one.grad is not None
        ],
    }


class Skipping(torch.nn.Module):
    """Blocks that are skipped in training if a random number is below one half."""

    def __init__(self, draw: Callable[[], float]) -> None:
        super().__init__()
        self.draw = draw
        self.skipped: list[int] = []
        self.blocks = torch.nn.ModuleList(
            torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 8)) for _ in range(12)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.skipped = [place for place in range(len(self.blocks)) if self.training and self.draw() < 0.5]
        for place, block in enumerate(self.blocks):
            x = x if place in self.skipped else x + block(x)
        return x


DRAWS: dict[str, Callable[[], float]] = {
    "torch": lambda: float(torch.rand([])),
    "Python": lambda: random.uniform(0, 1),
    "numpy": lambda: float(numpy.random.rand()),
}


@contextmanager
def rewound() -> Iterator[None]:
    """Restore the RNG states after the block, so that the code after it draws the same numbers."""
    states = torch.get_rng_state(), random.getstate(), numpy.random.get_state()
    yield
    for back, state in zip((torch.set_rng_state, random.setstate, numpy.random.set_state), states, strict=True):
        back(state)


def train_with_skipped_blocks(rank: int, draws: str) -> dict[str, Any]:
    """Train randomly skipped blocks on ranks with different RNG states, beside the unsharded model."""
    torch.manual_seed(0)
    model = Skipping(DRAWS[draws]).train()
    x = torch.randn(2, 3, 8)
    for seed in (torch.manual_seed, random.seed, numpy.random.seed):
        seed(100 + rank)
    reference, alone = copy.deepcopy(model), copy.deepcopy(model)
    config = {
        "train_micro_batch_size_per_gpu": 2,
        "optimizer": SGD,
        "tensor_parallel": {"autotp_size": dist.get_world_size()},
    }
    with rewound():
        alone(x)
    engine, _, _, _ = initialize(model=model, config=config, example={"x": x})
    with rewound():
        loss = engine(x=x).square().sum()
        engine.backward(loss)
    expected = reference(x=x).square().sum()
    expected.backward()
    return {
        "alone": alone.skipped,
        "skipped": model.skipped,
        "whole": reference.skipped,
        "loss": float(loss) / float(expected) - 1,
        "gradients": max(difference_by_parameter(engine, tensors_of(reference, "grad"), "grad").values()),
        "cut": len(engine.plan.layers),
    }
