"""Private names of torch that recording a step needs: schemas, collectives, autograd's node, a fake world."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

__all__ = [
    "COLLECTIVES",
    "COLLECTIVE_NAMESPACES",
    "PRIVATE_NAMES",
    "SchemaArgument",
    "WAITS",
    "backward_node",
    "group_named",
    "group_of",
    "reduction_of",
    "runs_backward",
    "schema_arguments",
    "start_fake_world",
    "storage_identity",
]

PRIVATE_NAMES: dict[str, str] = {
    "OpOverload._schema.arguments": "all arguments of an operator in order, defaults included",
    "UntypedStorage._cdata as identity": "one number for a storage, whichever Python object shows it",
    "ProcessGroup.unbox": "the group in an argument of a c10d operator",
    "torch.ops.c10d": "the operators between ranks by their names, whose results are what they send and fill",
    "torch.ops._c10d_functional": "the same, of the functional collectives",
    "c10d.ReduceOp.op": "the number of the reduction in an argument of a c10d operator",
    "distributed_c10d._resolve_process_group": "the group in an argument of a _c10d_functional operator",
    "torch._C._current_autograd_node": "the node that the running backward evaluates",
    "torch.autograd.graph._engine_run_backward": "the frame below which a backward calls operators",
    "torch.testing._internal.distributed.fake_pg": "a process group whose collectives send nothing",
}
"""Every private name, and private behaviour, of torch that recording leans on; and what for."""


COLLECTIVE_NAMESPACES = ("c10d", "_c10d_functional")
"""The namespaces of the operators between ranks."""

WAITS = ("_c10d_functional::wait_tensor", "_c10d_functional::_wrap_tensor_autograd")
"""The operators that wait for a collective, at once or at the next read, and return what they were given."""

COLLECTIVES: dict[str, tuple[str, str, str]] = {
    "c10d::allreduce_": ("all_reduce", "tensors", "tensors"),
    "c10d::allreduce_coalesced_": ("all_reduce", "tensors", "tensors"),
    "c10d::allgather_": ("all_gather", "input_tensors", "output_tensors"),
    "c10d::_allgather_base_": ("all_gather", "input_tensor", "output_tensor"),
    "c10d::allgather_coalesced_": ("all_gather", "input_list", "output_lists"),
    "c10d::allgather_into_tensor_coalesced_": ("all_gather", "inputs", "outputs"),
    "c10d::reduce_scatter_": ("reduce_scatter", "input_tensors", "output_tensors"),
    "c10d::_reduce_scatter_base_": ("reduce_scatter", "input_tensor", "output_tensor"),
    "c10d::reduce_scatter_tensor_coalesced_": ("reduce_scatter", "inputs", "outputs"),
    "c10d::broadcast_": ("broadcast", "tensors", "tensors"),
    "c10d::alltoall_": ("all_to_all", "input_tensors", "output_tensors"),
    "c10d::alltoall_base_": ("all_to_all", "input", "output"),
    "c10d::barrier": ("barrier", "", ""),
    "c10d::monitored_barrier_": ("barrier", "", ""),
    "_c10d_functional::all_reduce": ("all_reduce", "input", ""),
    "_c10d_functional::all_reduce_": ("all_reduce", "input", "input"),
    "_c10d_functional::all_reduce_coalesced": ("all_reduce", "inputs", ""),
    "_c10d_functional::all_reduce_coalesced_": ("all_reduce", "inputs", "inputs"),
    "_c10d_functional::all_gather_into_tensor": ("all_gather", "input", ""),
    "_c10d_functional::all_gather_into_tensor_coalesced": ("all_gather", "inputs", ""),
    "_c10d_functional::all_gather_into_tensor_out": ("all_gather", "input", "out"),
    "_c10d_functional::reduce_scatter_tensor": ("reduce_scatter", "input", ""),
    "_c10d_functional::reduce_scatter_tensor_coalesced": ("reduce_scatter", "inputs", ""),
    "_c10d_functional::reduce_scatter_tensor_out": ("reduce_scatter", "input", "out"),
    "_c10d_functional::broadcast": ("broadcast", "input", ""),
    "_c10d_functional::broadcast_": ("broadcast", "input", "input"),
    "_c10d_functional::all_to_all_single": ("all_to_all", "input", ""),
}
"""The kind of each operator between ranks, and the arguments that it sends and that it fills ("": what it returns)."""


@dataclass(frozen=True, slots=True)
class SchemaArgument:
    """An argument in an operator's schema. `default` is its default value, None where there is none."""

    name: str
    default: Any
    is_written: bool


def schema_arguments(operator: Any) -> tuple[SchemaArgument, ...]:
    """Return all arguments of an operator in the order of its schema, those that are keywords only among them."""
    return tuple(
        SchemaArgument(
            one.name,
            one.default_value if one.has_default_value() else None,
            one.alias_info is not None and bool(one.alias_info.is_write),
        )
        for one in operator._schema.arguments
    )


def storage_identity(storage: torch.UntypedStorage) -> int:
    """Return a number that is equal for two objects of one storage, while it lives."""
    return int(storage._cdata)


def group_of(argument: Any) -> dist.ProcessGroup:
    """Return the process group that is an argument of a c10d operator."""
    found: dist.ProcessGroup = dist.ProcessGroup.unbox(argument)
    return found


def group_named(name: Any) -> dist.ProcessGroup:
    """Return the process group that is an argument of a _c10d_functional operator: its name, or the group."""
    if isinstance(name, dist.ProcessGroup):
        return name
    resolve: Any = vars(distributed_c10d)["_resolve_process_group"]
    found: dist.ProcessGroup = resolve(name)
    return found


def reduction_of(argument: Any) -> str:
    """Return the reduction that is an argument of a c10d operator, in small letters: "sum", "max", "avg", ..."""
    number = int(argument.op())
    kinds: Any = dist.ReduceOp.RedOpType
    name = next(name for name, kind in kinds.__members__.items() if int(kind) == number)
    return str(name).lower()


def backward_node() -> Any:
    """Return the node of the graph that the running backward evaluates; None outside of one."""
    return torch._C._current_autograd_node()


def runs_backward(frame: Any) -> bool:
    """Return whether a frame of the Python stack is the function that runs a backward."""
    return frame.f_code is torch.autograd.graph._engine_run_backward.__code__


def start_fake_world(rank: int, ranks: int) -> None:
    """Start torch.distributed as one rank of a world that has no other: its collectives send and change nothing."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    assert "torch.testing._internal.distributed.fake_pg" in sys.modules
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=ranks)
