"""Parameters with one element for each sharded feature are sharded with the features, or their block stays whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from tpinit.runtime.errors import PlanError
from tpinit.runtime.planning import check_plan, plan_model
from tpinit.runtime.planning.schema import Cut, GradientRule, Plan

WIDTH, HIDDEN = 12, 8
Scale = Callable[[Any, torch.Tensor], torch.Tensor]


class Mlp(nn.Module):
    """up, a function of a parameter `gamma`, down."""

    def __init__(self, scale: Scale, shape: tuple[int, ...], fused: bool, after: Scale) -> None:
        super().__init__()
        self.fused, self.scale, self.after = fused, scale, after
        self.up, self.down = nn.Linear(HIDDEN, WIDTH * (1 + fused)), nn.Linear(WIDTH, HIDDEN)
        self.gamma = nn.Parameter(torch.ones(shape))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = self.up(x)
        if self.fused:
            gate, inner = inner.chunk(2, -1)
            inner = gate.sigmoid() * inner
        return x + self.after(self, self.down(self.scale(self, inner).tanh()))


class Model(nn.Module):
    def __init__(
        self, scale: Scale, shape: tuple[int, ...] = (WIDTH,), fused: bool = False, after: Scale | None = None
    ) -> None:
        super().__init__()
        rest = after or (lambda _, x: x)
        self.layers = nn.ModuleList(Mlp(scale, shape, fused, rest) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def planned(model: nn.Module) -> Plan:
    return plan_model(model, 2, 0, example={"x": torch.randn(2, 4, HIDDEN)})


SHARDED: dict[str, tuple[Scale, tuple[int, ...], bool]] = {
    "scale": (lambda m, x: x * m.gamma, (WIDTH,), False),
    "shift": (lambda m, x: x + m.gamma, (1, 1, WIDTH), False),
    "one row": (lambda m, x: x * m.gamma, (1, WIDTH), False),
    "one column": (lambda m, x: x * m.gamma.flatten(), (WIDTH, 1), False),
    "behind a fused layer": (lambda m, x: x * m.gamma, (WIDTH,), True),
    "gate": (lambda m, x: m.gamma.sigmoid() * x + (1 - m.gamma.sigmoid()) * x.relu(), (WIDTH,), False),
}


@pytest.mark.parametrize("name", SHARDED)
def test_a_parameter_of_the_features_is_sharded_with_them(name: str) -> None:
    scale, shape, fused = SHARDED[name]
    model = Model(scale, shape, fused)
    plan = planned(model)
    records = {record.name: record for record in plan.parameters}
    gamma = records["layers.1.gamma"]
    assert (gamma.cut, gamma.gradient_rule) == (Cut.COLUMN, GradientRule.SHARDED)
    assert gamma.dim == shape.index(WIDTH)
    assert gamma.pieces_of(2, 1) == records["layers.1.down.weight"].pieces_of(2, 1)
    assert check_plan(plan, model, 2, example={"x": torch.randn(2, 4, HIDDEN)}) == plan


USED_OTHERWISE: dict[str, Model] = {
    "their mean": Model(lambda m, x: x * m.gamma * m.gamma.mean()),
    "reversed": Model(lambda m, x: x + m.gamma.flip(0)),
    "sorted": Model(lambda m, x: x * m.gamma.sort().values),
    "running sum": Model(lambda m, x: x * m.gamma.cumsum(0)),
    "softmax": Model(lambda m, x: x * m.gamma.softmax(0)),
    "the result too": Model(lambda m, x: x * m.gamma, after=lambda m, x: x + m.gamma[:HIDDEN]),
    "a number of the result": Model(lambda m, x: x * m.gamma, after=lambda m, x: x * m.gamma.pow(2).mean()),
}


@pytest.mark.parametrize("name", USED_OTHERWISE)
def test_a_parameter_that_is_used_otherwise_too_keeps_its_block_whole(name: str) -> None:
    with pytest.raises(PlanError, match="can't be sharded over 2 ranks"):
        planned(USED_OTHERWISE[name])


def test_a_parameter_that_two_blocks_share_keeps_them_whole() -> None:
    model = Model(lambda m, x: x * m.gamma)
    model.layers[1].gamma = model.layers[0].gamma
    with pytest.raises(PlanError, match="can't be sharded over 2 ranks"):
        planned(model)


def test_a_parameter_of_whole_features_stays_whole() -> None:
    model = Model(lambda m, x: x, (HIDDEN,), after=lambda m, x: x * m.gamma)
    records = {record.name: record for record in planned(model).parameters}
    assert records["layers.0.gamma"].dim is None
    assert records["layers.0.gamma"].gradient_rule is GradientRule.REPLICATED


@pytest.mark.parametrize("change", ["replicated", "other slices"])
def test_a_plan_of_a_user_that_cuts_it_otherwise_is_refused(change: str) -> None:
    model = Model(lambda m, x: x * m.gamma)
    plan = planned(model)
    whole = {"cut": Cut.REPLICATED, "dim": None, "gradient_rule": GradientRule.REPLICATED, "unit": 1}
    other = {"slices": (((6, 6),), ((0, 6),))}
    changed = tuple(
        replace(record, **(whole if change == "replicated" else other)) if record.name == "layers.0.gamma" else record
        for record in plan.parameters
    )
    with pytest.raises(PlanError, match=r"gamma|dry run"):
        check_plan(replace(plan, parameters=changed), model, 2, example={"x": torch.randn(2, 4, HIDDEN)})
