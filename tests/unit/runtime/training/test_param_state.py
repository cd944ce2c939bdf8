"""A master copy takes the elements of its parameter that someone set, and keeps the exact value of all others."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from tpinit.runtime.planning.schema import Cut, GradientRule, ParameterPlan
from tpinit.runtime.training.param_state import ParamState, adopt_edits


def state_of(values: torch.Tensor) -> ParamState:
    parameter = nn.Parameter(values.bfloat16())
    record = ParameterPlan(("weight",), tuple(values.shape), Cut.REPLICATED, None, GradientRule.REPLICATED)
    state = ParamState(parameter, parameter, record)
    state.add_master()
    with torch.no_grad():
        state.target.copy_(values)
    state.copy_back()
    return state


@pytest.mark.parametrize("shape", [(4, 8), (3, 5), (), (0,)])
def test_edits_win_over_the_master_copy(shape: tuple[int, ...]) -> None:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    state = state_of(values)
    adopt_edits([state])
    assert torch.equal(state.target, values)
    if values.numel():
        state.parameter.data.view(-1)[-1] = 7.0
        adopt_edits([state])
        assert float(state.target.detach().view(-1)[-1]) == 7.0
        assert torch.equal(state.target.view(-1)[:-1], values.view(-1)[:-1])


def test_a_gradient_that_was_taken_and_shown_keeps_its_exact_values_but_for_edits() -> None:
    state = state_of(torch.zeros(4))
    exact = torch.tensor([1.001, 2.002, 3.003, 4.004])
    state.target.grad = exact.clone()
    state.show_grad()
    assert state.parameter.grad is not None
    state.parameter.grad[1] = 9.0
    state.take_grad()
    state.take_grad()  # what was taken is not dropped
    assert state.target.grad is not None
    assert state.target.grad.tolist() == pytest.approx([1.001, 9.0, 3.003, 4.004], rel=1e-6)
    state.parameter.grad = torch.ones(4, dtype=torch.bfloat16)  # of a later backward
    state.accumulate()
    assert state.target.grad.tolist() == pytest.approx([2.001, 10.0, 4.003, 5.004], rel=1e-6)
    state.show_grad()
    state.parameter.grad = None  # dropped by the user
    state.take_grad()
    assert state.target.grad is None
