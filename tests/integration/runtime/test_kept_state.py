"""A forward that keeps, overwrites or reads in Python what sharded layers compute is not sharded there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from tpinit.runtime.errors import PlanError
from tpinit.runtime.planning import check_plan, plan_model

KEPT: list[torch.Tensor] = []
TABLE = torch.zeros(3)


class Holder:
    """An object that is no module."""

    def __init__(self) -> None:
        self.values: dict[str, list[torch.Tensor]] = {"all": []}


class Mlp(nn.Module):
    def __init__(self, keep: Callable[[Any, torch.Tensor], Any]) -> None:
        super().__init__()
        self.up, self.down, self.keep = nn.Linear(8, 12), nn.Linear(12, 8), keep
        self.cache: list[torch.Tensor] = []
        self.holder = Holder()
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("table", torch.zeros(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = self.up(x)
        self.keep(self, inner)
        return x + self.down(inner.relu())


class Model(nn.Module):
    def __init__(self, keep: Callable[[Any, torch.Tensor], Any]) -> None:
        super().__init__()
        self.first, self.second = Mlp(keep), Mlp(lambda *_: None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))


KEEP: dict[str, Callable[[Any, torch.Tensor], Any]] = {
    "attribute": lambda self, inner: setattr(self, "last", inner),
    "part": lambda self, inner: setattr(self, "loss", inner.pow(2).mean()),
    "list": lambda self, inner: self.cache.append(inner.detach()),
    "object": lambda self, inner: self.holder.values["all"].append(inner.clone()),
    "global list": lambda _, inner: KEPT.append(inner * 2),
    "buffer in place": lambda self, inner: self.mean.mul_(0.9).add_(0.1 * inner.mean()),
    "new buffer": lambda self, inner: setattr(self, "mean", 0.9 * self.mean + 0.1 * inner.mean()),
    "part of a buffer": lambda self, inner: self.table[:2].copy_(inner.mean((0, 1))[:2]),
    "element of a buffer": lambda self, inner: self.table.__setitem__(1, inner.abs().max()),
    "global tensor": lambda _, inner: TABLE[1:].fill_(0).add_(inner.sum()),
    "out": lambda self, inner: torch.sum(inner, (0, 1, 2), out=self.mean),
    "number": lambda self, inner: setattr(self, "largest", float(inner.detach().max())),
    "branch": lambda _, inner: inner.mul_(2) if inner.abs().max() > 1e9 else None,
    "numpy": lambda self, inner: setattr(self, "array", inner.detach().numpy().copy()),
    "list of numbers": lambda self, inner: setattr(self, "numbers", inner.tolist()),
}
FREE: dict[str, Callable[[Any, torch.Tensor], Any]] = {
    "nothing": lambda *_: None,
    "temporary": lambda _, inner: [inner * 2, inner.mean()],
    "in place": lambda _, inner: inner.mul_(2),
    "constant": lambda self, inner: setattr(self, "ones", torch.ones(inner.shape[0])),
    "shape": lambda self, inner: setattr(self, "rows", inner.shape[0]),
    "scratch": lambda _, inner: torch.zeros(()).add_(inner.sum()),
}


def sharded(model: nn.Module) -> set[str]:
    KEPT.clear()
    return {layer.module for layer in plan_model(model, 2, 0, example={"x": torch.randn(2, 3, 8)}).layers}


@pytest.mark.parametrize("keep", KEEP)
def test_a_layer_whose_output_is_kept_stays_whole_and_the_others_are_sharded(keep: str) -> None:
    model = Model(KEEP[keep])
    assert sharded(model) == {"second.up", "second.down"}
    plan = plan_model(model, 2, 0, example={"x": torch.randn(2, 3, 8)})
    assert any("first.up" in note and "the forward" in note for note in plan.notes) or not plan.notes


@pytest.mark.parametrize("keep", FREE)
def test_what_ends_with_the_forward_may_be_computed(keep: str) -> None:
    assert sharded(Model(FREE[keep])) == {"first.up", "first.down", "second.up", "second.down"}


def test_a_plan_that_shards_such_a_layer_is_refused() -> None:
    example = {"x": torch.randn(2, 3, 8)}
    plan = plan_model(Model(FREE["nothing"]), 2, 0, example=example)
    assert check_plan(plan, Model(FREE["temporary"]), 2, example) == plan
    with pytest.raises(PlanError, match=r"first.up: the forward keeps a tensor that is computed from its output"):
        check_plan(plan, Model(KEEP["list"]), 2, example)


class KeepsWhole(Model):
    """Keeps the output of a row-parallel layer, which is whole on every rank."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.last = self.first(x)
        return self.second(self.last)


def test_the_output_of_a_region_may_be_kept() -> None:
    assert sharded(KeepsWhole(FREE["nothing"])) == {"first.up", "first.down", "second.up", "second.down"}
