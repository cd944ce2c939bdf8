"""Each private name of torch's wrappers that `internals` uses is there, and does what the runtime takes it to do."""

import sys

import pytest
from torch import nn
from torch.distributed.fsdp import fully_shard
from tpinit.runtime.internals import wrapper_private


class Refused(Exception):
    pass


class Refuses:
    """What takes the place of the function that fully_shard wraps."""

    __name__ = "fully_shard"

    def __call__(self, module, *_, **__):
        self.marked = {key: dict(value) for key, value in vars(module).items() if key in keys()}
        raise Refused


def keys():
    contract = sys.modules["torch.distributed._composable.contract"]
    return [contract.STATE_KEY, contract.REGISTRY_KEY]


@pytest.mark.parametrize("name", wrapper_private.PRIVATE_NAMES)
def test_fully_shard_calls_what_is_in_its_cell_and_its_marks_can_be_removed(name):
    cell = wrapper_private.closure_cell(fully_shard, "func")
    module, present, refuses = nn.Linear(1, 1), cell.cell_contents, Refuses()
    cell.cell_contents = refuses
    try:
        for _ in range(2):  # a mark that stays makes the second call an AssertionError of torch
            with pytest.raises(Refused):
                fully_shard(module)
            wrapper_private.forget_fully_shard([module], refuses)
            assert not any(vars(module)[key] for key in keys())
        assert all(refuses.marked.values())
    finally:
        cell.cell_contents = present
