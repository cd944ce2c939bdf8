"""What can't be drawn one parameter at a time is refused by name; what can is drawn as in the whole model."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from tpinit.runtime.errors import LoadError
from tpinit.runtime.loading.meta_init import build_meta_model
from tpinit.runtime.planning.schema import Cut, GradientRule, ParameterPlan


class One(nn.Module):
    def __init__(self, shape: tuple[int, ...], draw: Callable[[torch.Tensor], object]) -> None:
        super().__init__()
        self.before = nn.Linear(5, 3)
        self.weight = nn.Parameter(torch.empty(shape))
        with torch.no_grad():
            draw(self.weight)
        self.after = nn.Linear(7, 3)


def _pad(weight: torch.Tensor) -> None:
    nn.init.normal_(weight)
    weight[3].fill_(0)


DRAWS: dict[str, tuple[tuple[int, ...], Callable[[torch.Tensor], object]]] = {
    "normal": ((130, 70), lambda weight: torch.nn.init.normal_(weight, 1.0, 0.02)),
    "many, in no groups of 16": ((1201, 1777), lambda weight: torch.nn.init.normal_(weight)),
    "three dimensions": ((5, 301, 1009), lambda weight: torch.nn.init.normal_(weight)),
    "uniform": ((1301, 1007), lambda weight: torch.nn.init.kaiming_uniform_(weight)),
    "truncated": ((130, 70), lambda weight: torch.nn.init.trunc_normal_(weight, std=0.02)),
    "orthogonal": ((30, 70), lambda weight: torch.nn.init.orthogonal_(weight)),
    "few": ((3, 4), lambda weight: torch.nn.init.normal_(weight)),
    "a row of zeros": ((130, 70), _pad),
    "written over": ((90, 30), lambda weight: nn.init.normal_(nn.init.trunc_normal_(weight))),
    "twice": ((130, 70), lambda weight: torch.nn.init.normal_(nn.init.uniform_(weight)).mul_(0.5)),
    "computed": ((130, 70), lambda weight: weight.copy_(torch.arange(9100.0).view(130, 70))),
}


@pytest.mark.parametrize("name", DRAWS)
def test_every_slice_is_that_of_the_whole(name: str) -> None:
    shape, draw = DRAWS[name]
    torch.manual_seed(9)
    whole = One(shape, draw)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    blank = build_meta_model(lambda: One(shape, draw), 9)
    blank.check_drawn()
    blank.make_placeholders()
    for dim in (None, *range(len(shape))):
        cut = Cut.REPLICATED if dim is None else Cut.COLUMN
        record = ParameterPlan(("weight",), shape, cut, dim, GradientRule.SHARDED)
        for rank in range(3):
            out = torch.empty(record.local_shape(3, rank))
            blank.draw_into(out, record, 3, rank)
            expected = whole.weight.detach()
            for begin, length in record.pieces_of(3, rank):
                expected = expected.narrow(dim or 0, begin, length)
            assert torch.equal(out, expected)
    last = ParameterPlan(("after.weight",), (3, 7), Cut.REPLICATED, None, GradientRule.REPLICATED)
    out = torch.empty(3, 7)
    blank.draw_into(out, last, 3, 0)
    assert torch.equal(out, whole.after.weight)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("draw", "words"),
    [
        (lambda weight: weight.copy_(torch.empty(8, 8)), "another parameter"),
        (lambda weight: weight.normal_(generator=torch.Generator().manual_seed(1)), "generator of its own"),
        (lambda weight: None, "leaves it empty"),
    ],
)
def test_what_can_t_be_drawn_alone_is_refused_by_name(draw: Callable[[torch.Tensor], object], words: str) -> None:
    with pytest.raises(LoadError, match="weight") as error:
        build_meta_model(lambda: One((8, 8), draw), 9).check_drawn()
    assert words in str(error.value)


def test_numbers_that_are_drawn_like_a_parameter_are_refused() -> None:
    with pytest.raises(LoadError, match="build the whole model"):
        build_meta_model(lambda: One((8, 8), torch.randn_like), 9)


def test_nothing_is_drawn_for_a_checkpoint() -> None:
    blank = build_meta_model(lambda: One((8, 8), nn.init.orthogonal_))
    assert all(one.is_meta for one in blank.model.parameters())
