"""Steps around the outermost forward of a converted model run once, in order, and whatever the forward does."""

import copy

import pytest
import torch
from torch import nn
from tpinit.runtime.parallel.forward_scope import ForwardScope, scope_of


class Model(nn.Module):
    """Calls itself once, and raises where it is told to."""

    def __init__(self):
        super().__init__()
        self.depth = 0
        self.raises = False

    def forward(self, hidden):
        if self.raises:
            raise ValueError("in the forward")
        self.depth += 1
        return self(hidden) if self.depth == 1 else hidden + 1


def recorded(model):
    seen = []
    scope = ForwardScope(model)
    scope.add(lambda *_: seen.append("enter 1"), lambda _, output: (seen.append("leave 1"), output)[1])
    scope.add(lambda *_: seen.append("enter 2"), lambda _, output: (seen.append("leave 2"), output)[1])
    return scope, seen


def test_steps_run_once_around_a_nested_forward():
    model = Model()
    scope, seen = recorded(model)
    assert scope_of(model) is scope
    assert model(torch.zeros(1)) == 1
    assert seen == ["enter 1", "enter 2", "leave 2", "leave 1"]
    assert not scope.active


def test_a_first_step_enters_before_the_others_and_leaves_after_them():
    model = Model()
    scope, seen = recorded(model)
    scope.add(lambda *_: seen.append("enter 0"), lambda _, output: (seen.append("leave 0"), output)[1], first=True)
    model(torch.zeros(1))
    assert seen == ["enter 0", "enter 1", "enter 2", "leave 2", "leave 1", "leave 0"]


def test_steps_leave_after_a_forward_that_raised():
    model = Model()
    scope, seen = recorded(model)
    model.raises = True
    for _ in range(2):
        with pytest.raises(ValueError, match="in the forward"):
            model(torch.zeros(1))
    assert seen == ["enter 1", "enter 2", "leave 2", "leave 1"] * 2
    assert not scope.active


def test_a_step_that_raises_keeps_the_forward_from_starting():
    model = Model()
    scope, seen = recorded(model)

    def refuse(*_):
        raise RuntimeError("refused")

    scope.add(refuse)
    with pytest.raises(RuntimeError, match="refused"):
        model(torch.zeros(1))
    assert model.depth == 0
    assert not scope.active
    assert seen == ["enter 1", "enter 2", "leave 2", "leave 1"]


def test_a_forward_that_was_interrupted_is_forgotten_on_reset():
    model = Model()
    scope, seen = recorded(model)
    scope._depth = 1  # as KeyboardInterrupt leaves it
    assert model(torch.zeros(1)) == 1
    assert seen == []
    scope.reset()
    model.depth = 0
    model(torch.zeros(1))
    assert seen == ["enter 1", "enter 2", "leave 2", "leave 1"]


def test_a_copied_model_has_a_scope_of_its_own():
    model = Model()
    scope = ForwardScope(model)
    twin = copy.deepcopy(model)
    assert scope_of(twin) is not None
    assert scope_of(twin) is not scope
    assert scope_of(nn.Linear(1, 1)) is None
