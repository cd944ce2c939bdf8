"""Parameters that a rank leaves out: zeros while the module runs, themselves at any other time."""

from __future__ import annotations

import copy

import pytest
import torch
from tpinit.runtime.parallel import zero_in_forward


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = (torch.nn.Parameter(torch.full((3,), value)) for value in (2.0, 5.0))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        if not len(hidden):
            raise ValueError("nothing")
        return hidden * self.weight + self.bias


def test_a_parameter_is_zero_inside_and_itself_outside() -> None:
    block = Block()
    zero_in_forward(block, ["bias"])
    output = block(torch.ones(3))
    assert output.tolist() == [2.0] * 3
    output.sum().backward()
    assert block.weight.grad is not None
    assert block.bias.grad is None
    assert block.bias.tolist() == block.state_dict()["bias"].tolist() == [5.0] * 3
    assert dict(block.named_parameters()).keys() == {"weight", "bias"}


def test_it_is_itself_again_after_a_forward_that_raises() -> None:
    block = Block()
    zero_in_forward(block, ["bias"])
    with pytest.raises(ValueError, match="nothing"):
        block(torch.ones(0))
    assert isinstance(block.bias, torch.nn.Parameter)


def test_a_copy_leaves_out_its_own() -> None:
    block = Block()
    zero_in_forward(block, ["bias"])
    again = copy.deepcopy(block)
    with torch.no_grad():
        again.bias.fill_(7.0)
    assert again(torch.ones(3)).tolist() == [2.0] * 3
    assert again.bias.tolist() == [7.0] * 3
    assert block.bias.tolist() == [5.0] * 3
