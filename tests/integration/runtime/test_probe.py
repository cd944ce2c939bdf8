"""The probe runs in training where two runs there come out the same, and in evaluation mode elsewhere."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional
from tpinit.runtime.init.probe import _is_deterministic_in_training
from tpinit.runtime.planning.analysis.dropout_off import DropoutDisabled, preserved_rng


class Trained(nn.Module):
    """One layer, and in training something more."""

    def __init__(self, more: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.layer, self.more = nn.Linear(8, 8), more

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.layer(x)
        return self.more(hidden) if self.training else hidden


def refuse(_: torch.Tensor) -> torch.Tensor:
    raise ValueError("this batch is too short to train on")


@pytest.mark.parametrize(
    ("more", "alike"),
    [
        (lambda x: x.softmax(-1), True),
        (lambda x: functional.dropout(x, 0.5), True),
        (lambda x: x + torch.randn_like(x), False),
        (refuse, False),
    ],
)
def test_a_model_is_probed_in_training_where_it_does_the_same_twice(
    more: Callable[[torch.Tensor], torch.Tensor], alike: bool
) -> None:
    with preserved_rng(), DropoutDisabled():
        assert _is_deterministic_in_training(Trained(more), {"x": torch.randn(2, 3, 8)}) is alike
