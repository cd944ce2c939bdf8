"""Each private name of torch's modes and compiler is there, and does what the runtime takes it to do."""

import sys
import types

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from tpinit.runtime.internals import mode_private


def modes():
    class Mode(TorchFunctionMode):
        pass

    with Mode() as outer, Mode() as inner:
        assert mode_private.function_modes() == [outer, inner]
    assert mode_private.function_modes() == []


def dispatch_modes():
    class Mode(TorchDispatchMode):
        pass

    with Mode() as outer, Mode() as inner:
        assert mode_private.dispatch_modes() == [outer, inner]
    assert mode_private.dispatch_modes() == []


def compiled_names():
    """Compile a function with a graph break, in a module of its own."""
    module = types.ModuleType("module_of_a_test")
    sys.modules[module.__name__] = module
    source = "import torch\ndef function(x):\n    y = x + 1\n    torch._dynamo.graph_break()\n    return y * 2\n"
    exec(compile(source, module.__name__, "exec"), vars(module))
    before = set(vars(module))
    try:
        torch.compile(module.function, backend="eager")(torch.ones(2))
        return {name for name, value in vars(module).items() if name not in before and callable(value)}
    finally:
        del sys.modules[module.__name__]


def compiled():
    added = compiled_names()
    assert added
    for prefix in mode_private.COMPILED_NAMES:
        assert any(name.startswith(prefix) for name in added), added
    assert all(name.startswith((*mode_private.COMPILED_NAMES, "__import_")) for name in added), added


TESTS = {
    "torch.overrides._get_current_function_mode_stack": modes,
    "torch.utils._python_dispatch._get_current_dispatch_mode_stack": dispatch_modes,
    "__compiled_fn": compiled,
    "__resume_at": compiled,
}


@pytest.mark.parametrize("name", mode_private.PRIVATE_NAMES)
def test_each_private_name_is_there_and_does_what_it_is_taken_to_do(name):
    TESTS[name]()
