"""Each private name of torch.nn.init is there, and is what the functions of it call."""

import pytest
import torch
from torch.nn import init
from tpinit.runtime.internals import init_private

FUNCTIONS = {
    "torch.nn.init._no_grad_uniform_": (init.uniform_, init.xavier_uniform_),
    "torch.nn.init._no_grad_normal_": (init.normal_, init.xavier_normal_),
    "torch.nn.init._no_grad_trunc_normal_": (init.trunc_normal_,),
    "torch.nn.init._calculate_fan_in_and_fan_out": (init.kaiming_uniform_, init.kaiming_normal_),
}
OTHERS = {
    "eye_": lambda tensor: init.eye_(tensor),
    "orthogonal_": lambda tensor: init.orthogonal_(tensor),
    "sparse_": lambda tensor: init.sparse_(tensor, sparsity=0.5),
    "dirac_": lambda tensor: init.dirac_(tensor.view(2, 2, 1)),
}


class Seen(Exception):
    pass


@pytest.fixture
def refused(monkeypatch):
    """Refuse every tensor in torch.nn.init as torch has it."""
    names = [*(one.rpartition(".")[2] for one in init_private.PRIVATE_NAMES), *OTHERS]
    for name in names:
        monkeypatch.setattr(init, name, getattr(vars(init)[name], init_private._MARK, vars(init)[name]))

    def check(tensor):
        raise Seen

    init_private.check_before_draws(check)
    init_private.check_before_draws(lambda _: None)  # the first check stays


@pytest.mark.parametrize("name", init_private.PRIVATE_NAMES)
def test_functions_that_were_imported_before_call_it(name, refused):
    for function in FUNCTIONS[name]:
        with pytest.raises(Seen):
            function(torch.ones(2, 2))


@pytest.mark.parametrize("name", OTHERS)
def test_the_others_are_checked_by_name(name, refused):
    with pytest.raises(Seen):
        OTHERS[name](torch.ones(2, 2))


def test_constants_are_not_checked_and_every_other_function_is(refused):
    """A function that torch adds is here, or among those that fill each entry alike."""
    assert init.constant_(torch.empty(2), 3.0).tolist() == [3.0, 3.0]
    known = {function.__name__ for functions in FUNCTIONS.values() for function in functions} | set(OTHERS)
    fills = {name for name in init.__all__ if name.endswith("_")}
    assert fills - known == {"constant_", "ones_", "zeros_"}
