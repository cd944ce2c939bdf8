"""Each private name of torch that recording leans on is there, and does what the runtime takes it to do."""

import pytest
import torch
import torch.distributed as dist
from torch.distributed import _functional_collectives as functional
from torch.utils._python_dispatch import TorchDispatchMode
from tpinit.runtime.internals import record_private


class Calls(TorchDispatchMode):
    """Collects the operators that run inside of it, with their arguments."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.found.append((func, args, record_private.backward_node()))
        return func(*args, **(kwargs or {}))


@pytest.fixture
def world():
    record_private.start_fake_world(1, 2)
    yield
    dist.destroy_process_group()


def schemas(_):
    add = record_private.schema_arguments(torch.ops.aten.add_.Tensor)
    assert [(one.name, one.default, one.is_written) for one in add] == [
        ("self", None, True),
        ("other", None, False),
        ("alpha", 1, False),
    ]


def storages(_):
    tensor = torch.ones(2)
    same, other = tensor.view(1, 2), tensor.clone()
    number = record_private.storage_identity(tensor.untyped_storage())
    assert number == record_private.storage_identity(same.untyped_storage())
    assert number != record_private.storage_identity(other.untyped_storage())


def collectives(_):
    group = dist.group.WORLD
    with Calls() as calls:
        dist.all_reduce(torch.ones(2), op=dist.ReduceOp.MAX)
        dist.all_reduce(torch.ones(2))
    (maximum, args, _), (_, plain, _) = calls.found[1], calls.found[3]
    assert maximum.name() == "c10d::allreduce_"
    assert record_private.group_of(args[1]) == group
    assert [record_private.reduction_of(one[2]) for one in (args, plain)] == ["max", "sum"]


def functional_collectives(_):
    group = dist.group.WORLD
    with Calls() as calls:
        functional.all_reduce(torch.ones(2), "sum", group).wait()
    names = [func.name() for func, _, _ in calls.found]
    assert "_c10d_functional::all_reduce" in names
    assert set(record_private.WAITS) <= set(names)
    (args,) = [args for func, args, _ in calls.found if func.name() == "_c10d_functional::all_reduce"]
    assert record_private.group_named(args[2]) == group


def operators(_):
    for name, (kind, sent, filled) in record_private.COLLECTIVES.items():
        space, base = name.split("::")
        operator = getattr(getattr(torch.ops, space), base).default
        arguments = {one.name for one in record_private.schema_arguments(operator)}
        assert {sent, filled} - {""} <= arguments, name
        assert space in record_private.COLLECTIVE_NAMESPACES
        assert kind in ("all_reduce", "all_gather", "reduce_scatter", "broadcast", "all_to_all", "barrier")


def backwards(_):
    weight = torch.ones(2, requires_grad=True)
    loss = weight.exp().sum()
    assert record_private.backward_node() is None
    with Calls() as calls:
        loss.backward()
    nodes = [node.name() for func, _, node in calls.found if func is torch.ops.aten.mul.Tensor]
    assert nodes == ["ExpBackward0"]


def frames(_):
    import inspect

    seen = []

    class Watch(torch.autograd.Function):
        @staticmethod
        def forward(ctx, tensor):
            return tensor * 1

        @staticmethod
        def backward(ctx, grad):
            frame = inspect.currentframe()
            while frame is not None:
                seen.append(record_private.runs_backward(frame))
                frame = frame.f_back
            return grad

    Watch.apply(torch.ones(1, requires_grad=True)).backward()
    assert seen.count(True) == 1


def fake_world(_):
    assert (dist.get_rank(), dist.get_world_size(), dist.get_backend()) == (1, 2, "fake")
    tensor = torch.ones(2)
    dist.all_reduce(tensor)
    assert tensor.tolist() == [1, 1]


TESTS = {
    "OpOverload._schema.arguments": schemas,
    "UntypedStorage._cdata as identity": storages,
    "ProcessGroup.unbox": collectives,
    "torch.ops.c10d": operators,
    "torch.ops._c10d_functional": functional_collectives,
    "c10d.ReduceOp.op": collectives,
    "distributed_c10d._resolve_process_group": functional_collectives,
    "torch._C._current_autograd_node": backwards,
    "torch.autograd.graph._engine_run_backward": frames,
    "torch.testing._internal.distributed.fake_pg": fake_world,
}


@pytest.mark.parametrize("name", record_private.PRIVATE_NAMES)
def test_each_private_name_is_there_and_does_what_it_is_taken_to_do(name, world):
    TESTS[name](world)
