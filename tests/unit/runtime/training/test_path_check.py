"""The hash of the operations of a forward: equal for one path of the code, different for another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from tpinit.runtime.parallel.forward_scope import ForwardScope, scope_of
from tpinit.runtime.planning import plan_model
from tpinit.runtime.planning.check.rehearsal import Rehearsal
from tpinit.runtime.training.path_check import PathCheck


class Rehearsed(Rehearsal):
    """A rehearsal that lists the inputs and attributes that it is asked about, beside checking them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model, plan_model(model, 2, 0, example={"x": torch.randn(3, 8)}))
        self.asked: list[tuple[dict[str, Any], dict[str, Any]]] = []

    def check(self, inputs: Any, like: nn.Module, attributes: Any) -> None:
        self.asked.append((dict(inputs), dict(attributes)))
        super().check(inputs, like, attributes)


class Net(nn.Module):
    """A pair of layers with `step` between them, a count of its calls, and a log of them."""

    def __init__(self, step: Callable[[Any, torch.Tensor, Any], torch.Tensor]) -> None:
        super().__init__()
        self.up, self.down, self.step = nn.Linear(8, 16), nn.Linear(16, 8), step
        self.calls, self.log, self.factor = 0, [0], 1.0

    def forward(self, x: torch.Tensor, flag: Any = None) -> torch.Tensor:
        self.calls += 1
        self.log.append(self.calls)
        hidden: torch.Tensor = self.down(self.step(self, self.up(x), flag))
        return hidden


def checked(step: Callable[[Any, torch.Tensor, Any], torch.Tensor]) -> tuple[Net, Rehearsed]:
    """Return a model (whole: the check does not care) with a path check, and its rehearsal."""
    model = Net(step)
    rehearsal = Rehearsed(model)
    check = PathCheck(rehearsal)
    ForwardScope(model)
    check.remember(model)
    scope = scope_of(model)
    assert scope is not None
    scope.add(check.enter, check.leave)
    return model, rehearsal


def test_each_path_is_rehearsed_once() -> None:
    model, rehearsal = checked(lambda net, h, flag: h.relu() if flag else h.tanh())
    for flag in (None, False, True, True, None):
        for rows in (3, 5, 7):
            model(torch.randn(rows, 8), flag=flag)
    assert [inputs["flag"] for inputs, _ in rehearsal.asked] == [None, True]
    with torch.no_grad():
        model(torch.randn(3, 8))
    assert len(rehearsal.asked) == 3  # without gradients a forward may be another


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda h: h.sum(0, keepdim=True) + h, lambda h: h.sum(-1, keepdim=True) + h),
        (lambda h: h * 0.0, lambda h: h * 0.5),
        (lambda h: h.clamp(min=0.0), lambda h: h.clamp(max=0.0)),
        (lambda h: h.float().tanh(), lambda h: h.double().tanh().float()),
    ],
    ids=["dimension", "zero", "keyword", "dtype"],
)
def test_arguments_tell_paths_apart(
    one: Callable[[torch.Tensor], torch.Tensor], other: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    model, rehearsal = checked(lambda net, h, flag: h.tanh())
    rehearsal.check = lambda inputs, *_: rehearsal.asked.append((inputs, {}))  # type: ignore[method-assign]  # counts
    model.step = lambda net, h, flag: one(h)
    model(torch.randn(3, 8))
    model.step = lambda net, h, flag: other(h)
    model(torch.randn(3, 8))
    assert len(rehearsal.asked) == 2


def test_a_rehearsal_has_the_attributes_before_the_forward_and_leaves_them() -> None:
    model, rehearsal = checked(lambda net, h, flag: h.relu() if net.calls == 4 else h.tanh())
    for _ in range(4):
        model(torch.randn(3, 8))
    assert [attributes.get("", {}) for _, attributes in rehearsal.asked] == [{}, {"calls": 3, "log": [0, 1, 2, 3]}]
    assert (rehearsal.model.calls, rehearsal.model.log, model.calls) == (0, [0], 4)


def test_an_interrupted_forward_leaves_no_mode_behind() -> None:
    def interrupted(net: Any, hidden: torch.Tensor, flag: Any) -> torch.Tensor:
        if flag == "interrupt":
            raise KeyboardInterrupt
        if flag == "error":
            raise ValueError("stopped")
        return hidden.tanh()

    model, rehearsal = checked(interrupted)
    with pytest.raises(ValueError, match="stopped"):
        model(torch.randn(3, 8), flag="error")
    with pytest.raises(KeyboardInterrupt):
        model(torch.randn(3, 8), flag="interrupt")
    scope = scope_of(model)
    assert scope is not None
    scope.reset()  # as the engine does before the next forward
    model(torch.randn(3, 8))
    model(torch.randn(3, 8))
    assert len(rehearsal.asked) == 1
