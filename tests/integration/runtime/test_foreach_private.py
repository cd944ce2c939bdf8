"""Each private name of torch's functions over lists is there, and does what the runtime takes it to do."""

from typing import ClassVar

import pytest
import torch
from torch import nn
from tpinit.runtime.internals import foreach_private


class Gradient(torch.Tensor):
    seen: ClassVar[list] = []

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        cls.seen.append(func)
        return super().__torch_function__(func, types, args, kwargs or {})


def functions():
    found = list(foreach_private.foreach_functions())
    assert torch._foreach_mul_ in found
    assert torch._foreach_norm not in found
    one, other = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])
    torch._foreach_mul_([one, other], 2.0)
    assert (one.tolist(), other.tolist()) == ([2.0, 4.0], [6.0, 8.0])


def supported_types():
    parameter = nn.Parameter(torch.ones(2))
    parameter.grad = torch.ones(2).as_subclass(Gradient)
    nn.utils.clip_grads_with_norm_([parameter], 1.0, torch.tensor(2.0))
    assert torch._foreach_mul_ not in Gradient.seen
    types = torch.utils._foreach_utils._foreach_supported_types
    before = list(types)
    try:
        foreach_private.support_foreach(Gradient)
        foreach_private.support_foreach(Gradient)
        assert types.count(Gradient) == 1
        nn.utils.clip_grads_with_norm_([parameter], 1.0, torch.tensor(2.0))
    finally:
        types[:] = before
    assert torch._foreach_mul_ in Gradient.seen
    assert torch.allclose(parameter.grad.as_subclass(torch.Tensor), torch.tensor(0.25))


TESTS = {
    "torch._foreach_*": functions,
    "torch.utils._foreach_utils._foreach_supported_types": supported_types,
}


@pytest.mark.parametrize("name", foreach_private.PRIVATE_NAMES)
def test_each_private_name_is_there_and_does_what_it_is_taken_to_do(name):
    TESTS[name]()
