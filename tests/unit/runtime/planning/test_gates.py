"""Gates of fake forwards: both branches of a condition, and what a zero hides, reach the result."""

from __future__ import annotations

import pytest
import torch
from tpinit.runtime.planning.analysis.gates import GatesOpen

ONE, OTHER = torch.arange(1.0, 7.0).view(2, 3), torch.arange(7.0, 13.0).view(2, 3)


@pytest.mark.parametrize("condition", [torch.tensor(True), torch.tensor([[True], [False]])])
def test_both_branches_of_a_condition_reach_the_result(condition: torch.Tensor) -> None:
    with GatesOpen():
        found = torch.where(condition, ONE, OTHER)
    chosen, hidden = torch.where(condition, ONE, OTHER), torch.where(condition, OTHER, ONE)
    assert torch.equal(found, chosen + 0.5 * hidden)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (ONE, torch.tensor(0.0)),
        (ONE, torch.full_like(ONE, float("-inf"))),
        (ONE, torch.full_like(ONE, torch.finfo(torch.float32).min)),
        (ONE.long(), OTHER.long()),
    ],
    ids=["a constant", "infinity", "a mask", "integers"],
)
def test_a_mask_or_a_constant_stays_hidden(one: torch.Tensor, other: torch.Tensor) -> None:
    condition = torch.tensor([[True], [False]])
    with GatesOpen():
        found = torch.where(condition, one, other)
    assert torch.equal(found, torch.where(condition, one, other))


@pytest.mark.parametrize(
    "gate", [torch.zeros(()), torch.zeros(2, 1), torch.zeros((), dtype=torch.bool), torch.nn.Parameter(torch.zeros(1))]
)
def test_a_gate_that_is_zero_lets_half_through(gate: torch.Tensor) -> None:
    with GatesOpen(), torch.no_grad():
        assert torch.equal(gate * ONE, 0.5 * ONE)
        assert torch.equal(ONE * gate, 0.5 * ONE)
        assert torch.equal(ONE.clone().mul_(gate), 0.5 * ONE)
        if gate.is_floating_point():
            assert torch.equal(torch.lerp(ONE, OTHER, gate), torch.lerp(ONE, OTHER, 0.5))


@pytest.mark.parametrize("factor", [torch.ones(()), torch.tensor([[0.0], [1.0]]), torch.tensor([0.0, 0.0, 0.0])])
def test_no_other_product_changes(factor: torch.Tensor) -> None:
    """A vector of zeros has an element for each feature: on a rank it may be the part of one that is not zero."""
    with GatesOpen():
        assert torch.equal(factor * ONE, ONE * factor)
    with GatesOpen():
        found = factor * ONE
    assert torch.equal(found, factor * ONE)
