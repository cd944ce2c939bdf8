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


def test_the_probe_sees_an_offset_that_a_loss_does_not() -> None:
    """Cross-entropy is the same for logits that are all shifted by one number; the outputs are compared too."""
    from tpinit.runtime.init.probe import _different_output

    logits = torch.randn(2, 5, 11, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(10) % 11
    shifted = logits + 0.5
    loss = torch.nn.functional.cross_entropy
    assert torch.allclose(loss(logits.view(10, 11), labels), loss(shifted.view(10, 11), labels), atol=1e-6)
    assert _different_output([logits], [logits]) is None
    assert "max error" in str(_different_output([shifted], [logits]))
    assert "shapes" in str(_different_output([logits[:, :4]], [logits]))


def test_the_scalar_of_the_probe_sees_an_offset() -> None:
    from tpinit.runtime.init.probe import _loss

    class Shift(torch.nn.Module):
        def __init__(self, offset: float) -> None:
            super().__init__()
            self.offset = torch.nn.Parameter(torch.tensor(offset))

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return hidden + self.offset

    hidden = {"hidden": torch.randn(4, 8, generator=torch.Generator().manual_seed(0))}
    assert abs(float(_loss(Shift(0.5), hidden).detach()) - float(_loss(Shift(0.0), hidden).detach())) > 0.1
