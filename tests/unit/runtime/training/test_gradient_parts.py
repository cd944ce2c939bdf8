"""A part of a gradient computes entry by entry as a plain tensor does, and refuses everything else."""

from __future__ import annotations

import copy
import operator
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from tpinit.runtime.errors import EngineError
from tpinit.runtime.planning.schema import Cut, GradientRule, ParameterPlan
from tpinit.runtime.training.gradient_parts import ELEMENTWISE, GradientPart, mark_part, plain_gradient

RECORD = ParameterPlan(("layer.weight",), (8, 4), Cut.COLUMN, 0, GradientRule.PARTIAL)
WHOLE = torch.rand(8, 4, generator=torch.Generator().manual_seed(0)) * 0.9 + 0.05
OTHER = WHOLE.flip(1).contiguous()
_NOT_OF_FLOATS = {"or": operator.or_, "and": operator.and_, "xor": operator.xor, "invert": operator.invert}
_OPERATORS = {"floordiv": operator.floordiv, "truediv": operator.truediv, "mod": operator.mod}
_THREE = ("addcmul", "addcdiv", "lerp")
_SCALARS: dict[str, tuple[Any, ...]] = {
    "clamp": (0.1, 0.5),
    "clip": (0.1, 0.5),
    "clamp_min": (0.3,),
    "clamp_max": (0.3,),
}


def part_of(whole: torch.Tensor) -> GradientPart:
    return mark_part(whole[:4].clone(), RECORD)


def applied(name: str, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return the function of a name, of a tensor and as many others of its shape as it takes."""
    if name in _NOT_OF_FLOATS:
        flags = (one > 0.5, other > 0.5)
        return _NOT_OF_FLOATS[name](*flags[: 1 if name == "invert" else 2])
    if name in _OPERATORS:
        return _OPERATORS[name](one, other)
    if name in ("where", "masked_fill"):
        return torch.where(one > 0.5, one, other) if name == "where" else one.masked_fill(other > 0.5, 2.0)
    function = getattr(torch, name, None) or getattr(torch.Tensor, name)
    if name in _SCALARS:
        return function(one, *_SCALARS[name])
    if name in _THREE:
        return function(one, other, other)
    return function(one) if _takes_one(function) else function(one, other)


def _takes_one(function: Callable[..., torch.Tensor]) -> bool:
    try:
        function(WHOLE)
    except TypeError:
        return False
    return True


@pytest.mark.parametrize("name", ELEMENTWISE.split())
def test_a_function_that_is_let_through_computes_the_part_of_the_whole_result(name: str) -> None:
    """A function that reads other entries would give another part: the list is right, each name by itself."""
    whole = applied(name, WHOLE, OTHER)
    found = applied(name, part_of(WHOLE), OTHER[:4])
    assert type(found) is GradientPart
    torch.testing.assert_close(plain_gradient(found), whole[:4])  # torch's kernels round the rest of a row otherwise


@pytest.mark.parametrize("name", ["softmax", "cumsum", "flip", "sort", "roll"])
def test_the_comparison_with_the_whole_result_finds_functions_that_read_other_entries(name: str) -> None:
    arguments = {"softmax": (0,), "cumsum": (0,), "flip": ((0,),), "sort": (0,), "roll": (1,)}[name]
    results = [getattr(torch, name)(one, *arguments) for one in (WHOLE, WHOLE[4:])]
    whole, part = (one if isinstance(one, torch.Tensor) else one[0] for one in results)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(part, whole[4:])


REFUSED: dict[str, Callable[[Any], Any]] = {
    "norm": lambda part: part.norm(),
    "linalg": lambda part: torch.linalg.vector_norm(part),
    "norm of a result": lambda part: (2 * part - OTHER[:4]).square().sum(),
    "norm of .data": lambda part: part.data.norm(),
    "norm of a copy": lambda part: part.detach().clone().double().norm(),
    "mean over rows": lambda part: part - part.mean(dim=1, keepdim=True),
    "greatest": lambda part: part.abs().max(),
    "any NaN": lambda part: part.isnan().any(),
    "product": lambda part: part @ part,
    "softmax": lambda part: part.softmax(-1),
    "normalize": lambda part: functional.normalize(part),
    "row": lambda part: part[0],
    "write a row": lambda part: part.__setitem__(0, 1.0),
    "rows": lambda part: list(part),
    "view": lambda part: part.view(-1),
    "transpose": lambda part: part.T,
    "cat": lambda part: torch.cat([part, part]),
    "vector": lambda part: nn.utils.parameters_to_vector([part]),
    "numpy": lambda part: part.numpy(),
    "np.asarray": lambda part: np.asarray(part),
    "tolist": lambda part: part.tolist(),
    "a draw": lambda part: part.add_(torch.randn_like(part)),
    "a loss": lambda part: functional.mse_loss(part, OTHER[:4]),
    "another shape": lambda part: part + torch.ones(2, 1, 1),
    "another size": lambda part: torch.allclose(part, torch.zeros(())),
    "norms of a list": lambda part: torch._foreach_norm([part]),
    "written into a buffer": lambda part: torch.zeros(4, 4).add_(part).norm(),
    "a list of results": lambda part: torch._foreach_mul([OTHER[:4], part], 2.0)[1].norm(),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_take_the_part_for_the_whole_is_refused(name: str) -> None:
    REFUSED[name](WHOLE[:4].clone())  # torch runs it on a plain tensor
    with pytest.raises(EngineError, match=r"of the gradient of layer.weight: .* \[4, 4\] of \[8, 4\], .* call"):
        REFUSED[name](part_of(WHOLE))


def test_it_is_the_gradient_of_a_parameter_as_a_plain_tensor_is() -> None:
    """No copy, accumulated in place by torch, kept while nobody holds it, and dropped as any other."""
    parameter = nn.Parameter(WHOLE[:4].clone())
    parameter.square().sum().backward()
    plain = parameter.grad
    assert plain is not None
    parameter.grad = mark_part(plain, RECORD)
    assert parameter.grad.data_ptr() == plain.data_ptr()
    parameter.square().sum().backward()
    assert type(parameter.grad) is GradientPart
    assert torch.equal(plain, 4 * parameter.detach())
    nn.utils.clip_grad_value_([parameter], 0.5)
    nn.utils.clip_grad_value_([parameter], 0.25, foreach=True)
    assert plain.max() == 0.25
    parameter.grad[parameter.grad > 0.2] = 0.0
    parameter.grad.data.mul_(2)
    assert plain.max() <= 0.4
    optimizer = torch.optim.SGD([parameter], foreach=True)
    optimizer.zero_grad(set_to_none=False)
    assert not plain.any()
    parameter.grad = parameter.grad + 1
    assert parameter.grad.requires_grad is False
    optimizer.zero_grad()
    assert parameter.grad is None


def test_copies_and_pickles_keep_the_values() -> None:
    part = part_of(WHOLE)
    assert type(copy.deepcopy(part)) is GradientPart
    read = pickle.loads(pickle.dumps(part))
    assert type(read) is torch.Tensor
    assert torch.equal(read, WHOLE[:4])
    assert torch.equal(part, WHOLE[:4])
    assert "GradientPart" in repr(part)
