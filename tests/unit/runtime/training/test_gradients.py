"""The gradient norm counts a slice that several ranks hold once, by indices that are computed once."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from tpinit.runtime.groups.process_groups import GroupView
from tpinit.runtime.planning.schema import Cut, GradientRule, ParameterPlan, Plan
from tpinit.runtime.slicing import local_part
from tpinit.runtime.training.gradients import global_norm
from tpinit.runtime.training.param_state import ParamState, make_param_states

# Four key/value heads of two rows over three ranks, two heads each: heads 1 and 2 are on two ranks.
SHARED = (((0, 4),), ((2, 4),), ((6, 2), (4, 2)))
CPU = torch.device("cpu")


def record(dim: int, slices: tuple[tuple[tuple[int, int], ...], ...] = SHARED) -> ParameterPlan:
    shape = (8, 5) if dim == 0 else (5, 8)
    return ParameterPlan(("weight",), shape, Cut.COLUMN, dim, GradientRule.PARTIAL, slices=slices)


def states_of(one: ParameterPlan, tp_rank: int, gradient: torch.Tensor) -> list[ParamState]:
    plan = Plan(len(one.slices), tp_rank, (one,))
    model = nn.Module()
    model.register_parameter("weight", nn.Parameter(local_part(torch.zeros(one.shape), one, plan.tp_size, tp_rank)))
    states = make_param_states(model, plan, None)
    states[0].target.grad = local_part(gradient, one, plan.tp_size, tp_rank).clone()
    return states


@pytest.mark.parametrize("dim", [0, 1])
def test_the_norms_of_all_ranks_add_up_to_that_of_the_full_gradient(dim: int) -> None:
    one = record(dim)
    gradient = torch.randn(one.shape, generator=torch.Generator().manual_seed(0))
    squares, held = [], 0.0
    for tp_rank in range(3):
        states = states_of(one, tp_rank, gradient)
        squares.append(float(global_norm(states, GroupView((tp_rank,), 0, None), CPU).norm()) ** 2)
        assert states[0].target.grad is not None
        held += float(states[0].target.grad.norm()) ** 2
    assert sum(squares) == pytest.approx(float(gradient.norm()) ** 2, rel=1e-6)
    assert held > 1.1 * sum(squares)  # the negative control: every rank's own slice, shared heads counted twice


def test_a_rank_that_shares_nothing_counts_its_gradient_without_a_copy() -> None:
    gradient = torch.ones(8, 5)
    assert states_of(record(0), 0, gradient)[0].counted is None
    shared = states_of(record(0), 1, gradient)[0].counted
    assert shared is not None
    assert shared.tolist() == [2, 3]  # its rows 4 and 5: rank 0 holds 2 and 3
    disjoint = record(0, (((0, 4),), ((4, 4),)))
    assert all(states_of(disjoint, rank, gradient)[0].counted is None for rank in range(2))


def test_an_update_does_not_compute_the_indices_again(monkeypatch: pytest.MonkeyPatch) -> None:
    gradient = torch.ones(8, 5)
    states = states_of(record(0), 1, gradient)
    counted = states[0].counted

    def fail(*_: object) -> None:
        raise AssertionError("the pieces of a rank were computed in an update")

    monkeypatch.setattr(ParameterPlan, "pieces_of", fail)
    for _ in range(2):
        assert float(global_norm(states, GroupView((1,), 0, None), CPU).norm()) == pytest.approx(10**0.5)
    assert states[0].counted is counted
    with pytest.raises(AssertionError):  # the negative control: building the states does compute them
        states_of(record(0), 1, gradient)
